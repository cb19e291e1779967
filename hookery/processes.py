"""The hooks follow into the child processes of multiprocessing, with no call in the program.

What every process hands down to its children is a private attribute of multiprocessing's: the configuration of the
current process, which each new process copies and, unless it is forked, unpickles before its target. An object in there
pickles itself into the manifest of the moment and unpickles into the hooks. ``HOOKERY_PROPAGATE=0`` turns that off.
"""

from __future__ import annotations

import os
import sys
import types
import warnings
import weakref
from typing import Any

from hookery import children, reporting, watching
from hookery.children import LOADING_VARIABLE, PROPAGATE_VARIABLE, STRICT_VARIABLE
from hookery.hooks import REVERTED, Hook, HookApplyError, HookError, HookState, HookWarning
from hookery.manifest import Failure, Manifest
from hookery.naming import HookName, name_of
from hookery.registry import HookRegistry, registry

_KEY = "hookery"


class Inheritance:
    """Unpickles into the hooks of the process that has pickled it. There is plain data in the pickle, and no code."""

    def __init__(
        self,
        manifest: dict[str, Any] | None = None,
        reports: Any = None,
        parent: tuple[str, int, str | None] | None = None,
    ) -> None:
        if manifest is not None and parent is not None:
            name, number, loading = parent
            _make_parent_known(name, number)
            _adopt_loading(loading)
            _arrive(manifest, None if reports is None else reports.detach())

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """What a process that is being started is given.

        Raises:
            HookError: a hook cannot follow it, and ``HOOKERY_STRICT`` is 1.
        """
        manifest = Manifest.of(*_registries()) if _propagates() else Manifest()
        _warn_of_local_hooks()
        from multiprocessing import context, process

        popen = context.get_spawning_popen()
        if popen is None or not _propagates():
            return (dict, ())
        children.note_sent(popen, [hook.name for hook in manifest.hooks if not hook.reverted])
        if manifest.empty:
            return (dict, ())
        descriptor = None
        if hasattr(popen, "duplicate_for_child"):
            from multiprocessing import reduction

            descriptor = reduction.DupFd(children.reports.descriptor())
        parent = (process.current_process().name, os.getpid(), os.environ.get(LOADING_VARIABLE))
        return (Inheritance, (manifest.to_dict(), descriptor, parent))

    def __deepcopy__(self, memo: dict[int, Any]) -> Inheritance:
        return self


_absent: list[Failure] = []  # what this process was to inherit and could not be registered here
_warned: weakref.WeakSet[Hook] = weakref.WeakSet()


def not_inherited() -> list[Failure]:
    """What this process was to have from the one that started it and does not have: hooks that are not registered here,
    and those that could not be applied. Hooks whose target does not exist are *missed*, as in any process."""
    return [
        *_not_here(),
        *(Failure(name, name.function, why) for name, why in _undone(HookState.REVERTED)),
    ]


def _not_here() -> list[Failure]:
    """The hooks that this process was to have and that are not registered here."""
    if not _absent:
        return []
    here = {name_of(hook) for hook in registry.hooks()}
    return [failure for failure in _absent if failure.hook is not None and failure.hook not in here]


def setup_worker() -> None:
    """Apply the hooks in a worker that a launcher has started: see :func:`hookery.launchers.setup_worker`.

    Raises:
        HookError: a plugin that was asked for is not installed on this machine, or fails.
    """
    from hookery import launchers

    launchers.setup_worker()


def after_applying(applied: HookRegistry) -> None:
    """Called whenever hooks were applied: see that children get them, and that the parent process hears of those that
    could not be."""
    standing = [hook for hook in applied.hooks() if hook.state is not REVERTED]
    if not standing or not _propagates():
        return
    process = children.multiprocessing_process()
    if process is not None:
        _install(process)
    children.note_applied(standing)
    _report()


def _propagates() -> bool:
    return os.environ.get(PROPAGATE_VARIABLE) != "0"


def _registries() -> list[HookRegistry]:
    known = [registry, *watching.live]
    return list(dict.fromkeys([each for each in known if isinstance(each, HookRegistry)]))


