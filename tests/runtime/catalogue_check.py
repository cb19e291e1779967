"""What runs say of the catalogue: which process ran a target, and at which moments.

The moments are found out by counting, without looking at what the catalogue claims, and then compared with that.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from runtime.plugins.hook_target import HookTarget, Part, Role, When
from tests.runtime.catalogue_run import LAYERS, OTHERS, REGULAR, Run


class Steps(enum.Enum):
    """A kind of steps. What runs at the steps of some kinds, and at no others, has these as its moments."""

    REPLAYED_PROMPTS = "replayed prompts"
    OTHER_PROMPTS = "prompts that are not replayed"
    REPLAYED_DECODES = "replayed decodes"
    OTHER_DECODES = "decodes that are not replayed"


_PROMPTS = frozenset({Steps.REPLAYED_PROMPTS, Steps.OTHER_PROMPTS})
_DECODES = frozenset({Steps.REPLAYED_DECODES, Steps.OTHER_DECODES})
_REPLAYED = frozenset({Steps.REPLAYED_PROMPTS, Steps.REPLAYED_DECODES})
_NOT_REPLAYED = frozenset(Steps) - _REPLAYED
_STEPS = {When.PROMPT: _PROMPTS, When.DECODE: _DECODES, When.REPLAY: _REPLAYED, When.EAGER: _NOT_REPLAYED}
"""The kinds of steps that a moment means."""

_OF_RUNNER = {
    Part.DECODE_RUNNER: _DECODES,
    Part.PREFILL_RUNNER: _PROMPTS,
    Part.BREAKABLE_RUNNER: _PROMPTS,
    Part.PIECEWISE_RUNNER: _PROMPTS,
}
"""What each runner replays."""

Moment = When | Steps


def kind_of(step: dict[str, Any]) -> Steps:
    """The kind of a step of a run."""
    if step["prompt"]:
        return Steps.REPLAYED_PROMPTS if step["replayed"] else Steps.OTHER_PROMPTS
    return Steps.REPLAYED_DECODES if step["replayed"] else Steps.OTHER_DECODES


def kinds_of(run: Run) -> frozenset[Steps]:
    """The kinds of the steps of the regular requests."""
    return frozenset(kind_of(step) for steps in run.steps for step in steps)


def scheduler_pattern(run: Run, name: str) -> frozenset[Moment]:
    """The moments that fit what the regular requests ran of a target; `EVENT` if it ran and none fit."""
    requests = [[(step, step["ran"].get(name, 0)) for step in steps] for steps in run.steps]
    counts = [pair for steps in requests for pair in steps]
    if not any(count for _, count in counts):
        return frozenset()
    giving = [count for step, count in counts if step["tokens"]]
    if all(count >= LAYERS for _, count in counts):
        return frozenset({When.LAYER})
    if all(0 < count < LAYERS for count in giving):
        return frozenset({When.STEP})
    kinds = frozenset(kind_of(step) for step, count in counts if count)
    if kinds < kinds_of(run) and all((count > 0) == (kind_of(step) in kinds) for step, count in counts):
        return kinds
    if len({sum(count for _, count in steps) for steps in requests}) == 1:
        return frozenset({When.REQUEST})
    return frozenset({When.EVENT})


def main_pattern(run: Run, name: str) -> frozenset[Moment]:
    """The same for the main process, which sees no steps but the tokens of each."""
    counts = [window.get(name, 0) for window in run.main[2 : 2 + len(REGULAR)]]
    if not any(counts):
        return frozenset()
    first, second, _ = counts
    if first > 0 and len(set(counts)) == 1:
        return frozenset({When.REQUEST})
    longer = REGULAR[1].new_tokens - REGULAR[0].new_tokens
    return frozenset({When.STEP if min(counts) > 0 and second - first >= longer else When.EVENT})


def observed(run: Run, name: str) -> dict[Role, frozenset[Moment]]:
    """The moments at which each process ran a target."""
    kinds = {window["kind"] for window in run.scheduler if _ran(window, name)}
    scheduler = {when for kind, when in (("start", When.ONCE), ("capture", When.CAPTURE)) if kind in kinds}
    scheduler |= scheduler_pattern(run, name) or ({When.EVENT} if "step" in kinds else set())
    main = {When.ONCE} if name in run.main[0] or name in run.main[-1] else set()
    main |= main_pattern(run, name) or ({When.EVENT} if name in run.main[OTHERS] else set())
    return {role: frozenset(found) for role, found in ((Role.MAIN, main), (Role.SCHEDULER, scheduler)) if found}


def _ran(window: dict[str, Any], name: str) -> bool:
    return name in window["ran"]


def claimed(run: Run, target: HookTarget, role: Role) -> frozenset[Moment]:
    """The moments at which, as the catalogue says, such an engine runs a target: those of steps by the kinds of them
    that there are in the run."""
    found: set[Moment] = set()
    steps: set[Steps] = set()
    for when in target.runs.get(role, ()):
        part = target.only_with.get(when)
        if part not in (None, *run.parts) or (when is When.CAPTURE and Part.GRAPH_RUNNER not in run.parts):
            continue
        if role is Role.SCHEDULER and when in _STEPS:
            of_runner = _OF_RUNNER.get(part, frozenset(Steps)) if when is When.REPLAY and part else frozenset(Steps)
            steps |= _STEPS[when] & of_runner & kinds_of(run)
        else:
            found.add(when)
    return frozenset(found | ({When.STEP} if steps == kinds_of(run) else steps))


def reached(run: Run, targets: Sequence[HookTarget]) -> set[str]:
    """The targets that the run reached in every process that the catalogue says runs them."""
    return {t.name for t in targets if t.runs.keys() <= observed(run, t.name).keys()}


def faults(run: Run, targets: Sequence[HookTarget]) -> list[str]:
    """What the catalogue says of targets, and the run disproves; one that the run has not reached has no fault."""
    found = []
    for target in targets:
        seen = observed(run, target.name)
        before = len(found)
        for role in Role:
            said, ran = claimed(run, target, role), seen.get(role, frozenset())
            if not _agree(said, ran):
                found.append(
                    f"{target.name} in {role.value} of an engine with {run.engine}: the catalogue says"
                    f" {_in_words(said)}, it ran {_in_words(ran)}"
                )
        if not seen and len(found) == before and _is_said_to_run(run, target):
            found.append(f"{target.name}: the catalogue does not say that an engine with {run.engine} never runs it")
    return found


def _is_said_to_run(run: Run, target: HookTarget) -> bool:
    """Whether such an engine has all that some moment takes, be it only that of another engine's graph runner."""
    moments: set[When] = set().union(*target.runs.values())
    has_all = any(target.only_with.get(when) in (None, *run.parts) for when in moments)
    return has_all and not moments <= {When.EVENT, When.DEMAND}


def _agree(claimed: frozenset[Moment], ran: frozenset[Moment]) -> bool:
    if not ran:
        # Not reached: only what comes up or is asked for may stay away.
        return claimed <= {When.EVENT, When.DEMAND}
    if When.EVENT in claimed:
        # What comes up does so at no moment that comes again, and need not have come up.
        return claimed - {When.EVENT} == ran - {When.EVENT}
    return claimed == ran


def _in_words(moments: frozenset[Moment]) -> str:
    return ", ".join(sorted(moment.value for moment in moments)) or "never"
