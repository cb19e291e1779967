"""What the catalogue says of a hook target, as plain data. Imports no torch."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Role(enum.Enum):
    """The processes of an engine, by the names that `Engine.applied_hooks` gives them."""

    MAIN = "main"
    """The one that makes the `Engine` or runs a command; it takes requests and gives out text."""
    SCHEDULER = "scheduler"
    """The spawned one that has the model."""


class _Explained(enum.Enum):
    """Words, each with what it means."""

    meaning: str

    def __new__(cls, words: str, meaning: str = "") -> Any:
        made = object.__new__(cls)
        made._value_ = words
        made.meaning = meaning
        return made


class When(_Explained):
    """When an engine runs a target, and what that means."""

    ONCE = "once", "while a process starts or ends, a few times perhaps, and never while requests are served"
    CAPTURE = "capture", "while a graph runner is made"
    REQUEST = "request", "for each request, however many tokens it gets"
    STEP = "step", "at every step that gives a token"
    PROMPT = "prompt", "at every step with a prompt, or a piece of one, in it"
    DECODE = "decode", "at every step without a prompt"
    REPLAY = "replay", "at every step that a graph runner replays"
    EAGER = "eager", "at every step that no graph runner replays: all of them where there is none"
    LAYER = "layer", "at every step, in each layer of the model"
    EVENT = "event", "when what its purpose says comes up: slots run short, a request draws tokens, such a model"
    DEMAND = "demand", "never by itself: the engine's user, `python -m runtime platform` or a plugin asks for it"


class Part(_Explained):
    """What one engine has and another has not, and how an engine gets it."""

    GRAPH_RUNNER = "a graph runner", "any of the four that follow"
    DECODE_RUNNER = "a decode graph runner", 'decode_graph="on", or a platform that brings one'
    PREFILL_RUNNER = "a prefill graph runner", 'prefill_graph="breakable" or "piecewise"'
    BREAKABLE_RUNNER = "a breakable graph runner", 'prefill_graph="breakable"'
    PIECEWISE_RUNNER = "a piecewise graph runner", 'prefill_graph="piecewise"'
    PREFIX_CACHE = "a prefix cache", "what an engine has without disable_radix_cache"
    SINGLE_SLOTS = "pages of one slot", "page_size=1"
    PAGES = "larger pages", "a page_size above 1"


@dataclass(frozen=True)
class HookTarget:
    """One seam: a callable that a hook can be put on.

    Attributes:
        name: dotted name, as `hookery.plugin_hook` takes it.
        purpose: what a hook on it is for.
        runs: which processes run it, and when.
        only_with: the moments that only an engine with this part has; those that are not named hold for every engine.
            With a graph runner, "capture" and "replay" are that runner's.
        recorded: it is part of what a graph runner records. Where a device records, a hook on it runs at capture and
            not when the recording is replayed.
        area: the part of the runtime it belongs to.
    """

    name: str
    purpose: str
    runs: Mapping[Role, frozenset[When]]
    only_with: Mapping[When, Part] = field(default_factory=dict)
    recorded: bool = False
    area: str = ""

    @property
    def processes(self) -> str:
        """The processes in words."""
        return ", ".join(role.value for role in Role if role in self.runs)

    @property
    def moments(self) -> str:
        """When it runs, in words: of each process where that differs."""
        spoken = {role: ", ".join(when.value for when in When if when in self.runs[role]) for role in self.runs}
        if len(set(spoken.values())) == 1:
            shown = next(iter(spoken.values()))
        else:
            shown = "; ".join(f"{role.value}: {spoken[role]}" for role in Role if role in spoken)
        return f"{shown} (recorded)" if self.recorded else shown

    @property
    def always_with(self) -> Part | None:
        """The part without which an engine never runs it, if there is one."""
        parts = {self.only_with.get(when) for moments in self.runs.values() for when in moments}
        return next(iter(parts)) if len(parts) == 1 else None

    @property
    def needs(self) -> str:
        """What `only_with` says, in words: the part, or each moment with its part where that differs."""
        if self.always_with is not None:
            return self.always_with.value
        return "; ".join(f"{when.value}: {self.only_with[when].value}" for when in When if when in self.only_with)


def main(*when: When) -> dict[Role, frozenset[When]]:
    """Run by the main process."""
    return {Role.MAIN: frozenset(when)}


def scheduler(*when: When) -> dict[Role, frozenset[When]]:
    """Run by the scheduler."""
    return {Role.SCHEDULER: frozenset(when)}


def both(*when: When) -> dict[Role, frozenset[When]]:
    """Run by both processes, at the same moments."""
    return main(*when) | scheduler(*when)


def members(prefix: str, runs: Mapping[Role, frozenset[When]], **purposes: str) -> list[HookTarget]:
    """What there is at `prefix`, a module or a class: the purpose of each member, by its name."""
    return [HookTarget(f"{prefix}.{name}", purpose, runs) for name, purpose in purposes.items()]


def recorded_members(prefix: str, runs: Mapping[Role, frozenset[When]], **purposes: str) -> list[HookTarget]:
    """The same of what is recorded."""
    return [dataclasses.replace(target, recorded=True) for target in members(prefix, runs, **purposes)]


def only_with(part: Part, targets: Iterable[HookTarget]) -> list[HookTarget]:
    """The targets, said to be run by nothing but an engine with this part."""
    return [
        dataclasses.replace(target, only_with={when: part for moments in target.runs.values() for when in moments})
        for target in targets
    ]


def at_some_only_with(parts: Mapping[When, Part], targets: Iterable[HookTarget]) -> list[HookTarget]:
    """The targets, said to be run at these moments by nothing but an engine with the part that is given for each."""
    return [dataclasses.replace(target, only_with=parts) for target in targets]
