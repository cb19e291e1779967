"""What is applied: records, and the table that a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hookery.hooks import Hook, HookState
from hookery.naming import MAIN, real_name_of_main


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
"""The fields that most records have in common: what a child process says while it starts is mostly that."""


def uncommon_fields(
    hook: Hook,
    *,
    overridden_by: Sequence[str] = (),
    unreached: Sequence[str] | None = None,
    local: str | None = None,
    absent_in: Sequence[str] = (),
    known_as: Hook | None = None,
) -> dict[str, Any]:
    """What is to be said of ``hook``, by the names of a :class:`HookRecord`, but for what is :data:`COMMON`.
    ``known_as`` is the hook that :func:`stand_ins_on_main` says it is."""
    target, detail = hook.target, hook.detail
    if known_as is not None:
        target = known_as.target
        detail = detail or f"it is on what __main__ defines, because {real_name_of_main()} runs as the program"
    replaces_class = isinstance(hook.function, type)
    found: dict[str, Any] = {
        "target": target,
        "hook": hook.function_name,
        "type": hook.type.value,
        "source": hook.source.name,
        "state": hook.state.value,
        "order": hook.order,
    }
    # The rest is seldom there.
    if hook.source.distribution is not None:
        found["distribution"] = hook.source.distribution
    if detail:
        found["detail"] = detail
    if hook.engine is not None:
        found["engine"], found["engine_reason"] = hook.engine, hook.engine_reason
    if hook.priority:
        found["priority"] = hook.priority
    if replaces_class or hook.mark.ran:
        found["ran"] = None if replaces_class else True
    if hook.counted and not replaces_class:
        found["calls"] = hook.calls
    if hook.on_error != "raise":
        found["on_error"] = hook.on_error
    for name, value in (
        ("reason", hook.reason),
        ("last_error", hook.last_error),
        ("versions", hook.versions),
        ("local", local),
        ("unreached", unreached),
    ):
        if value is not None:
            found[name] = value
    if overridden_by:
        found["overridden_by"] = overridden_by
    if absent_in:
        found["absent_in"] = absent_in
    if hook.notes:
        found["notes"] = hook.notes
    return found


def stand_ins_on_main(hooks: Iterable[Hook]) -> dict[Hook, Hook]:
    """Where a module runs as the program, a hook on it is on what ``__main__`` defines, and the one that was asked for
    waits for an import of the module that may never come: the first is listed, under the name of the second. What is
    listed so, and what it is listed as."""
    hooks = list(hooks)
    on_main = [hook for hook in hooks if hook.state is HookState.APPLIED and hook.plain_target.startswith(f"{MAIN}.")]
    if not on_main:
        return {}
    start = f"{real_name_of_main()}."
    waiting = {
        (hook.plain_target.removeprefix(start), hook.type, hook.function): hook
        for hook in hooks
        if hook.state is HookState.PENDING and hook.plain_target.startswith(start)
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
