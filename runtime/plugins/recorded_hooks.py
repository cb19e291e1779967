"""Hooks that sit in a step which is recorded or compiled, where a hook is not what it is elsewhere.

What a device replays is what hooks did on it at capture, without Python. Whoever lists hooks is told, because such a
hook looks alive and never runs again. A compiled step does what its hooks do, but what counts their calls would have it
compiled anew at each.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import hookery
from hookery import reporting
from hookery.explanation import source_of
from hookery.registry import observers

Place = tuple[str, int]
"""Where a function is written: file and first line."""


class Noticed:
    """What ran in a step.

    Attributes:
        hooks: the hooks that ran in it.
        places: the functions that ran in it; none where somebody profiles and traces this thread.
    """

    def __init__(self) -> None:
        self.hooks: list[hookery.Hook] = []
        self.places: set[Place] = set()


# How often each hook had run when the step began or was last gone on with; None while nobody wants to know.
_before: dict[hookery.Hook, int] | None = None
# What notes the places meanwhile, and what has it do so.
_note_place: Callable[[types.FrameType, str, object], None] | None = None
_watch: Callable[[Callable[[types.FrameType, str, object], None] | None], None] | None = None
# Who has recorded steps, with the functions in them, and the hooks that were looked at.
_recorded: weakref.WeakKeyDictionary[object, set[Place | None]] = weakref.WeakKeyDictionary()
_looked_at: weakref.WeakSet[hookery.Hook] = weakref.WeakSet()


class RecordedHookWarning(hookery.HookWarning):
    """A hook sits in a step that was recorded, and does not run when that is replayed."""


@contextmanager
def noticed() -> Iterator[Noticed]:
    """A context in which a step runs as it is written, and that tells what has run in it, but for what ran only where
    it is `left`.

    Needs counting (`hookery.registry.counting`), which every process of the runtime has switched on.
    """
    global _before, _note_place, _watch
    found = Noticed()

    def note(frame: types.FrameType, event: str, _: object) -> None:
        # A nested function is many, by one place: each generator that was made a context manager, for one.
        if event == "call" and not frame.f_code.co_flags & inspect.CO_NESTED:
            found.places.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    _before = _calls()
    _note_place, _watch = note, _free_watch()
    if _watch is not None:
        _watch(note)
    try:
        yield found
        found.hooks += _ran()
        found.hooks += (hook for hook in _applied() if not hook.counted and _ran_in(hook, found.places))
    finally:
        if _watch is not None:
            _watch(None)
        _before = _note_place = _watch = None


def _free_watch() -> Callable[[Callable[[types.FrameType, str, object], None] | None], None] | None:
    """What tells of the calls in this thread and is not in use: there is one profiler and one tracer in a thread, and
    one that is written in C cannot be put back before CPython 3.12."""
    if sys.getprofile() is None:
        return sys.setprofile
    return sys.settrace if sys.gettrace() is None else None


@contextmanager
def left() -> Iterator[None]:
    """A context in which what runs is no part of the step that is recorded or compiled."""
    global _before
    if _before is None:
        yield
        return
    inside = _ran()
    if _watch is not None:
        _watch(None)
    try:
        yield
    finally:
        if _watch is not None:
            _watch(_note_place)
        # What has run in the step so far must still show at its end.
        _before = {hook: calls - (hook in inside) for hook, calls in _calls().items()}


def were_recorded(found: Noticed, recorder: object) -> None:
    """`recorder`, a graph runner, has recorded a step: warn of the hooks in it, and of those that come to be applied on
    a function in it later, and let every listing of the process's hooks say so, `hookery ps --json` and
    `hookery list --process` included."""
    name = type(recorder).__qualname__
    what = f"is in a step that {name} has recorded: it ran at capture and does not run at replay"
    reporting.warn([warning for hook in found.hooks for warning in _note(hook, what)])
    if _look_at_new_hooks not in observers:
        observers.append(_look_at_new_hooks)
    _recorded.setdefault(recorder, set()).update(found.places)
    _looked_at.update(_applied())


def _look_at_new_hooks(registry: hookery.HookRegistry) -> None:
    if registry is not hookery.registry:
        return
    for hook in _applied():
        if hook not in _looked_at:
            _looked_at.add(hook)
            place = _place_of(hook.target)
            for recorder in [recorder for recorder, places in _recorded.items() if place in places]:
                name = type(recorder).__qualname__
                what = f"is on part of a step that {name} recorded before: it does not run at replay"
                # Whoever imports something, by which a hook comes to be applied, must not fail.
                reporting.warn(_note(hook, what), never_raise=True)


def _place_of(target: str) -> Place | None:
    """Where the function is written that a target's name leads to, under the hooks; None if it is no such thing."""
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return None
    return _written_at(found.fget if isinstance(found, property) else found)


def _written_at(function: object) -> Place | None:
    file, line = source_of(inspect.unwrap(function)) if callable(function) else (None, None)
    return None if file is None or line is None else (file, line)


def _ran_in(hook: hookery.Hook, places: set[Place]) -> bool:
    """Whether a hook whose calls are not counted ran in a step, as far as the functions that did can tell: a REPLACE or
    AROUND hook may have kept its target from running."""
    if _place_of(hook.target) in places:
        return True
    instead = hook.type in (hookery.HookType.REPLACE, hookery.HookType.AROUND)
    return instead and _written_at(hook.function) in places


def _note(hook: hookery.Hook, what: str) -> list[RecordedHookWarning]:
    """Let listings say so; what is to be warned of, unless they said so before."""
    note = f"{what}; hook what runs at every step, or switch the graph runner off"
    if note in hook.notes:
        return []
    hookery.add_note(hook, note)
    return [RecordedHookWarning(f"{hook.function_name} on {hook.target} {note}")]


def will_be_compiled(found: Noticed, compiler: str) -> None:
    """`compiler` is to compile a step: count calls of the hooks in it no more, which would have it compiled anew at
    each, and let every listing say so."""
    for hook in found.hooks:
        if hook.counted:
            hookery.set_counted(hook, False)
            hookery.add_note(hook, f"is in a step that {compiler} has compiled: its calls are not counted")


def _ran() -> list[hookery.Hook]:
    before = _before or {}
    return [hook for hook, calls in _calls().items() if calls > before.get(hook, 0)]


def _applied() -> list[hookery.Hook]:
    return [hook for hook in hookery.registry.hooks() if hook.state is hookery.HookState.APPLIED]


def _calls() -> dict[hookery.Hook, int]:
    return {hook: hook.calls for hook in hookery.registry.hooks()}
