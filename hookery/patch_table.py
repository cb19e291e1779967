"""The hooked targets of this process, as a table that all registries share.

A :class:`Patch` is one of them: the original, the one stable stand-in, the hooks on it and everything that was rebound
to the stand-in. What is done with them is in :mod:`hookery.patches`. Whoever looks here has the lock.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from hookery import engines, raw, reach, retired
from hookery.hooks import Hook
from hookery.reach import Holder
from hookery.targets import Target, TargetKind

observers: list[Callable[[Patch], object]] = []  # called with every patch that is made
made: weakref.WeakSet[Patch] = weakref.WeakSet()  # those that were taken off too, until the last reference goes


class Patch:
    """One hooked target. ``stand_in`` is what stands at its name, ``made`` what the engine made for it."""

    def __init__(self, target: Target, engine: str, engine_reason: str, first: Hook) -> None:
        self.target = target
        self.engine = engine
        self.engine_reason = engine_reason
        self.is_class = target.kind is TargetKind.CLASS
        # Whether the descriptor at the name is composed of what was made for its accessors.
        self.is_property = target.kind is TargetKind.PROPERTY and engine != engines.ENGINE_IN_PLACE
        self.stand_in: Any = None
        self.made: engines.StandIn | None = None
        self.hooks: list[Hook] = []
        self.holders: list[Holder] = []
        self.deep = False  # what else than module globals holds the original is rebound too, where that is safe
        self.superseded = False  # a reload put another object at the name; this patch serves who kept the old one
        self.references = 0  # how many there are to what was made, before it stands anywhere
        self.looking_after: Callable[[], bool] | None = None  # see own_modules
        made.add(self)
        for observe in observers:
            observe(self)
        if not self.is_class:
            self.made = engines.make_stand_in(target, engine, first.function)
            if not self.is_property:
                self.stand_in = self.made.value
                self.references = retired.references(self.stand_in)

    def stand_with(self, stand_in: Any) -> None:
        """From now on this stands at the name; ``None``: the original does."""
        table.forget(self, self.stand_in)
        self.stand_in = stand_in
        table.know(self, stand_in)

    @property
    def original(self) -> Any:
        return self.target.raw

    @property
    def standing(self) -> Any:
        """What stands at the target's name in its owner's own namespace, or ``None``."""
        return raw.attributes(self.target.owner).get(self.target.attribute)

    @property
    def rebinds(self) -> bool:
        """Whether module globals that hold the original are rebound: not for an inherited target, whose original
        belongs to another class, nor for what lies wrapped in a descriptor that no module global holds, nor for what
        unrelated names share, nor where the original itself is what stands."""
        return not (
            self.target.inherited
            or self.original is None
            or self.engine == engines.ENGINE_IN_PLACE
            or isinstance(self.original, (classmethod, staticmethod, property))
        )

    @property
    def entries(self) -> set[tuple[int, str]]:
        """The module globals where the stand-in was put: the identity of each and the name."""
        found = {(id(each.namespace), each.name) for each in self.holders if type(each) is reach.Entry}
        return {(id(raw.attributes(self.target.owner)), self.target.attribute), *found}

    def siblings(self) -> list[Patch]:
        """The patches of the accessors of one property, this one among them."""
        return [patch for patch in table if not patch.superseded and patch.is_accessor_beside(self.target)]

    @property
    def held(self) -> list[tuple[Any, Any]]:
        """What others may hold of the original, each with what stands in for it."""
        if self.target.inherited or self.stand_in is None or self.stand_in is self.original:
            return []
        from hookery import held

        return held.pairs(self.original, self.stand_in)

    @property
    def sought(self) -> list[tuple[Any, Any]]:
        """That, and what stood for the original before and somebody still has."""
        found = self.held
        return found + [(older, new) for old, new in found if new is not None for older in retired.stood_for(old)]

    @property
    def own_modules(self) -> set[int]:
        """The identities of the globals of the modules that the hooks were written in."""
        return {id(found) for hook in self.hooks if (found := hook.own_globals()) is not None}

    def is_accessor_beside(self, target: Target) -> bool:
        """Whether this and ``target`` are accessors of one property."""
        return (
            self.is_property
            and target.kind is TargetKind.PROPERTY
            and self.target.owner is target.owner
            and self.target.attribute == target.attribute
        )


class PatchTable:
    """Patches in the order in which they were made, which are found by the objects that they are about: the original
    and what stands in for it."""

    def __init__(self) -> None:
        self._all: dict[Patch, None] = {}
        self._by_object: dict[int, dict[Patch, None]] = {}  # a patch keeps its objects, so that no identity is reused

    def __iter__(self) -> Iterator[Patch]:
        return iter(self._all)

    def __contains__(self, patch: Patch) -> bool:
        return patch in self._all

    def add(self, patch: Patch) -> None:
        self._all[patch] = None
        self.know(patch, patch.target.raw)
        self.know(patch, patch.stand_in)

    def remove(self, patch: Patch) -> None:
        self.forget(patch, patch.target.raw)
        self.forget(patch, patch.stand_in)
        del self._all[patch]

    def know(self, patch: Patch, thing: Any) -> None:
        """``patch`` is about ``thing`` too."""
        if patch in self._all:
            self._by_object.setdefault(id(thing), {})[patch] = None

    def forget(self, patch: Patch, thing: Any) -> None:
        """``patch`` is not about ``thing`` any more."""
        there = self._by_object.get(id(thing), {})
        there.pop(patch, None)
        if not there:
            self._by_object.pop(id(thing), None)

    def about(self, thing: Any) -> list[Patch]:
        """The patches whose original or whose stand-in this is."""
        return list(self._by_object.get(id(thing), ()))


table = PatchTable()


def all_patches() -> list[Patch]:
    return list(table)


def patches_of(hook: Hook) -> list[Patch]:
    return [patch for patch in table if hook in patch.hooks]


def find(target: Target) -> Patch | None:
    """The patch that ``target`` belongs to, under whichever name it was found."""
    for patch in table.about(target.raw):
        if patch.superseded or target.accessor != patch.target.accessor:
            continue
        same_place = patch.target.owner is target.owner and patch.target.attribute == target.attribute
        # What a module re-exports is one target under two names; an alias in a class is a method of its own.
        in_modules = isinstance(target.owner, types.ModuleType) and isinstance(patch.target.owner, types.ModuleType)
        if same_place or (in_modules and target.raw is not None):
            return patch
    return None
