"""Stand-ins whose last hook left, and who still has them.

Whoever took a stand-in while it stood (a table that was filled then, a partial) would go past the hooks that come
later: it holds neither the original nor what stands for it now. So they are remembered for as long as they live.
Every function here expects the lock of the patches to be held.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

_retired: dict[int, list[weakref.ref[Any]]] = {}  # by the identity of the original, which each keeps alive
_MANY = 64
_many = _MANY  # with more than so many, those that nobody has any more are forgotten


def _layers(thing: Any) -> list[Any]:
    """An object and the function inside it, where it is a classmethod or a staticmethod."""
    return [thing, thing.__func__] if type(thing) in (classmethod, staticmethod) else [thing]


def references(stand_in: Any) -> int:
    """How many references there are to it; more than when it was made means that others have it."""
    return sum(map(sys.getrefcount, _layers(stand_in)))


def retire(original: Any, stand_in: Any) -> None:
    """Remember that ``stand_in`` stood for ``original``."""
    for old, made in zip(_layers(original), _layers(stand_in), strict=False):
        if made is not old and type(made).__weakrefoffset__:
            _retired[id(old)] = [weakref.ref(kept) for kept in (*stood_for(old), made)]
    global _many
    if len(_retired) > _many:
        for dead in [key for key, made in _retired.items() if all(reference() is None for reference in made)]:
            del _retired[dead]
        _many = max(2 * len(_retired), _MANY)  # so that looking through them costs little for each


def stood_for(original: Any) -> list[Any]:
    """The retired stand-ins for ``original`` that somebody still has."""
    return [found for made in _retired.get(id(original), ()) if (found := made()) is not None]
