"""Whether a hook can be registered, whether it can be put on a target, and whether the target lets it."""

from __future__ import annotations

from typing import Any

from hookery import raw
from hookery.engines import ENGINES
from hookery.hooks import Hook, HookFunction, HookType
from hookery.targets import Target, TargetKind


def set_attribute(target: Target, value: Any, hook: Hook | None) -> None:
    """Put ``value`` at the name of ``target``.

    Raises:
        TypeError: its owner refuses; the message names ``hook``.
    """
    try:
        assign(target, value)
    except Exception as error:  # a metaclass may refuse in any way it likes
        what = target.name if hook is None else f"{hook.describe()}: {target.name}"
        raise TypeError(f"{what} cannot be replaced: {error}") from error


def assign(target: Target, value: Any) -> None:
    """Put ``value`` at the name of ``target``, as plainly as an assignment, and where the functions of a child
    process's main module look for it."""
    before = vars(target.owner).get(target.attribute)
    setattr(target.owner, target.attribute, value)
    used = raw.module_globals(target.owner)
    if used is not None and used is not raw.namespace(target.owner) and used.get(target.attribute) is before:
        used[target.attribute] = value


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


ON_ERROR = ("raise", "warn", "disable")


def check_options(
    target: str, hook: HookFunction, hook_type: HookType, *, priority: int, engine: str, on_error: str
) -> None:
    """Whether a hook can be registered with these options, whatever stands at its target.

    Raises:
        TypeError, ValueError: it cannot; see :meth:`hookery.HookRegistry.register`.
    """
    if not isinstance(hook_type, HookType):
        raise TypeError(f"hook type of {hook!r} on {target}: {hook_type!r} is not a HookType")
    if not callable(hook):
        raise TypeError(f"{hook!r} on {target} is not callable")
    if isinstance(hook, type) and hook_type is not HookType.REPLACE:
        raise TypeError(f"the class {hook.__qualname__} on {target}: a class can only REPLACE, not {hook_type.name}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority of {hook!r} on {target} is {priority!r}; it must be an int")
    if engine not in ENGINES:
        raise ValueError(f"engine of {hook!r} on {target} is {engine!r}; it can be {_one_of(ENGINES)}")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error of {hook!r} on {target} is {on_error!r}; it can be {_one_of(ON_ERROR)}")
    if on_error != "raise" and hook_type in (HookType.AROUND, HookType.REPLACE):
        raise TypeError(
            f"on_error of {hook!r} on {target} is {on_error!r}; an error of {hook_type.name} hooks can only be"
            " raised, because there is no result without them"
        )


def _one_of(choices: tuple[str, ...]) -> str:
    return f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
