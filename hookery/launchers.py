"""Hooks in worker processes that Ray and torchrun start.

torchrun hands its environment on, so ``hookery run torchrun train.py`` needs nothing in the program. Where workers
cannot be started so, one line does it::

    ray.init(runtime_env=hookery.launchers.ray_runtime_env())  # the hooks of the driver, in every worker
    ray.init(runtime_env={"worker_process_setup_hook": "hookery.launchers.setup_worker"})  # the installed plugins
    hookery.launchers.setup_worker()  # at the top of a script that torchrun starts
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from hookery import running
from hookery.hooks import HookApplyError, HookError, HookWarning
from hookery.manifest import Manifest
from hookery.naming import MAIN
from hookery.registry import registry

_SETUP_HOOK = "worker_process_setup_hook"


def setup_worker() -> None:
    """Load and apply, in a worker, the installed plugins (those of ``HOOKERY_PLUGINS`` if it is set) and the modules of
    ``HOOKERY_HOOKS``. May be called any number of times, and under ``hookery run``.

    Raises:
        HookError: a plugin that was asked for is not installed on this machine, or fails; the message names the
            machine.
    """
    try:
        running.apply_asked_for()
    except HookError as error:
        raise type(error)(f"{_here()}: {error}") from error


def ray_runtime_env(runtime_env: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A ``runtime_env`` for ``ray.init`` with which every worker has the hooks of this process, before its first task.

    A ``worker_process_setup_hook`` that is in ``runtime_env`` already runs after the hooks are applied. Hooks that
    workers cannot find by name (lambdas, nested functions, those of the driver's own script) are warned about.

    Raises:
        HookError: with ``HOOKERY_STRICT=1``, there is a hook that workers cannot find.
    """
    text = _findable(Manifest.of(registry)).to_json()
    result = dict(runtime_env or {})
    existing: str | Callable[[], Any] | None = result.get(_SETUP_HOOK)

    def setup_worker_like_driver() -> None:  # nested, so that Ray ships it with what it encloses
        from hookery.launchers import apply_manifest, call_setup_hook

        apply_manifest(text)
        call_setup_hook(existing)

    result[_SETUP_HOOK] = setup_worker_like_driver
    return result


def _findable(manifest: Manifest) -> Manifest:
    """The manifest without the hooks that another program cannot find, which are warned about."""
    lost = [
        f"{hook.describe()} ({hook.local or 'it is defined in the main program'})"
        for hook in manifest.hooks
        if not hook.reverted and hook.plugin is None and (hook.local is not None or hook.module == MAIN)
    ]
    if lost:
        message = f"no worker will have the hook {'; '.join(lost)}; define hooks at the top of a module of their own"
        if os.environ.get("HOOKERY_STRICT") == "1":
            raise HookError(message)
        warnings.warn(message, HookWarning, stacklevel=3)
    kept = tuple(hook for hook in manifest.hooks if hook.plugin is not None or hook.module != MAIN)
    return dataclasses.replace(manifest, hooks=kept)


def apply_manifest(text: str) -> None:
    """Have the hooks of a manifest in this worker.

    Raises:
        HookApplyError: something of it is not in place.
    """
    failures = Manifest.from_json(text).apply(registry, warn=False)
    if failures:
        raise HookApplyError(f"{_here()}: {'; '.join(map(str, failures))}")


def call_setup_hook(setup_hook: str | Callable[[], Any] | None) -> None:
    """Call a setup hook as Ray does: by its dotted name, or as a function."""
    if isinstance(setup_hook, str):
        import pkgutil

        setup_hook = pkgutil.resolve_name(setup_hook)
    if callable(setup_hook):
        setup_hook()


def _here() -> str:
    import socket

    return f"worker process {os.getpid()} on {socket.gethostname()}"
