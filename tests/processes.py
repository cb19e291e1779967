"""Looking at other processes, for tests in which processes are the subject."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

DEADLINE_SECONDS = 5.0


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def children_of(pid: int) -> set[int]:
    """The running processes whose parent is `pid`, apart from multiprocessing's own resource tracker."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text()
            command = (entry / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent = int(status.rpartition(")")[2].split()[1])
        if parent == pid and is_running(int(entry.name)) and "resource_tracker" not in command:
            found.add(int(entry.name))
    return found


def wait_until_gone(pids: Iterable[int], seconds: float = DEADLINE_SECONDS) -> None:
    """Return when none of the processes runs any more.

    Raises:
        AssertionError: one of them still runs after `seconds`.
    """
    deadline = time.monotonic() + seconds
    waiting = set(pids)
    while waiting := {pid for pid in waiting if is_running(pid)}:
        assert time.monotonic() < deadline, f"still running after {seconds} s: {sorted(waiting)}"
        time.sleep(0.02)
