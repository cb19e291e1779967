"""Asking processes that listen to a signal (``HOOKERY_SIGNAL``) what they would otherwise say only when they end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

from hookery.state_files import PublishedProcess, identity_of, read_processes

_BETWEEN_LOOKS_SECONDS = 0.01


def ask(processes: Iterable[PublishedProcess], *, seconds: float = 2.0) -> set[int]:
    """Ask those that listen and wait until they have answered. Returns who has not: a process that is in a long call of
    C answers when that returns.

    Raises:
        StateFolderError, OSError: as :func:`read_processes`.
    """
    waiting = {process.pid: process.asked_at for process in processes if _signal(process)}
    deadline = time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        time.sleep(_BETWEEN_LOOKS_SECONDS)
        now = {process.pid: process.asked_at for process in read_processes()[0]}
        waiting = {pid: before for pid, before in waiting.items() if pid in now and now[pid] <= before}
    return set(waiting)


def _signal(process: PublishedProcess) -> bool:
    """Send the signal, if the process still is the one that said so and still has a handler: without, it would end."""
    if process.signal is None or process.ended_at is not None:
        return False
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        identity = identity_of(process.pid)  # looked at after opening: that is the process which is signalled
        if identity is None or identity.start != process.start or not _catches(process.pid, process.signal):
            return False
        signal.pidfd_send_signal(descriptor, process.signal)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _catches(pid: int, number: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        caught = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)
