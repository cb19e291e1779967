"""What is applied: records, and the table that a person reads."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hookery.hooks import APPLIED, PENDING, Hook
from hookery.naming import MAIN, HookName, name_of, real_name_of_main


@dataclass(frozen=True)
class HookRecord:
    """One hook as it stands at the moment of asking; every field is plain data.

    ``calls`` is ``None`` unless counting is on for the hook; ``ran`` and ``calls`` are ``None`` for a class that
    replaces a class, because nothing stands between it and whoever uses it. ``detail`` says why a hook is not applied,
    ``engine_reason`` why this engine puts it in place, ``last_error`` what it raised last where ``on_error`` lets the
    program go on. ``overridden_by`` names what overrides the target in subclasses without this hook on it: the hook
    runs there only if the override calls the target. ``unreached``, who still holds the original and so calls past the
    hook, is ``None`` unless it was asked for. ``local`` says why the hook stays in this process, where child processes
    do not get it; ``absent_in`` names the child processes that do not have it, each with the reason. ``notes`` is what
    the program has to say of it (:func:`hookery.add_note`).
    """

    target: str
    hook: str
    type: str
    source: str
    distribution: str | None
    state: str
    detail: str
    engine: str | None
    priority: int
    order: int
    reason: str | None
    ran: bool | None
    calls: int | None
    engine_reason: str
    on_error: str
    last_error: str | None
    versions: str | None
    overridden_by: tuple[str, ...] = ()
    unreached: tuple[str, ...] | None = None
    local: str | None = None
    absent_in: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "absent_in", tuple(self.absent_in))
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "overridden_by", tuple(self.overridden_by))  # JSON makes lists of them
        if self.unreached is not None:
            object.__setattr__(self, "unreached", tuple(self.unreached))

    @classmethod
    def of(cls, uncommon: Mapping[str, Any]) -> HookRecord:
        """The record with these fields, and in all others what most records have (:data:`COMMON`)."""
        record = cls.__new__(cls)
        # As __init__ does, at a fifth of the cost: the listing of a process is read and written while it starts.
        record.__dict__.update(COMMON)
        record.__dict__.update(uncommon)
        record.__post_init__()
        return record

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


COMMON: Mapping[str, Any] = {
    "distribution": None,
    "detail": "",
    "engine": None,
    "priority": 0,
    "reason": None,
    "ran": False,
    "calls": None,
    "engine_reason": "",
    "on_error": "raise",
    "last_error": None,
    "versions": None,
    "overridden_by": (),
    "unreached": None,
    "local": None,
    "absent_in": (),
    "notes": (),
}
"""What most records have in these fields."""


class Said:
    """What is said of some hooks, as JSON takes it: a child process says it while it starts. It is in groups of hooks
    that have the same type, source and state, and so most of what there is to say in common; what most records have
    (:data:`COMMON`) is left out. :func:`records_in` reads it."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        self._group_of: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        self._last: tuple[tuple[Any, ...], list[tuple[Any, ...]]] = ((), [])

    @classmethod
    def of(
        cls,
        hooks: Sequence[Hook],
        overrides: Mapping[Hook, Sequence[str]],
        unreached: Mapping[Hook, Sequence[str]],
        why_local: Callable[[Hook], str | None],
        absent: Mapping[HookName, Sequence[str]],
    ) -> Said:
        """What there is to say of ``hooks``, which are all that a registry has."""
        known_as = stand_ins_on_main(hooks)
        not_shown = set(known_as.values())
        said = cls()
        for hook in hooks:
            if hook not in not_shown:
                absent_in = absent.get(name_of(hook), ()) if absent else ()
                overridden_by, local = overrides.get(hook, ()), why_local(hook)
                said.add(hook, known_as.get(hook), overridden_by, unreached.get(hook), local, absent_in)
        return said

    def add(
        self,
        hook: Hook,
        known_as: Hook | None,
        overridden_by: Sequence[str],
        unreached: Sequence[str] | None,
        local: str | None,
        absent_in: Sequence[str] = (),
    ) -> None:
        """Say how ``hook`` stands. ``known_as`` is the hook that :func:`stand_ins_on_main` says it is; the rest is said
        of it by the names of a :class:`HookRecord`."""
        target, detail = hook.target, hook.detail
        if known_as is not None:
            target = known_as.target
            detail = detail or f"it is on what __main__ defines, because {real_name_of_main()} runs as the program"
        key = (hook.type, hook.source, hook.state, detail, hook.engine, hook.engine_reason)
        group = self._last[1] if key == self._last[0] else self._group(key, hook, detail)
        said = (hook.order, target, hook.function_name)
        replaces_class = isinstance(hook.function, type)
        if not (
            replaces_class
            or _seldom(hook) != _SELDOM
            or overridden_by
            or absent_in
            or unreached is not None
            or local is not None
        ):
            group.append(said)
            return
        own: dict[str, Any] = {
            "priority": hook.priority,
            "ran": None if replaces_class else hook.mark.ran,
            "calls": hook.calls if hook.counted and not replaces_class else None,
            "on_error": hook.on_error,
            "reason": hook.reason,
            "last_error": hook.last_error,
            "versions": hook.versions,
            "overridden_by": overridden_by,
            "unreached": unreached,
            "local": local,
            "absent_in": absent_in,
            "notes": hook.notes,
        }
        group.append((*said, {name: value for name, value in own.items() if value != COMMON[name]}))

    def _group(self, key: tuple[Any, ...], hook: Hook, detail: str) -> list[tuple[Any, ...]]:
        group = self._group_of.get(key)
        if group is None:
            group = self._group_of[key] = []
            self.groups.append({**_shared_fields(hook, detail), "hooks": group})
        self._last = (key, group)
        return group


