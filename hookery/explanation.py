"""What stands at one target and why, and what of the hooks is not as it was asked for: records, and their text."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hookery import children, engines, patch_table, patches, raw
from hookery import held as held  # needed by the patches while the lock is held
from hookery.chain import replacement_order
from hookery.holders import CachedFunction
from hookery.hooks import Hook, HookError, HookState, HookType
from hookery.listing import stand_ins_on_main
from hookery.naming import name_of
from hookery.patch_table import Patch
from hookery.targets import Pending, Target, resolve


@dataclass(frozen=True)
class ExplainedHook:
    """One hook of a target. ``file`` and ``line`` say where its code is, as far as it has any in Python."""

    hook: str
    type: str
    source: str
    priority: int
    state: str
    detail: str
    reason: str | None
    ran: bool
    calls: int | None
    last_error: str | None
    notes: tuple[str, ...]
    file: str | None
    line: int | None

    @classmethod
    def of(cls, hook: Hook) -> ExplainedHook:
        file, line = source_of(hook.function)
        return cls(
            hook=hook.function_name,
            type=hook.type.value,
            source=str(hook.source),
            priority=hook.priority,
            state=hook.state.value,
            detail=hook.detail,
            reason=hook.reason,
            ran=hook.ran,
            calls=hook.calls if hook.counted else None,
            last_error=getattr(hook, "last_error", None),
            notes=hook.notes,
            file=file,
            line=line,
        )

    def __str__(self) -> str:
        ran = f"called {self.calls} times" if self.calls is not None else "has run" if self.ran else "has not run"
        text = f"{self.type.upper()} {self.hook}, of {self.source}, priority {self.priority}, {ran}"
        if self.state != HookState.APPLIED.value:
            text += f"; {self.state}: {self.detail}" if self.detail else f"; {self.state}"
        if self.last_error is not None:
            text += f"; last error: {self.last_error}"
        if self.reason is not None:
            text += f"; because: {self.reason}"
        text += "".join(f"; {note}" for note in self.notes)
        return text + _at(self.file, self.line)


@dataclass(frozen=True)
class Explanation:
    """What a target's name leads to and what a call of it runs. ``str()`` is a text for a person.

    ``state`` is ``hooked``, ``not hooked``, ``pending`` or ``missed``, and ``detail`` says what a pending target waits
    for or which names are near a missed one. ``chain`` is in the order of the call, the outermost hook first; a REPLACE
    is its last and the original is not called then. ``other_hooks`` were asked for and are not part of it. ``rebound``
    are the holders that were given the stand-in, ``unreached`` those that hold the original, each with the reason if
    there is one, and ``overridden_by`` the overrides in subclasses that none of the hooks is on.
    """

    target: str
    state: str
    detail: str
    resolves_to: str | None
    kind: str | None
    inherited: bool
    file: str | None
    line: int | None
    engine: str | None
    engine_reason: str | None
    chain: tuple[ExplainedHook, ...]
    other_hooks: tuple[ExplainedHook, ...]
    rebound: tuple[str, ...]
    unreached: tuple[str, ...]
    overridden_by: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        head = f"{self.target} is {self.state}"
        lines = [f"{head}: {self.detail}" if self.detail else head]
        if self.resolves_to is not None:
            kind = f"inherited {self.kind}" if self.inherited else self.kind
            lines.append(f"  it is the {kind} {self.resolves_to}{_at(self.file, self.line)}")
        if self.engine is not None:
            why = f": {self.engine_reason}" if self.engine_reason else ""
            lines.append(f"  engine: {self.engine}{why}")
        if self.chain:
            lines.append("  a call runs, from the outside in:")
            lines.extend(f"    {number}. {hook}" for number, hook in enumerate(self.chain, 1))
            if self.chain[-1].type != HookType.REPLACE.value:
                lines.append(f"    {len(self.chain) + 1}. the original")
        for title, entries in (
            ("hooks that are not part of it", self.other_hooks),
            ("given the stand-in", self.rebound),
            ("not reached, they call past the hooks", self.unreached),
            ("overridden, without these hooks", self.overridden_by),
        ):
            if entries:
                lines.append(f"  {title}:")
                lines.extend(f"    {entry}" for entry in entries)
        return "\n".join(lines)


@dataclass(frozen=True)
class Problem:
    """Something about a hook that is not as it was asked for.

    ``kind`` is ``missed``, ``skipped``, ``pending``, ``undone`` (its source failed), ``displaced`` (somebody has put
    something else at the target's name), ``unreached``, ``overridden`` or ``absent`` (from a child process, which the
    detail names). ``waits_for`` is the module that a pending hook waits for.
    """

    target: str
    hook: str
    kind: str
    detail: str
    waits_for: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.target}: {self.hook} is {self.kind}: {self.detail}"


def explain(target: str, hooks: Iterable[Hook]) -> Explanation:
    """Explain ``target``; ``hooks`` are all that were asked for on it, under whatever name. Imports nothing.

    Expects :data:`hookery.patches.lock` to be held.
    """
    asked = list(hooks)
    found: Target | Pending | None = None
    state, detail = "missed", ""
    try:
        found = resolve(target)
    except (HookError, TypeError) as error:
        detail = str(error)
    if isinstance(found, Pending):
        state, detail = "pending", found.why
    patch = patch_table.find(found) if isinstance(found, Target) else None
    if patch is None:  # the name may lead to what somebody has put over a patch
        patch = next(
            (on for hook in asked for on in patch_table.patches_of(hook) if on.target.name == hook.place), None
        )
    if isinstance(found, Target):
        state = "hooked" if patch is not None else "not hooked"
    if patch is None:
        file, line = source_of(found.raw) if isinstance(found, Target) else (None, None)
        return Explanation(
            target=target,
            state=state,
            detail=detail,
            resolves_to=found.name if isinstance(found, Target) else None,
            kind=found.kind.value if isinstance(found, Target) else None,
            inherited=isinstance(found, Target) and found.inherited,
            file=file,
            line=line,
            engine=None,
            engine_reason=None,
            chain=(),
            other_hooks=tuple(map(ExplainedHook.of, asked)),
            rebound=(),
            unreached=(),
            overridden_by=(),
        )
    asked += [hook for hook in patch.hooks if hook not in asked]
    file, line = source_of(patch.original)
    chain = in_call_order(patch)
    return Explanation(
        target=target,
        state=state,
        detail=displaced(patch) or detail,
        resolves_to=patch.target.name,
        kind=patch.target.kind.value,
        inherited=patch.target.inherited,
        file=file,
        line=line,
        engine=patch.engine,
        engine_reason=getattr(patch, "engine_reason", None),
        chain=tuple(map(ExplainedHook.of, chain)),
        other_hooks=tuple(ExplainedHook.of(hook) for hook in asked if hook not in chain),
        rebound=tuple(holder.address for holder in patch.holders if holder.holds(patch.stand_in)),
        unreached=tuple(map(_with_reason, patches.unreached([patch])[patch])) if not patch.superseded else (),
        overridden_by=_overridden_by_all(chain),
    )


def in_call_order(patch: Patch) -> list[Hook]:
    """The hooks that a call runs, the outermost first: the winning REPLACE is the last of them."""
    active = [hook for hook in patch.hooks if hook.state is HookState.APPLIED]
    wrapping = [hook for hook in active if hook.type is not HookType.REPLACE]
    replacing = [hook for hook in active if hook.type is HookType.REPLACE]
    return [*sorted(wrapping, key=replacement_order, reverse=True), *replacing]


def displaced(patch: Patch) -> str:
    """What is to be said where something else than the stand-in stands at the target's own name."""
    expected = patch.original if patch.stand_in is None else patch.stand_in
    if patch.superseded or patch.standing is expected:
        return ""
    return f"somebody has put a {type(patch.standing).__name__} over the hooks"


