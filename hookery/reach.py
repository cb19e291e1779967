"""Who else holds an original: module globals made by ``from x import f``.

One pass over the loaded modules serves all targets together. Values are compared by identity alone and looked at only
through module dictionaries, so nobody's code runs.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from hookery import raw


class Rebinding:
    """A wish: wherever ``old`` is found, ``new`` shall stand, except in the modules whose globals are spared."""

    def __init__(self, old: Any, new: Any, spared_globals: Collection[int] = ()) -> None:
        self.old, self.new, self.spared_globals = old, new, spared_globals


class Holder:
    """A place outside the target's own name that refers to an object. ``address`` is how a person finds it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address})"

    def exchange(self, old: Any, new: Any) -> bool:
        """Put ``new`` where ``old`` is held; whether it was held and could be replaced."""
        raise NotImplementedError

    def holds(self, thing: Any) -> bool:
        """Whether ``thing`` is what is held."""
        return self.exchange(thing, thing)


class Entry(Holder):
    """A module global: ``name`` in the globals ``namespace`` of a module."""

    def __init__(self, address: str, name: str, namespace: dict[str, Any]) -> None:
        super().__init__(address)
        self.name, self.namespace = name, namespace

    def exchange(self, old: Any, new: Any) -> bool:
        if self.namespace.get(self.name) is not old:
            return False
        self.namespace[self.name] = new
        return True


def rebind(wishes: Iterable[Rebinding]) -> list[tuple[Rebinding, Holder]]:
    """Rebind every module global that holds one of the wished originals; return what was rebound.

    An original must be an object of its own (a function, a class): values that unrelated names share by identity, such
    as ``None`` or small integers, must not be asked for.
    """
    by_identity = {id(wish.old): wish for wish in wishes}
    identities = frozenset(by_identity)
    # Dictionaries are copied before they are walked: to build a list of items can let another thread change them.
    done: list[tuple[Rebinding, Holder]] = []
    if not by_identity:
        return done
    for module_name, namespace in _namespaces():
        if type(namespace) is not dict or not _holds_any(namespace, identities):
            continue
        for name, value in namespace.copy().items():
            wish = by_identity.get(id(value))
            if wish is not None and value is wish.old and id(namespace) not in wish.spared_globals:
                namespace[name] = wish.new
                done.append((wish, Entry(f"{module_name}.{name}", name, namespace)))
    return done


def _namespaces() -> Iterator[tuple[str, Any]]:
    for module_name, module in sys.modules.copy().items():
        try:
            yield module_name, object.__getattribute__(module, "__dict__")
        except AttributeError:  # an entry of sys.modules need not be a module
            continue
    if "__mp_main__" in sys.modules:
        yield "__mp_main__", raw.main_globals_apart()


def _holds_any(namespace: dict[str, Any], identities: frozenset[int]) -> bool:
    try:
        return not identities.isdisjoint(map(id, namespace.values()))
    except RuntimeError:  # another thread has changed it meanwhile
        return not identities.isdisjoint(map(id, list(namespace.values())))


def give_back(namespace: dict[str, Any], stand_in: Any, original: Any) -> None:
    """Give a hook's own module the original where it holds the stand-in, so that the hook never calls itself."""
    for name, value in namespace.copy().items():
        if value is stand_in:
            namespace[name] = original
