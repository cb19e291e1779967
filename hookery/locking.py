"""The lock of the process-wide table of patches, which a fork survives."""

from __future__ import annotations

import os
import threading
from types import TracebackType

FORK_WAITS = 1.0
"""Seconds that a fork waits for another thread that is changing the table, so that the child finds it whole. That
thread may itself be waiting for the one that forks, so not for ever."""


class ForkSafeLock:
    """A re-entrant lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held_for_fork = threading.local()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._after_fork_in_parent,
                after_in_child=self._after_fork_in_child,
            )

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As `threading.RLock.acquire`."""
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """As `threading.RLock.release`."""
        self._lock.release()

    def _is_owned(self) -> bool:
        """As `threading.RLock`, for whoever waits on a condition."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined,unused-ignore]

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _before_fork(self) -> None:
        self._held_for_fork.yes = self._lock.acquire(timeout=FORK_WAITS)

    def _after_fork_in_parent(self) -> None:
        if self._held_for_fork.yes:
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        if self._held_for_fork.yes:
            self._lock.release()
        else:
            self._lock = threading.RLock()  # whoever held the other one does not exist here


lock = ForkSafeLock()
importing = ForkSafeLock()
"""Held while what is hookery's own is imported for the first time in the middle of a program: a child that is forked in
the middle of an import could never import that module."""
