"""A process says which hooks it has, where other processes of its user can read it: see :mod:`hookery.state_files`.

What changes rarely (which hooks are applied, pending or missed) is written when it changes. Whether each hook ran,
how often, and who is not reached is written when the process ends, when it calls :func:`publish`, and when it is sent
the signal that ``HOOKERY_SIGNAL`` names, if the user has named one: nothing is added to a call, and there is no
thread.

The signal interrupts a system call that waits; Python itself then waits on, C libraries may not be written for that.
It is handled only where that disturbs nobody: in the main thread, and if the program has no handler for it at that
time. A program that installs one of its own later is then not asked any more.

A process that cannot write warns once and goes on. ``HOOKERY_PUBLISH=0`` turns all of it off.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import sys
import threading
import time
import types
from contextlib import suppress
from json.encoder import JSONEncoder
from typing import Any, Protocol

from hookery import command_lines, patches, state_files
from hookery.hooks import Hook, HookError, HookState, HookWarning
from hookery.listing import Said, stand_ins_on_main
from hookery.locking import ForkSafeLock
from hookery.reporting import warn

SWITCH_VARIABLE = "HOOKERY_PUBLISH"
SIGNAL_VARIABLE = "HOOKERY_SIGNAL"
# A file that has grown to that is written anew, with what is so now and without its history.
REWRITE_BYTES = 1 << 20
PRUNE_EVERY = 64


class Registry(Protocol):
    """What is published of: the process's registry."""

    def hooks(self) -> list[Hook]: ...

    def said(self, *, unreached: bool = False) -> Said: ...

    def why_local(self, hook: Hook) -> str | None: ...


class _State:
    """What this process has published."""

    def __init__(self) -> None:
        self.registry: Registry | None = None
        self.identity: state_files.Identity | None = None
        self.role: str | None = None  # as the program calls itself
        self.role_said = ""
        self.said: dict[int, tuple[Any, ...]] = {}
        self.failed = os.environ.get(SWITCH_VARIABLE) == "0"
        self.asked_meanwhile = False
        self.signal: int | None = None
        self.ended = False
        self.prepared_for_ending = False
        self.prepared_for_multiprocessing = False


_lock = ForkSafeLock()
_state = _State()
_counter = itertools.count()
_encode = JSONEncoder().encode  # json.dumps may be hooked, and must not be seen to run because of this


def publish(registry: Registry, *, role: str | None = None, unreached: bool = True) -> None:
    """Write everything now: where each hook stands, whether it ran and how often.

    Args:
        role: what the process is to be called from now on; before that it is called by its script or its name in
            :mod:`multiprocessing`.
        unreached: look for those who are not reached too, which takes tens of milliseconds.
    """
    with _lock:
        _state.registry = registry
        if role is not None:
            _state.role = role
        _write(unreached=unreached)
    _answer()


def changed(registry: Registry) -> None:
    """Write what has changed. Must be called without the lock of the patches."""
    if _state.failed or _state.ended:
        return
    with _lock:
        _state.registry = registry
        if _state.identity is None:
            if any(hook.state is not HookState.REVERTED for hook in registry.hooks()):
                _write()
        else:
            _write_changes()
    _answer()


def turn_off() -> None:
    """Let this process publish nothing: it only looks at others."""
    _state.failed = True


def _answer() -> None:
    """Somebody asked while the lock was held."""
    while _state.asked_meanwhile and _lock.acquire(blocking=False):
        _state.asked_meanwhile = False
        try:
            _write(unreached=True)
        finally:
            _lock.release()


def _write(*, unreached: bool = False, ended: bool = False) -> None:
    """Write the whole file."""
    if _state.failed or _state.registry is None:
        return
    if not _state.prepared_for_ending:
        _prepare_for_ending()
    try:
        identity = state_files.identity_of()
        assert identity is not None
        _state.identity = identity
        with patches.lock:
            hooks = _state.registry.hooks()
            _state.said = _said_of_all(hooks, stand_ins_on_main(hooks))
            records = _state.registry.said(unreached=unreached).groups
        _state.role_said = _role()
        now = time.time()
        head = {
            "format": state_files.FORMAT,
            "pid": identity.pid,
            "start": identity.start,
            "parent": os.getppid(),
            "stack": identity.stack,
            "role": _state.role_said,
            "command": sys.orig_argv,
            "python": ".".join(map(str, sys.version_info[:3])),
            "signal": _state.signal,
            "published_at": now,
            "ended_at": now if ended else None,
            "records": records,
        }
        with state_files.opened_folder(create=True) as directory:
            name = identity.ended_file_name if ended else identity.file_name
            # A process that has ended is not there to say it again.
            state_files.write(directory, name, _encode(head) + "\n", _scratch_name(identity), in_place=not ended)
            if ended:
                with suppress(FileNotFoundError):
                    os.unlink(identity.file_name, dir_fd=directory)
            elif identity.pid % PRUNE_EVERY == 0:
                state_files.remove_litter(directory, os.listdir(directory))
    except (OSError, HookError) as error:
        _fail(error)


