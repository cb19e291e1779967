"""Hooks that sit in a step which is recorded or compiled, where a hook is not what it is elsewhere.

What a device replays is what hooks did on it at capture, without Python. Whoever lists hooks is told, because such a
hook looks alive and never runs again. A compiled step does what its hooks do, but what counts their calls would have it
compiled anew at each, and a hook that comes later it need not notice.
"""

from __future__ import annotations

import weakref

import hookery
from hookery import reporting
from hookery.registry import observers
from runtime.plugins.noticing import Known, Noticed, applied_hooks

_ADVICE = "hook what runs at every step, or switch the graph runner off"


class _Steps:
    """What is known of the steps that one runner has recorded or compiled.

    Attributes:
        found: what ran in them.
        late: what is to be said of a hook that comes to be applied in them now.
    """

    def __init__(self) -> None:
        self.found = Noticed()
        self.late = ""


# Who has recorded or compiled steps, and the hooks that were looked at.
_steps: weakref.WeakKeyDictionary[object, _Steps] = weakref.WeakKeyDictionary()
_looked_at: weakref.WeakSet[hookery.Hook] = weakref.WeakSet()


class RecordedHookWarning(hookery.HookWarning):
    """A hook sits in a step that was recorded or compiled, and does not run there."""


def were_recorded(found: Noticed, recorder: object) -> None:
    """`recorder`, a graph runner, has recorded a step: warn of the hooks in it, and of those that come to be applied on
    a function in it later, and let every listing of the process's hooks say so, `hookery ps --json` and
    `hookery list --process` included."""
    name = type(recorder).__qualname__
    what = f"a step that {name} has recorded: it ran at capture and does not run at replay; {_ADVICE}"
    reporting.warn([warning for hook, sure in found.hooks.items() for warning in _note(hook, "is in", what, sure)])
    late = f"part of a step that {name} recorded before: it does not run at replay; {_ADVICE}"
    _watch_for_hooks(found, recorder, late)


def will_be_compiled(found: Noticed, compiler: object) -> None:
    """`compiler`, a graph runner, is to compile a step: count calls of the hooks in it no more, which would have it
    compiled anew at each, and let every listing say so; warn of hooks that come to be applied on a function in it
    later, which a compiler need not notice."""
    name = type(compiler).__qualname__
    for hook in found.hooks:
        if hook.counted:
            hookery.set_counted(hook, False)
            hookery.add_note(hook, f"is in a step that {name} has compiled: its calls are not counted")
    late = f"part of a step that {name} compiled before: it need not run there; apply it before the engine starts"
    _watch_for_hooks(found, compiler, late)


def _watch_for_hooks(found: Noticed, runner: object, late: str) -> None:
    if _look_at_new_hooks not in observers:
        observers.append(_look_at_new_hooks)
    steps = _steps.setdefault(runner, _Steps())
    steps.found.add(found)
    steps.late = late
    _looked_at.update(applied_hooks())


def _look_at_new_hooks(_: hookery.HookRegistry) -> None:
    for hook in applied_hooks():
        if hook in _looked_at:
            continue
        _looked_at.add(hook)
        for steps in list(_steps.values()):
            there: Known = steps.found.has_target_of(hook)
            if there is not False:
                # Whoever imports something, by which a hook comes to be applied, must not fail.
                reporting.warn(_note(hook, "is on", steps.late, there is True), never_raise=True)


def _note(hook: hookery.Hook, is_there: str, what: str, sure: bool) -> list[RecordedHookWarning]:
    """Let listings say so; what is to be warned of, unless they said so before."""
    note = (
        f"{is_there} {what}" if sure else f"may be {is_there.removeprefix('is ')} {what}; whether it is cannot be seen"
    )
    if note in hook.notes:
        return []
    hookery.add_note(hook, note)
    return [RecordedHookWarning(f"{hook.function_name} on {hook.target} {note}")]
