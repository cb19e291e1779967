"""How a process of the runtime starts: its hooks first, then everything else.

Every process calls `load_process_plugins` before it imports what it runs, so that hooks are in place before anybody
holds an unhooked function. The runtime is strict: a plugin that fails and a hook whose target does not exist stop the
process, because a hook that silently does not run is worse than no service.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points

import hookery
import hookery.plugins
from hookery.processes import not_inherited
from runtime import platforms


def load_process_plugins(modules: Sequence[str]) -> None:
    """Load the installed plugins and the named plugin modules, and apply their hooks.

    Plugins that a distribution ships beside a platform which is not selected are left out: they are for other hardware.

    Args:
        modules: plugin modules to load beside the installed ones, by dotted name.

    Raises:
        hookery.HookError: a plugin fails to load, or a hook cannot be applied; in a child process also one that the
            process that started it has, and that has not arrived; or `HOOKERY_PLUGINS` names a plugin that belongs to
            a platform which is not selected.
        PlatformError: a platform plugin that is asked which platform to use fails.
    """
    # A step takes milliseconds and a counted call well under a microsecond: the listing can always say how often.
    hookery.registry.counting = True
    # A child process has the hooks of the one that started it already: then this loads what is left, which is nothing.
    unselected = platforms.unselected_distributions()
    _check_allow_list(unselected)
    hookery.load_plugins(modules=modules, except_distributions=unselected, strict=True)
    failures = not_inherited()
    if failures:
        raise hookery.HookApplyError("; ".join(map(str, failures)))


def _check_allow_list(unselected: frozenset[str]) -> None:
    """Raise if the allow-list of hook plugins asks for one that only distributions for other hardware have.

    Raises:
        hookery.PluginError: it does.
    """
    entries = list(entry_points(group=hookery.plugins.ENTRY_POINT_GROUP)) if unselected else []
    for name in os.environ.get(hookery.plugins.ALLOW_LIST_VARIABLE, "").split(","):
        distributions = [entry.dist.name if entry.dist else "" for entry in entries if entry.name == name.strip()]
        if distributions and unselected.issuperset(distributions):
            raise hookery.PluginError(
                f"{hookery.plugins.ALLOW_LIST_VARIABLE} asks for the plugin {name.strip()!r} of"
                f" {' and '.join(distributions)}, which belongs to a platform that is not selected; select it with"
                f" {platforms.PLATFORM_ENV}"
            )


@contextmanager
def building(modules: Sequence[str]) -> Iterator[None]:
    """Load the plugins, then let the body import and build what the process runs; every hook must have found its
    target, or still wait for its module, when the body ends.

    Raises:
        hookery.HookError: as `load_process_plugins`; or a hook's target does not exist, the platform's included.
        PlatformError: no platform can be chosen.
    """
    load_process_plugins(modules)
    with warnings.catch_warnings():
        # What turns out to be wrong with a hook while the body imports is raised at the end; once is enough.
        warnings.simplefilter("ignore", hookery.MissedHookWarning)
        warnings.filterwarnings("ignore", "hooks of .* were taken back while", hookery.HookWarning)
        from runtime.platforms import current_platform  # noqa: F401  (the first access chooses it)

        apply_remaining_hooks()
        yield
        apply_remaining_hooks()


def apply_remaining_hooks() -> None:
    """Apply the hooks whose targets have come into being since.

    Raises:
        hookery.HookError: one of them cannot be applied, or its target does not exist; also one that could not be when
            its target's module was imported, where nothing may be raised.
    """
    hookery.registry.apply_hooks(strict=True)
    # One that was taken back on purpose has no detail; all of a plugin have the same.
    undone = {hook.detail: None for hook in hookery.registry.hooks() if hook.state is hookery.HookState.REVERTED}
    reasons = [detail.removeprefix("its source was undone: ") for detail in undone if detail]
    if reasons:
        raise hookery.HookApplyError("; ".join(reasons))
