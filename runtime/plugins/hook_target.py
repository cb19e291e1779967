"""What the catalogue says of a hook target, as plain data. Imports no torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Role(enum.Enum):
    """The processes of an engine, by the names that `Engine.applied_hooks` gives them."""

    MAIN = "main"
    """The one that makes the `Engine` or runs a command; it takes requests and gives out text."""
    SCHEDULER = "scheduler"
    """The spawned one that has the model."""


class When(enum.Enum):
    """When an engine runs a target."""

    ONCE = "once"
    """While a process starts, or while it ends; a few times perhaps, but never while requests are served."""
    CAPTURE = "capture"
    """While a graph runner is made."""
    REQUEST = "request"
    """For each request, however many tokens it gets."""
    STEP = "step"
    """At every step that gives a token."""
    PROMPT = "prompt"
    """At every step with a prompt, or a piece of one, in it."""
    DECODE = "decode"
    """At every step without a prompt."""
    LAYER = "layer"
    """At every step, in each layer of the model."""
    EVENT = "event"
    """When what it is for comes up, as its purpose says: slots run short, a request draws its tokens, an abort."""
    DEMAND = "demand"
    """Never by itself: the engine's user asks for it, `python -m runtime platform` does, or code of a plugin."""


@dataclass(frozen=True)
class HookTarget:
    """One seam: a callable that a hook can be put on.

    Attributes:
        name: dotted name, as `hookery.plugin_hook` takes it.
        purpose: what a hook on it is for.
        runs: which processes run it, and when.
        recorded: it is part of what a graph runner records. Where a device records, a hook on it runs at capture and
            not when the recording is replayed.
        area: the part of the runtime it belongs to.
    """

    name: str
    purpose: str
    runs: Mapping[Role, frozenset[When]]
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


def main(*when: When) -> dict[Role, frozenset[When]]:
    """Run by the main process."""
    return {Role.MAIN: frozenset(when)}


def scheduler(*when: When) -> dict[Role, frozenset[When]]:
    """Run by the scheduler."""
    return {Role.SCHEDULER: frozenset(when)}


def both(*when: When) -> dict[Role, frozenset[When]]:
    """Run by both processes, at the same moments."""
    return main(*when) | scheduler(*when)


def members(
    prefix: str, runs: Mapping[Role, frozenset[When]], *, recorded: bool = False, **purposes: str
) -> list[HookTarget]:
    """What there is at `prefix`, a module or a class: the purpose of each member, by its name."""
    return [HookTarget(f"{prefix}.{name}", purpose, runs, recorded) for name, purpose in purposes.items()]