def _write_changes() -> None:
    """Add to the file the hooks that are not as it says."""
    assert _state.registry is not None
    assert _state.identity is not None
    with patches.lock:
        changed, overrides = Said(), patches.all_overrides()
        hooks = _state.registry.hooks()
        known_as = stand_ins_on_main(hooks)
        said = _said_of_all(hooks, known_as)
        for hook in hooks:
            if hook.order in said and _state.said.get(hook.order) != said[hook.order]:
                local = _state.registry.why_local(hook)
                changed.add(hook, known_as.get(hook), overrides.get(hook, ()), None, local)
        gone = [order for order in _state.said if order not in said]
        _state.said = said
    if _role() != _state.role_said:
        _write()
        return
    if not changed.groups and not gone:
        return
    change = {"published_at": time.time(), "records": changed.groups, "gone": gone}
    try:
        with state_files.opened_folder() as directory:
            size = state_files.append(directory, _state.identity.file_name, _encode(change) + "\n")
    except FileNotFoundError:  # somebody has cleaned up
        size = REWRITE_BYTES
    except (OSError, HookError) as error:
        _fail(error)
        return
    if size >= REWRITE_BYTES:
        _write()


def _said_of_all(hooks: list[Hook], known_as: dict[Hook, Hook]) -> dict[int, tuple[Any, ...]]:
    """What of each hook that is listed, when it changes, makes it worth to be written again; by its order."""
    not_shown = set(known_as.values())
    return {
        hook.order: (hook.state, hook.detail, hook.engine, hook.function, hook.source, hook.notes, hook in known_as)
        for hook in hooks
        if hook not in not_shown
    }


def _scratch_name(identity: state_files.Identity) -> str:
    return f"{identity.file_name.removesuffix('.jsonl')}.{next(_counter)}.tmp"


def _role() -> str:
    if _state.role is not None:
        return _state.role
    process = sys.modules.get("multiprocessing.process")
    name = process.current_process().name if process is not None else "MainProcess"
    if name != "MainProcess":
        return str(name)
    rank = f" rank {os.environ['RANK']}" if "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ else ""
    return command_lines.short_name(sys.orig_argv) + rank


def _fail(error: Exception) -> None:
    _state.failed = True
    _note(
        f"this process cannot publish its hooks, and `hookery ps` will not list it: {error}"
        f" ({SWITCH_VARIABLE}=0 turns publishing off)"
    )


def _note(message: str) -> None:
    """Warn, but let no apply, import or fork fail of this."""
    warn([HookWarning(message)], never_raise=True)


def _prepare_for_ending() -> None:
    _state.prepared_for_ending = True
    atexit.register(_end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_prepare_for_multiprocessing, after_in_child=_after_fork_in_child)
    _prepare_for_multiprocessing()
    _listen()


def _end() -> None:
    with _lock:
        if not _state.ended and _state.identity is not None and _state.identity.pid == os.getpid():
            _state.ended = True
            _write(ended=True)


def _prepare_for_multiprocessing() -> None:
    """Children that multiprocessing forks do not run the functions of atexit, only its own finalizers."""
    util = sys.modules.get("multiprocessing.util")
    if util is None or _state.prepared_for_multiprocessing:
        return
    _state.prepared_for_multiprocessing = True

    def end_with_its_finalizers(_: object = None) -> None:
        util.Finalize(None, _end, exitpriority=-100)

    util.register_after_fork(_state, end_with_its_finalizers)  # a child has none at first
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        end_with_its_finalizers()  # this is one, and runs already


def _after_fork_in_child() -> None:
    with _lock:
        _state.asked_meanwhile = False
        if _state.identity is not None:
            _write()


def _listen() -> None:
    """Answer the signal that the user has named, if he has and it is free.

    That several threads or programs compete for a signal is why none is used by default.
    """
    name = os.environ.get(SIGNAL_VARIABLE)
    if not name:
        return
    from hookery import held  # noqa: F401  (before it is needed, which may be at any point of the program)

    number = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
    if not isinstance(number, signal.Signals):
        _note(f"{SIGNAL_VARIABLE} is {name!r}, which is not the name of a signal, such as SIGUSR2")
    elif threading.current_thread() is not threading.main_thread():
        _note(f"{name} is not answered: the first hooks were not applied in the main thread")
    elif signal.getsignal(number) is not signal.SIG_DFL:
        _note(f"{name} is not answered: the program has a handler for it ({signal.getsignal(number)!r})")
    else:
        try:
            signal.signal(number, _on_signal)
        except OSError as error:  # SIGKILL and SIGSTOP cannot be
            _note(f"{name} cannot be answered: {error.strerror}; name another signal, such as SIGUSR2")
        else:
            _state.signal = int(number)


def _on_signal(number: int, frame: types.FrameType | None) -> None:
    """Runs between any two instructions of the main thread, so it does not wait for another thread that publishes."""
    _state.asked_meanwhile = True
    if _lock._is_owned():  # whoever is interrupted in its work answers when it is done
        return
    try:
        _answer()
    except Exception as error:  # noqa: BLE001  (the program must not get an error for having been asked)
        _note(f"this process could not say which hooks it has: {type(error).__name__}: {error}")
