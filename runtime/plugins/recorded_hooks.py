"""Hooks that sit in a step which is recorded or compiled, where a hook is not what it is elsewhere.

What a device replays is what hooks did on it at capture, without Python. Whoever lists hooks is told, because such a
hook looks alive and never runs again. A compiled step does what its hooks do, but what counts their calls would have it
compiled anew at each.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hookery

# How often each hook had run when the step began or was last gone on with; None while nobody wants to know.
_before: dict[hookery.Hook, int] | None = None


class RecordedHookWarning(UserWarning):
    """A hook sits in a step that was recorded, and does not run when that is replayed."""


@contextmanager
def noticed() -> Iterator[list[hookery.Hook]]:
    """A context in which a step runs as it is written; the list then has the hooks that have run in it, but for those
    that ran only where it is `left`.

    Needs counting (`hookery.registry.counting`), which every process of the runtime has switched on.
    """
    global _before
    inside: list[hookery.Hook] = []
    _before = _calls()
    try:
        yield inside
        inside += _ran()
    finally:
        _before = None


@contextmanager
def left() -> Iterator[None]:
    """A context in which what runs is no part of the step that is recorded or compiled."""
    global _before
    if _before is None:
        yield
        return
    inside = _ran()
    try:
        yield
    finally:
        # What has run in the step so far must still show at its end.
        _before = {hook: calls - (hook in inside) for hook, calls in _calls().items()}


def were_recorded(hooks: Sequence[hookery.Hook], recorder: str) -> None:
    """`recorder` has recorded a step with `hooks` in it: warn of them, and let every listing of the process's hooks say
    so, `hookery ps --json` and `hookery list --process` included."""
    note = (
        f"is in a step that {recorder} has recorded: it ran at capture and does not run at replay; hook what runs at"
        " every step, or switch the graph runner off"
    )
    for hook in hooks:
        if note not in hook.notes:
            hookery.add_note(hook, note)
            warnings.warn(f"{hook.function_name} on {hook.target} {note}", RecordedHookWarning, stacklevel=3)


def will_be_compiled(hooks: Sequence[hookery.Hook], compiler: str) -> None:
    """`compiler` is to compile a step with `hooks` in it: count their calls no more, which would have it compiled anew
    at each, and let every listing say so."""
    for hook in hooks:
        if hook.counted:
            hookery.set_counted(hook, False)
            hookery.add_note(hook, f"is in a step that {compiler} has compiled: its calls are not counted")


def _ran() -> list[hookery.Hook]:
    before = _before or {}
    return [hook for hook, calls in _calls().items() if calls > before.get(hook, 0)]


def _calls() -> dict[hookery.Hook, int]:
    return {hook: hook.calls for hook in hookery.registry.hooks()}
