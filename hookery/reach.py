"""Who else holds an original: module globals made by ``from x import f``.

One pass over the loaded modules serves all targets together. Values are compared by identity alone and looked at only
through module dictionaries, so nobody's code runs.
"""

from __future__ import annotations

import itertools
import operator
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from hookery import raw


class Rebinding:
    """A wish: wherever ``old`` is found, ``new`` shall stand, except in the modules whose globals are spared and in
    single entries that are: a module's globals, by identity, and a name in them. ``name`` is the only one that counts
    if it is given."""

    def __init__(
        self,
        old: Any,
        new: Any,
        spared_globals: Collection[int] = (),
        *,
        name: str | None = None,
        spared_entries: Collection[tuple[int, str]] = (),
    ) -> None:
        self.old, self.new = old, new
        self.spared_globals, self.spared_entries, self.name = spared_globals, spared_entries, name

    def applies_to(self, namespace: dict[str, Any], name: str) -> bool:
        """Whether what ``name`` holds in the globals ``namespace`` is not spared."""
        if self.name is not None and name != self.name:
            return False
        spared = id(namespace) in self.spared_globals or (id(namespace), name) in self.spared_entries
        return not (spared or is_internal(name))


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
    done: list[tuple[Rebinding, Holder]] = []
    if not by_identity:
        return done
    are_elsewhere = _are_elsewhere([wish.old for wish in by_identity.values()])
    for module_name, namespace in _namespaces():
        try:
            if are_elsewhere(namespace.values()):
                continue
        except (RuntimeError, TypeError):  # another thread has changed it meanwhile
            pass
        # It is copied before it is walked: to build a list of items can let another thread change it.
        names = namespace.copy()
        for name in itertools.compress(names, map(by_identity.__contains__, map(id, names.values()))):
            wish = by_identity[id(names[name])]
            if wish.applies_to(namespace, name):
                namespace[name] = wish.new
                done.append((wish, Entry(f"{module_name}.{name}", name, namespace)))
    return done


def _are_elsewhere(originals: Collection[Any]) -> Callable[[Iterable[Any]], bool]:
    """A function that says whether none of ``originals`` is among some values. Applying hooks spends half of its time
    there, in a hundred thousand globals; so no identity is made into a number where the types are enough."""
    if all(type(original) is types.FunctionType for original in originals):
        # Their hash is their identity, and nobody can make a subclass with another.
        functions, function_type = frozenset(originals), itertools.repeat(types.FunctionType)
        return lambda values: functions.isdisjoint(
            itertools.compress(values, map(operator.is_, map(type, values), function_type))
        )
    identities = frozenset(map(id, originals))
    return lambda values: identities.isdisjoint(map(id, values))


def is_internal(name: Any) -> bool:
    """Whether it is a name under which a function hooked in place finds its hooks, in the globals of its module."""
    return type(name) is str and name.startswith("__hookery_")


def _namespaces() -> Iterator[tuple[str, dict[str, Any]]]:
    namespace_of = raw.module_namespace
    for module_name, module in sys.modules.copy().items():
        try:  # asking each whether it is a module, which it need not be, would cost more than looking
            namespace = namespace_of(module)
        except TypeError:
            namespace = raw.namespace(module)
        if namespace is not None:
            yield module_name, namespace
    apart = raw.main_globals_apart() if "__mp_main__" in sys.modules else None
    if apart is not None:
        yield "__mp_main__", apart


def give_back(namespace: dict[str, Any], exchange: dict[int, tuple[Any, Any]]) -> None:
    """Put the second object of each pair of ``exchange``, which is by the identity of the first, where a module holds
    the first."""
    for name, value in namespace.copy().items():
        pair = exchange.get(id(value))
        if pair is not None and value is pair[0]:
            namespace[name] = pair[1]
