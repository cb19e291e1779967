"""What is held of the originals of patches outside module globals: found, rebound and given back.

The holders are those of :mod:`hookery.holders`; this says which of them count for a patch and what they are given.
Imported when it is first needed, before the lock of the patches is taken.
"""

from __future__ import annotations

import enum
import gc
import types
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from hookery import holders, raw
from hookery.hooks import Hook
from hookery.reach import Holder

# What a stand-in may be made of, besides objects of hookery's own classes.
_MADE_OF = (types.FunctionType, types.CellType, types.MethodType, tuple, dict, staticmethod, classmethod, property)
_INSIDE = {staticmethod: ("__func__",), classmethod: ("__func__",), property: ("fget", "fset", "fdel")}
_SHARED = (type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes, tuple, frozenset)

Place = tuple[Any, Any, Holder]  # what is held, what stands in for it or None where nothing can, and who holds it


class Patched(Protocol):
    """What is asked of a patch."""

    hooks: list[Hook]
    holders: list[Holder]
    stand_in: Any

    @property
    def original(self) -> Any: ...

    @property
    def held(self) -> list[tuple[Any, Any]]: ...

    @property
    def own_modules(self) -> set[int]: ...


P = TypeVar("P", bound=Patched)


def pairs(original: Any, stand_in: Any) -> list[tuple[Any, Any]]:
    """What others may hold of ``original``, each with what stands in for it, or ``None`` where nothing can: the object
    itself, and the functions inside a classmethod, staticmethod or property."""
    if type(original) in _SHARED or issubclass(type(original), enum.Enum):
        return []  # unrelated things hold the same value
    found = [(original, stand_in)]
    same_kind = type(stand_in) is type(original)
    for name in _INSIDE.get(type(original), ()):
        inside, instead = getattr(original, name), getattr(stand_in, name) if same_kind else None
        if inside is not None and inside is not instead:
            found.append((inside, instead))
    return found


def find(wanted: Sequence[P], made: Iterable[Patched]) -> dict[P, list[Place]]:
    """Who holds what of the originals of ``wanted``, outside their hooks' own modules.

    ``made`` are all patches there are: what their stand-ins hold does not count.
    """
    of_patch = {patch: patch.held for patch in wanted}
    spared: dict[int, set[int]] = {}
    for patch, held in of_patch.items():
        for old, _ in held:
            spared.setdefault(id(old), set()).update(patch.own_modules)
    things = [old for held in of_patch.values() for old, _ in held]
    found = holders.find(things, ours=_own_objects(made), spared=spared) if things else {}
    return {
        patch: [(old, new, holder) for old, new in held for holder in found[id(old)]]
        for patch, held in of_patch.items()
    }


def rebind(wanted: Sequence[P], made: Iterable[Patched]) -> dict[P, list[Holder]]:
    """Give every holder that can be rebound the stand-in; return those that were."""
    return {
        patch: [holder for old, new, holder in places if new is not None and holder.exchange(old, new)]
        for patch, places in find(wanted, made).items()
    }


def give_back(patches: Sequence[Patched], made: Iterable[Patched]) -> None:
    """Whoever was given a stand-in gets the original, and who has taken it while it stood, as module globals do."""
    taken = {patch: [(old, new) for old, new in patch.held if new is not None] for patch in patches}
    for patch in patches:
        for holder in patch.holders:
            for old, new in taken[patch]:
                if holder.exchange(new, old):
                    break
    exchanged = [pair for held in taken.values() for pair in held]
    if not exchanged:
        return
    found = holders.find([new for _, new in exchanged], ours=_own_objects(made))
    for old, new in exchanged:
        for holder in found[id(new)]:
            holder.exchange(new, old)


def _own_objects(made: Iterable[Patched]) -> Collection[int]:
    """Everything that stand-ins are made of: what they hold is no holder of anybody's."""
    modules = raw.module_namespaces()
    stops: set[int] = set()
    own: set[int] = set()
    waiting: list[Any] = []
    for patch in list(made):
        stops.update(id(hook.function) for hook in patch.hooks)
        for original in (patch.original, *(old for old, _ in patch.held)):
            stops.add(id(original))
            stops.update(map(id, gc.get_referents(original)))  # a stand-in may share them
        waiting += (patch, vars(patch), patch.stand_in)
    while waiting:
        thing = waiting.pop()
        kind = type(thing)
        if id(thing) in own or id(thing) in stops or id(thing) in modules or issubclass(kind, Holder):
            continue
        if kind in _MADE_OF or raw.class_module(kind).startswith("hookery."):
            own.add(id(thing))
            waiting.extend(gc.get_referents(thing))
    return own
