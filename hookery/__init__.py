"""Monkey-patching hooks, driven by decorators, that never silently do not run.

::

    from hookery import HookType, plugin_hook

    @plugin_hook("json.dumps", HookType.AFTER)
    def sign(result, *args, **kwargs):
        return result + "  # hooked"

    hookery.load_plugins()  # once per process; applies what is registered
    hookery.applied_hooks()  # what stands where, and whether it ran
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hookery.decorator import plugin_hook
from hookery.hooks import (
    NONE,
    Hook,
    HookApplyError,
    HookError,
    HookSource,
    HookState,
    HookType,
    HookWarning,
    MissedHookWarning,
    PluginError,
    TargetNotFoundError,
)
from hookery.locking import importing
from hookery.plugins import load_plugins
from hookery.registry import HookRegistry, observers, registry

if TYPE_CHECKING:
    from hookery.explanation import ExplainedHook, Explanation, Problem
    from hookery.listing import HookRecord, format_table
    from hookery.remarks import add_note, set_counted

__all__ = [
    "NONE",
    "ExplainedHook",
    "Explanation",
    "Hook",
    "HookApplyError",
    "HookError",
    "HookRecord",
    "HookRegistry",
    "HookSource",
    "HookState",
    "HookType",
    "HookWarning",
    "MissedHookWarning",
    "PluginError",
    "Problem",
    "TargetNotFoundError",
    "add_note",
    "applied_hooks",
    "explain",
    "format_table",
    "load_plugins",
    "plugin_hook",
    "publish",
    "registry",
    "set_counted",
]

__version__ = "0.1.0"


def applied_hooks(*, unreached: bool = False) -> list[HookRecord]:
    """Every hook of the process's registry: target, hook, type, source, state, whether it ran, and more."""
    return registry.applied_hooks(unreached=unreached)


def explain(target: str) -> Explanation:
    """What stands at ``target`` and why; see :meth:`HookRegistry.explain`."""
    return registry.explain(target)


def publish(*, role: str | None = None, unreached: bool = True) -> None:
    """Say now what ``hookery ps`` shows of this process: where each hook stands, whether it ran and how often.

    A process does so by itself when hooks are applied or taken back and when it ends; see :mod:`hookery.publication`.

    Args:
        role: what the process is to be called there from now on.
        unreached: look for those who hold originals too, which takes tens of milliseconds.
    """
    from hookery import publication

    publication.publish(registry, role=role, unreached=unreached)


def _reach_child_processes(applied: HookRegistry) -> None:
    with importing:
        from hookery import processes
    processes.after_applying(applied)


def _publish_changes(changed: HookRegistry) -> None:
    if changed is not registry:
        return
    with importing:
        from hookery import publication
    # Importing it may import what a hook waits for, and so come by here again: all is told when it is there.
    tell = getattr(publication, "changed", None)
    if tell is not None:
        tell(changed)


observers += [_reach_child_processes, _publish_changes]

_LOADED_WHEN_ASKED_FOR = {
    "ExplainedHook": "explanation",
    "Explanation": "explanation",
    "HookRecord": "listing",
    "Problem": "explanation",
    "add_note": "remarks",
    "format_table": "listing",
    "set_counted": "remarks",
}


def __getattr__(name: str) -> Any:
    if name in _LOADED_WHEN_ASKED_FOR:
        from importlib import import_module

        value = getattr(import_module(f"hookery.{_LOADED_WHEN_ASKED_FOR[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LOADED_WHEN_ASKED_FOR})
