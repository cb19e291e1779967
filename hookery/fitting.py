"""Whether a hook can be put on a target, and whether the target lets it."""

from __future__ import annotations

from typing import Any

from hookery.hooks import Hook, HookType
from hookery.targets import Target, TargetKind


def set_attribute(target: Target, value: Any, hook: Hook | None) -> None:
    """Put ``value`` at the name of ``target``.

    Raises:
        TypeError: its owner refuses; the message names ``hook``.
    """
    try:
        setattr(target.owner, target.attribute, value)
    except Exception as error:  # a metaclass may refuse in any way it likes
        what = target.name if hook is None else f"{hook.describe()}: {target.name}"
        raise TypeError(f"{what} cannot be replaced: {error}") from error


def check_fit(target: Target, hook: Hook) -> None:
    """Whether what stands at ``target`` can have ``hook``.

    Raises:
        TypeError: it cannot.
    """
    hook_is_class = isinstance(hook.function, type)
    if target.kind is TargetKind.CLASS:
        if hook.type is not HookType.REPLACE or not hook_is_class:
            raise TypeError(f"{hook.describe()}: {target.name} is a class; it can only be REPLACEd, by a class")
    elif hook_is_class:
        raise TypeError(f"{hook.describe()}: {target.name} is a {target.kind.value}; a class cannot replace it")
    elif target.kind is TargetKind.ABSENT and hook.type is not HookType.REPLACE:
        raise TypeError(f"{hook.describe()}: {target.name} is None; it cannot be hooked, only REPLACEd")
