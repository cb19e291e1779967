"""When two registrations are one hook."""

from __future__ import annotations

import types
from typing import Any

from hookery.hooks import Hook, HookFunction


def is_same(one: Hook, other: Hook) -> bool:
    """Whether two registrations are one hook: the same object, or one importable function that was made again."""
    if dotted(one.target) != dotted(other.target) or one.type is not other.type:
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
    return ("__main__" if function.__module__ == "__mp_main__" else function.__module__, name)


def options_of(hook: Hook) -> dict[str, Any]:
    """What a second registration of the same hook has to agree with."""
    return {
        "priority": hook.priority,
        "engine": hook.engine_asked,
        "on_error": hook.on_error,
        "reason": hook.reason,
        "versions": hook.versions,
        "subclasses": hook.subclasses,
    }


def dotted(target: str) -> str:
    return target.replace(":", ".")
