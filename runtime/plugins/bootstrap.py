"""How a process of the runtime starts: its hooks first, then everything else.

Every process calls `load_process_plugins` before it imports what it runs, so that hooks are in place before anybody
holds an unhooked function. The runtime is strict: a plugin that fails and a hook whose target does not exist stop the
process, because a hook that silently does not run is worse than no service.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hookery
from hookery.processes import not_inherited


def load_process_plugins(modules: Sequence[str]) -> None:
    """Load the installed plugins and the named plugin modules, and apply their hooks.

    Args:
        modules: plugin modules to load beside the installed ones, by dotted name.

    Raises:
        hookery.HookError: a plugin fails to load, or a hook cannot be applied; in a child process also one that the
            process that started it has, and that has not arrived.
    """
    # A step takes milliseconds and a counted call well under a microsecond: the listing can always say how often.
    hookery.registry.counting = True
    # A child process has the hooks of the one that started it already: then this loads what is left, which is nothing.
    hookery.load_plugins(modules=modules, strict=True)
    failures = not_inherited()
    if failures:
        raise hookery.HookApplyError("; ".join(map(str, failures)))


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
        # A target that turns out to be missing while the body imports is raised at the end; once is enough.
        warnings.simplefilter("ignore", hookery.MissedHookWarning)
        from runtime.platforms import current_platform  # noqa: F401  (the first access chooses it)

        apply_remaining_hooks()
        yield
        apply_remaining_hooks()


def apply_remaining_hooks() -> None:
    """Apply the hooks whose targets have come into being since.

    Raises:
        hookery.HookError: one of them cannot be applied, or its target does not exist.
    """
    hookery.registry.apply_hooks(strict=True)
