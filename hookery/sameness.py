"""When two registrations are one hook, and what they then have to agree on."""

from __future__ import annotations

import operator
import types
from collections.abc import Mapping
from typing import Any

from hookery.hooks import REVERTED, Hook, HookFunction
from hookery.naming import module_name_of


def is_same(one: Hook, other: Hook) -> bool:
    """Whether two registrations are one hook: the same object, or one importable function that was made again."""
    if one.plain_target != other.plain_target or one.type is not other.type:
        return False
    if one.function is other.function:
        return True
    name = _importable_name(one.function)
    return name is not None and name == _importable_name(other.function)


def _importable_name(function: HookFunction) -> tuple[str, str] | None:
    if not isinstance(function, (types.FunctionType, type)):
        return None
    name = function.__qualname__
    if "<locals>" in name or "<lambda>" in name:
        return None
    return (module_name_of(function), name)


_OPTIONS = ("priority", "engine", "on_error", "reason", "versions", "count", "subclasses")
_values = operator.attrgetter("priority", "engine_asked", "on_error", "reason", "versions", "counted", "subclasses")
_of_hook = operator.attrgetter("priority", "engine_asked", "on_error", "reason", "versions", "subclasses")
_asked_for = operator.itemgetter("priority", "engine", "on_error", "reason", "versions", "subclasses")


def options_of(hook: Hook) -> dict[str, Any]:
    """What a second registration of the same hook has to agree with."""
    return dict(zip(_OPTIONS, _values(hook), strict=True))


def is_registered_so(
    hook: Hook, target: str, function: HookFunction, hook_type: object, options: Mapping[str, Any]
) -> bool:
    """Whether ``hook`` is to the letter what is to be registered, with all ``options`` given; a count of ``None`` is
    that of the hook. What is so was found to be right when it was registered first."""
    return (
        hook.function is function
        and hook.type is hook_type
        and hook.target == target
        and hook.state is not REVERTED
        and _of_hook(hook) == _asked_for(options)
        and (options["count"] is None or options["count"] == hook.counted)
        and type(options["priority"]) is int  # no bool, which is equal to one
    )


def plain_name(target: str) -> str:
    """The name of a target in the one spelling that names are compared in."""
    return target.replace(":", ".")
