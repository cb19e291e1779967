"""A table of patches that is looked up by the objects that they are about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar


class _Target(Protocol):
    @property
    def raw(self) -> Any: ...


class About(Protocol):
    """What is in the table: it is about the raw object of its target, and about what stands in for that."""

    stand_in: Any

    @property
    def target(self) -> _Target: ...


P = TypeVar("P", bound=About)


class Table(Generic[P]):
    """Pes in the order in which they were made, which are found by the objects that they are about."""

    def __init__(self) -> None:
        self._all: dict[P, None] = {}
        self._by_object: dict[int, dict[P, None]] = {}  # a patch keeps its objects, so that no identity is reused

    def __iter__(self) -> Iterator[P]:
        return iter(self._all)

    def __contains__(self, patch: P) -> bool:
        return patch in self._all

    def add(self, patch: P) -> None:
        self._all[patch] = None
        self.know(patch, patch.target.raw)
        self.know(patch, patch.stand_in)

    def remove(self, patch: P) -> None:
        self.forget(patch, patch.target.raw)
        self.forget(patch, patch.stand_in)
        del self._all[patch]

    def know(self, patch: P, thing: Any) -> None:
        """``patch`` is about ``thing`` too."""
        if patch in self._all:
            self._by_object.setdefault(id(thing), {})[patch] = None

    def forget(self, patch: P, thing: Any) -> None:
        """``patch`` is not about ``thing`` any more."""
        there = self._by_object.get(id(thing), {})
        there.pop(patch, None)
        if not there:
            self._by_object.pop(id(thing), None)

    def about(self, thing: Any) -> list[P]:
        """The patches whose original or whose stand-in this is."""
        return list(self._by_object.get(id(thing), ()))
