"""Forwards of operations that the package of the platform has brought under a key which is not the platform's.

They never run, and nothing else would say so. A package may bring forwards for several devices, and packages of other
devices may have been imported: what may have been meant for another platform is not named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from typing import Any

from runtime import platforms
from runtime.platforms import answers
from runtime.platforms.discovery import ENTRY_POINT_GROUP, IN_TREE
from runtime.platforms.interface import SRTPlatform
from runtime.platforms.multi_platform import MultiPlatformOp

logger = logging.getLogger(__name__)


def warn() -> None:
    """Log a warning for each of them.

    Raises:
        ConfigError: the dispatch key of the platform is no part of an identifier.
    """
    platform = platforms.current_platform
    key = answers.get_dispatch_key()
    for op, other, forward in _under_other_keys(key):
        if _is_of_package(forward, type(platform)) and other not in _names_of_platforms():
            logger.warning(
                "%s.%s, registered for %s.%s with the key %r, never runs: the dispatch key of platform %s is %r, and"
                " no platform here is called %r; register it with get_dispatch_key()",
                *(forward.__module__, forward.__qualname__, op.__module__, op.__qualname__, other),
                *(platform.device_name, key, other),
            )


def _under_other_keys(key: str) -> Iterator[tuple[type[MultiPlatformOp], str, Any]]:
    """Each operation that has forwards of plugins and none of `key`, with the key and the function of each."""
    for op in _subclasses(MultiPlatformOp):
        forwards = {name.removeprefix("forward_"): function for name, function in op._own_forwards.items()}
        if key not in forwards:
            others = sorted(forwards.keys() - {*IN_TREE, "native"})
            yield from ((op, other, forwards[other]) for other in others)


def _is_of_package(forward: Any, platform_cls: type) -> bool:
    """Whether a function comes from a package, or a distribution, that the platform's class comes from."""
    theirs = _root(forward)
    ours = {_root(cls) for cls in platform_cls.__mro__}
    if theirs in ours:
        return True
    shipped_by = packages_distributions()
    return any(set(shipped_by.get(theirs, ())) & set(shipped_by.get(root, ())) for root in ours)


def _names_of_platforms() -> set[str]:
    """What platforms that are installed, or imported, go by."""
    imported = {getattr(cls, "device_name", "") for cls in _subclasses(SRTPlatform)}
    return imported | {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _root(thing: Any) -> str:
    return str(thing.__module__).partition(".")[0]


def _subclasses(cls: type) -> Iterator[Any]:
    subclass: Any
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
