"""Hooks that were recorded: they ran when a step was captured, and a replay of the step runs none of them.

What a device replays is what hooks did on it at capture, without Python. Whoever lists hooks is told, because such a
hook looks alive and never runs again.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hookery

_recorded: dict[tuple[str, str], str] = {}
# How often each hook had run when the recording began or was last gone on with; None while nothing is recorded.
_before: dict[tuple[str, str], int] | None = None


class RecordedHookWarning(UserWarning):
    """A hook sits in a step that was recorded, and does not run when that is replayed."""


@contextmanager
def watched(recorder: str) -> Iterator[None]:
    """A context in which a step is recorded by `recorder`; hooks that run in it are warned about and remembered.

    Needs counting (`hookery.registry.counting`), which every process of the runtime has switched on.
    """
    global _before
    _before = _calls()
    try:
        yield
        inside = _ran()
    finally:
        _before = None
    for target, hook in inside:
        _recorded[target, hook] = recorder
        warnings.warn(f"{hook} on {target} {_explanation(recorder)}", RecordedHookWarning, stacklevel=3)


@contextmanager
def left() -> Iterator[None]:
    """A context in which the recording is left: hooks that run in it alone run at each replay too."""
    global _before
    if _before is None:
        yield
        return
    inside = _ran()
    try:
        yield
    finally:
        # What has run in the recording so far must still show at its end.
        _before = {key: calls - (key in inside) for key, calls in _calls().items()}


def annotated(records: Sequence[hookery.HookRecord]) -> list[hookery.HookRecord]:
    """`records`, those of hooks that were recorded saying so in their detail."""
    return [
        dataclasses.replace(record, detail="; ".join(filter(None, (record.detail, _explanation(recorder)))))
        if (recorder := _recorded.get((record.target, record.hook))) is not None
        else record
        for record in records
    ]


def _ran() -> set[tuple[str, str]]:
    """The hooks that have run in the recording, and were not known to."""
    before = _before or {}
    return {key for key, calls in _calls().items() if calls > before.get(key, 0) and key not in _recorded}


def _calls() -> dict[tuple[str, str], int]:
    return {(record.target, record.hook): record.calls or 0 for record in hookery.applied_hooks()}


def _explanation(recorder: str) -> str:
    return (
        f"is in a step that {recorder} has recorded: it ran at capture and does not run at replay; hook what runs at"
        " every step, or switch the graph runner off"
    )