_seldom = operator.attrgetter(
    "priority", "mark.ran", "counted", "on_error", "reason", "last_error", "versions", "notes"
)
_SELDOM = (0, False, False, "raise", None, None, None, ())


def _shared_fields(hook: Hook, detail: str) -> dict[str, Any]:
    found: dict[str, Any] = {"type": hook.type.value, "source": hook.source.name, "state": hook.state.value}
    if hook.source.distribution is not None:
        found["distribution"] = hook.source.distribution
    if detail:
        found["detail"] = detail
    if hook.engine is not None:
        found["engine"], found["engine_reason"] = hook.engine, hook.engine_reason
    return found


def records_in(groups: Iterable[Mapping[str, Any]]) -> list[HookRecord]:
    """The records that were said so, in the order of the hooks.

    Raises:
        ValueError, TypeError, KeyError: it was said by another version, without a field that there is here.
    """
    records = []
    for group in groups:
        shared = {name: value for name, value in group.items() if name in _FIELDS}
        for order, target, hook, *own in group["hooks"]:
            fields = {**shared, "order": order, "target": target, "hook": hook}
            if own:
                fields.update({name: value for name, value in own[0].items() if name in _FIELDS})
            records.append(HookRecord.of(fields))
        missing = _FIELDS - COMMON.keys() - {"order", "target", "hook"} - shared.keys()
        if missing:
            raise ValueError(f"a record has no {sorted(missing)[0]}")
    return sorted(records, key=operator.attrgetter("order"))


_FIELDS = frozenset(field.name for field in fields(HookRecord))


def stand_ins_on_main(hooks: Iterable[Hook]) -> dict[Hook, Hook]:
    """Where a module runs as the program, a hook on it is on what ``__main__`` defines, and the one that was asked for
    waits for an import of the module that may never come: the first is listed, under the name of the second. What is
    listed so, and what it is listed as."""
    hooks = list(hooks)
    on_main = [hook for hook in hooks if hook.state is APPLIED and hook.plain_target.startswith(f"{MAIN}.")]
    if not on_main:
        return {}
    start = f"{real_name_of_main()}."
    waiting = {
        (hook.plain_target.removeprefix(start), hook.type, hook.function): hook
        for hook in hooks
        if hook.state is PENDING and hook.plain_target.startswith(start)
    }
    keys = {hook: (hook.plain_target.removeprefix(f"{MAIN}."), hook.type, hook.function) for hook in on_main}
    return {hook: waiting[key] for hook, key in keys.items() if key in waiting}


COLUMNS = ("process", "target", "type", "hook", "source", "state", "ran", "calls")


def format_table(records: Mapping[str, Sequence[HookRecord]]) -> str:
    """Lay out the hooks of one or several processes, ``{process name: records}``, as a table for a terminal."""
    rows, notes = table_of(records)
    return "\n".join([*align([COLUMNS, *rows]), *notes])


def table_of(records: Mapping[str, Sequence[HookRecord]]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows of that table, under :data:`COLUMNS`, and the lines that follow it."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for process, of_process in records.items():
        for record in of_process:
            source = record.source if record.distribution is None else f"{record.source} ({record.distribution})"
            calls = "-" if record.calls is None else str(record.calls)
            ran = "-" if record.ran is None else "yes" if record.ran else "no"
            # The source of a hook is most often the module it lies in: then the module is named once.
            hook = record.hook.removeprefix(f"{record.source}:")
            rows.append((process, record.target, record.type.upper(), hook, source, record.state, ran, calls))
            if record.detail:
                notes.append(f"{process}: {hook} is {record.state}: {record.detail}")
            notes += [f"{process}: {hook} {note}" for note in record.notes]
            for address in record.overridden_by:
                notes.append(f"{process}: {hook} is not on {address}, which overrides {record.target}")
            for child in record.absent_in:
                notes.append(f"{process}: {hook} is not in {child}")
            for address in record.unreached or ():
                notes.append(f"{process}: {hook} does not reach {address}, which holds the original of {record.target}")
    return rows, notes


def align(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The lines of a table, whose first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)