def _install(process: types.ModuleType) -> None:
    config = getattr(process.current_process(), "_config", None)
    copies = getattr(process.BaseProcess.__init__, "__code__", None)
    if type(config) is not dict or copies is None or "_config" not in copies.co_names:
        _warn_of_version()
        return
    if type(config.get(_KEY)) is Inheritance:
        return
    config[_KEY] = Inheritance()
    # Those that were made before and are still to be started have copied the configuration already.
    for made in list(getattr(process, "_dangling", ())):
        if made._popen is None and not made._closed:
            made._config.setdefault(_KEY, config[_KEY])
    children.reports.descriptor()  # now, so that a fork has it too


_told_of_version: list[str] = []


def _warn_of_version() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    if version not in _told_of_version:
        _told_of_version.append(version)
        reporting.warn(
            [
                HookWarning(
                    f"in CPython {version} processes do not hand their configuration down as hookery knows it: child"
                    " processes of multiprocessing will not have the hooks unless they call hookery.load_plugins()"
                    f" themselves ({PROPAGATE_VARIABLE}=0 silences this)"
                )
            ],
            never_raise=True,
        )


def _warn_of_local_hooks() -> None:
    """Say which hooks a process that is being started will not have.

    Raises:
        HookError: there are some, and ``HOOKERY_STRICT`` is 1.
    """
    if not _propagates():
        return
    for owner in _registries():
        for hook in owner.hooks():
            why = owner.why_local(hook)
            if why is None:
                continue
            said = (
                f"child processes do not have the hook {hook.describe()}: {why}. Define it by name at the top level of"
                " a module that they can import, or register it in a plugin"
            )
            if os.environ.get(STRICT_VARIABLE) == "1":
                raise HookError(f"{said} ({STRICT_VARIABLE} is 1)")
            if hook not in _warned:
                _warned.add(hook)
                warnings.warn(said, HookWarning, stacklevel=_levels_to_the_program())


def _levels_to_the_program() -> int:
    """How far up the stack the program is that starts a process."""
    level, frame = 1, sys._getframe(1)
    machinery = ("hookery.", "multiprocessing.", "concurrent.futures.", "pickle")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(machinery):
        level, frame = level + 1, frame.f_back
    return level


def _make_parent_known(name: str, number: int) -> None:
    """Let ``multiprocessing.parent_process()`` answer while plugins are imported: those that start processes ask it
    whether they are in one. multiprocessing does this a moment later, when everything has arrived."""
    process: Any = children.multiprocessing_process()
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "multiprocessing.spawn":
        frame = frame.f_back
    sentinel = None if frame is None else frame.f_locals.get("parent_sentinel")
    if sentinel is not None and process.parent_process() is None:
        process._parent_process = process._ParentProcess(name, number, sentinel)


def _adopt_loading(loading: str | None) -> None:
    """Let this process be as much part of the loading of plugins as its parent is now: what a forkserver forks has the
    environment of the time when the server was started, which a plugin may have done."""
    if loading is None:
        os.environ.pop(LOADING_VARIABLE, None)
    else:
        os.environ[LOADING_VARIABLE] = loading


def _arrive(data: dict[str, Any], descriptor: int | None) -> None:
    """Put in place what the process that starts this one has.

    Raises:
        HookApplyError: some of it cannot be, and ``HOOKERY_STRICT`` is 1.
    """
    if descriptor is not None:
        children.reports.adopt(descriptor)
    try:
        failures = Manifest.from_dict(data).apply(registry)
    except ValueError as error:
        failures = [Failure(None, "the hooks of the parent process", str(error))]
        reporting.warn([HookWarning(f"{failures[0]}")], never_raise=True)
    _absent[:] = failures
    _report()
    if failures and os.environ.get(STRICT_VARIABLE) == "1":
        raise HookApplyError("; ".join(map(str, failures)))


def _undone(*states: HookState) -> list[tuple[HookName, str]]:
    return [
        (name_of(hook), hook.detail)
        for owner in _registries()
        for hook in owner.hooks()
        if hook.state in states and hook.detail
    ]


def _report() -> None:
    """Let the processes above this one know what is not in place here, if there is such a process."""
    process = children.multiprocessing_process()
    if process is None or (process.parent_process() is None and not _inheriting(process)):
        return
    failures = [(each.hook, each.why) for each in _not_here() if each.hook is not None]
    failures += _undone(HookState.MISSED, HookState.REVERTED)
    children.reports.write(process.current_process().name, failures)


def _inheriting(process: types.ModuleType) -> bool:
    """Whether this process is being prepared: it does not know its parent yet."""
    return bool(getattr(process.current_process(), "_inheriting", False))
