"""What is known here about the processes of multiprocessing below this one: which hooks they do not have, and why.

Nothing here imports multiprocessing: where the program has not imported it, there are no such processes.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hookery.hooks import Hook, HookState
from hookery.naming import HookName, name_of

PROPAGATE_VARIABLE = "HOOKERY_PROPAGATE"  # 0: they do not get the hooks of this process
STRICT_VARIABLE = "HOOKERY_STRICT"  # 1: a process without hooks that it should have is an error
LOADING_VARIABLE = "HOOKERY_RUN_LOADING"  # the process that is loading plugins; see hookery.running


class Reports:
    """A file without a name that the processes of a tree share: each appends what it could not put in place, all can
    read it, and it is gone with the last of them, however that ends."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._last: tuple[int, Sequence[tuple[HookName, str]]] | None = None

    def descriptor(self) -> int:
        """The open file; made when it is first needed."""
        if self._descriptor is None or not self._is_ours(self._descriptor):
            self._keep(_open_nameless())
        assert self._descriptor is not None
        return self._descriptor

    def adopt(self, descriptor: int) -> None:
        """Use the file that was inherited; programs that this process runs do not inherit it."""
        os.set_inheritable(descriptor, False)
        self._keep(descriptor)

    def write(self, process: str, failures: Sequence[tuple[HookName, str]]) -> None:
        """Say which hooks this process does not have: all of them, in place of what it said before."""
        if self._last == (os.getpid(), failures) or (not failures and self._last is None):
            return
        self._last = (os.getpid(), list(failures))
        import json  # which costs more than everything else here, and most processes have nothing to say

        entries = [[*name, why] for name, why in failures]
        line = json.JSONEncoder().encode({"pid": os.getpid(), "process": process, "failures": entries})
        os.write(self.descriptor(), line.encode() + b"\n")  # one write at the end of the file: it stays one line

    def read(self) -> dict[tuple[int, str], list[tuple[HookName, str]]]:
        """The last word of every other process that has said something, by its number and name."""
        if self._descriptor is None or not self._is_ours(self._descriptor):
            return {}
        text = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        if not text:
            return {}
        import json

        found: dict[tuple[int, str], list[tuple[HookName, str]]] = {}
        for line in text.decode().splitlines():
            said = json.JSONDecoder().decode(line)
            failures = [(HookName(*entry[:-1]), entry[-1]) for entry in said["failures"]]
            found[said["pid"], said["process"]] = failures
        return {process: failures for process, failures in found.items() if process[0] != os.getpid()}

    def _keep(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._descriptor, self._identity = descriptor, (status.st_dev, status.st_ino)

    def _is_ours(self, descriptor: int) -> bool:
        """Whether it is still that file: a program that closes all it has inherited may have opened another there."""
        try:
            status = os.fstat(descriptor)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity


def _open_nameless() -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("hookery")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
    return descriptor


reports = Reports()
_sent: weakref.WeakKeyDictionary[Any, frozenset[HookName]] = weakref.WeakKeyDictionary()
_missed_by: weakref.WeakKeyDictionary[Any, set[HookName]] = weakref.WeakKeyDictionary()


def multiprocessing_process() -> Any:
    """The module ``multiprocessing.process``, or ``None`` where the program has not imported it (to its end)."""
    module = sys.modules.get("multiprocessing.process")
    return module if hasattr(module, "_children") else None


def note_sent(popen: object, names: Iterable[HookName]) -> None:
    """A process is being started, and these hooks are sent to it."""
    _sent[popen] = frozenset(names)


def note_applied(hooks: Iterable[Hook]) -> None:
    """Hooks stand here now; the processes that run already do not have those that are new."""
    new = [hook for hook in hooks if not hook.handed_down]
    for hook in new:
        hook.handed_down = True
    if new:
        for child in _running():
            _missed_by.setdefault(child, set()).update(map(name_of, new))


def _running() -> list[Any]:
    """The child processes of this process that have not ended."""
    module = multiprocessing_process()
    if module is None:
        return []
    # A fork that multiprocessing has not made finds its parent's children there. Its active_children() would collect
    # those that have ended, and then another thread that is waiting for one would be told nothing of how it ended.
    return [child for child in module._children.copy() if child._parent_pid == os.getpid() and _has_not_ended(child)]


def _has_not_ended(child: Any) -> bool:
    popen = child._popen
    if popen is None or popen.returncode is not None:
        return False
    if popen.method == "forkserver":  # a child of the server's
        poll = select.poll()
        poll.register(popen.sentinel, select.POLLIN)
        return not poll.poll(0)
    try:
        return os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def absent(hooks: Iterable[Hook]) -> Mapping[HookName, tuple[str, ...]]:
    """The processes that do not have certain hooks: what to say about each, by hook. Those that ended are named where
    they have said so themselves."""
    if multiprocessing_process() is None:
        return {}
    running, reported = _running(), reports.read()
    if not running and not reported:
        return {}
    names = {name_of(hook) for hook in hooks if hook.submitted and hook.state is not HookState.REVERTED}
    found: dict[HookName, list[str]] = {}
    for child in running:
        sent = _sent.get(child._popen)
        lacks = _missed_by.get(child, set()) if sent is None else names - sent
        for name in lacks & names:
            found.setdefault(name, []).append(
                f"process {child.pid} ({child.name}): it was started before the hook came, and has it only if it loads"
                " the hooks itself"
            )
    for (pid, process), failures in reported.items():
        for name, why in failures:
            if name in names:
                found.setdefault(name, []).append(f"process {pid} ({process}): {why}")
    return {name: tuple(sorted(said)) for name, said in found.items()}
