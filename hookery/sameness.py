"""When two registrations are one hook, and what they then have to agree on."""

from __future__ import annotations

import types
from typing import Any

from hookery.hooks import Hook, HookFunction
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


def options_of(hook: Hook) -> dict[str, Any]:
    """What a second registration of the same hook has to agree with."""
    return {
        "priority": hook.priority,
        "engine": hook.engine_asked,
        "on_error": hook.on_error,
        "reason": hook.reason,
        "versions": hook.versions,
        "count": hook.counted,
        "subclasses": hook.subclasses,
    }


def plain_name(target: str) -> str:
    """The name of a target in the one spelling that names are compared in."""
    return target.replace(":", ".")