def problems(hooks: Sequence[Hook]) -> list[Problem]:
    """Everything about ``hooks`` that is not as it was asked for. Expects the lock to be held."""
    on_main = set(stand_ins_on_main(hooks).values())
    hooks = [hook for hook in hooks if hook not in on_main]
    on = {hook: patch_table.patches_of(hook) for hook in hooks}
    unreached = patches.unreached(dict.fromkeys(patch for hooked in on.values() for patch in hooked))
    absent = children.absent(hooks)
    found: list[Problem] = []
    for hook in hooks:
        found += [Problem(hook.target, hook.function_name, "absent", said) for said in absent.get(name_of(hook), ())]
        kind = _KIND_OF_STATE.get(hook.state)
        if kind is None and hook.state is HookState.REVERTED and hook.detail:
            kind = "undone"
        if kind is not None:
            detail = hook.detail or "it was registered after the last apply_hooks()"
            waits_for = hook.waits_for if kind == "pending" else None
            if waits_for is not None and _is_there_now(hook):
                detail, waits_for = f"{waits_for} was imported unseen; the next apply_hooks() hooks it", None
            found.append(Problem(hook.target, hook.function_name, kind, detail, waits_for))
        for patch in on[hook]:
            said = displaced(patch)
            if said:
                found.append(Problem(hook.target, hook.function_name, "displaced", said))
            for holder in unreached.get(patch, ()):
                found.append(Problem(hook.target, hook.function_name, "unreached", _with_reason(holder)))
        for address in patches.overrides(hook):
            found.append(Problem(hook.target, hook.function_name, "overridden", f"{address} overrides it"))
    return found


def _is_there_now(hook: Hook) -> bool:
    try:
        return isinstance(resolve(hook.target), Target)
    except (HookError, TypeError):
        return False


_KIND_OF_STATE = {state: state.value for state in (HookState.MISSED, HookState.SKIPPED, HookState.PENDING)}


def _with_reason(holder: Any) -> str:
    why = getattr(holder, "why", "")
    return f"{holder.address} ({why})" if why else str(holder.address)


def _overridden_by_all(hooks: Sequence[Hook]) -> tuple[str, ...]:
    """What overrides the target without any of the hooks."""
    each = [set(patches.overrides(hook)) for hook in hooks]
    return tuple(sorted(set.intersection(*each))) if each else ()


def source_of(thing: Any) -> tuple[str | None, int | None]:
    """The file and the line where a function or a class was written, if it was written in Python."""
    while True:
        if isinstance(thing, functools.partial):
            thing = thing.func
        elif type(thing) in (types.MethodType, staticmethod, classmethod):
            thing = thing.__func__
        elif type(thing) is property:
            thing = thing.fget
        elif type(thing) is CachedFunction:
            thing = thing.__wrapped__
        else:
            break
    if type(thing) is types.FunctionType:
        code = engines.written_code(thing)
        return code.co_filename, code.co_firstlineno
    cls = thing if raw.is_class(thing) else type(thing)
    if cls is thing:
        import inspect

        try:
            return inspect.getsourcefile(cls), inspect.getsourcelines(cls)[1]
        except (OSError, TypeError):
            pass
    module = sys.modules.get(raw.class_module(cls))
    file = None if module is None else (raw.namespace(module) or {}).get("__file__")
    return (file if type(file) is str else None), None


def _at(file: str | None, line: int | None) -> str:
    if file is None:
        return ""
    return f" ({file}:{line})" if line is not None else f" ({file})"
