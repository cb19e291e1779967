"""Monkey-patching hooks, driven by decorators, that never silently do not run.

::

    from hookery import HookType, plugin_hook

    @plugin_hook("json.dumps", HookType.AFTER)
    def sign(result, *args, **kwargs):
        return result + "  # hooked"

    hookery.load_plugins()  # once per process; applies what is registered
    hookery.applied_hooks()  # what stands where, and whether it ran
"""

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
from hookery.listing import HookRecord, format_table
from hookery.plugins import load_plugins
from hookery.registry import HookRegistry, plugin_hook, registry

__all__ = [
    "NONE",
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
    "TargetNotFoundError",
    "applied_hooks",
    "format_table",
    "load_plugins",
    "plugin_hook",
    "registry",
]

__version__ = "0.1.0"


def applied_hooks(*, unreached: bool = False) -> list[HookRecord]:
    """Every hook of the process's registry: target, hook, type, source, state, whether it ran, and more."""
    return registry.applied_hooks(unreached=unreached)
