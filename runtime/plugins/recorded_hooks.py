"""Hooks that were recorded: they ran when a step was captured, and a replay of the step runs none of them.

What a device replays is what hooks did on it at capture, without Python. Whoever lists hooks is told, because such a
hook looks alive and never runs again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import hookery


class RecordedHookWarning(UserWarning):
    """A hook sits in a step that was recorded, and does not run when that is replayed."""


@contextmanager
def watched(recorder: str) -> Iterator[None]:
    """A context in which a step is recorded by `recorder`. Hooks that run in it are warned about, and every listing of
    the process's hooks says so of them, `hookery ps` and `hookery list --process` included.

    Needs counting (`hookery.registry.counting`), which every process of the runtime has switched on.
    """
    before = _calls()
    yield
    inside = [hook for hook, calls in _calls().items() if calls > before.get(hook, 0)]
    note = (
        f"is in a step that {recorder} has recorded: it ran at capture and does not run at replay; hook what runs at"
        " every step, or switch the graph runner off"
    )
    for hook in inside:
        if note not in hook.notes:
            hookery.registry.add_note(hook, note)
            warnings.warn(f"{hook.function_name} on {hook.target} {note}", RecordedHookWarning, stacklevel=3)


def _calls() -> dict[hookery.Hook, int]:
    return {hook: hook.calls for hook in hookery.registry.hooks()}
