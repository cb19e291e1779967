"""What a run says of the catalogue: which process ran a target, and at which moments.

The moments are found out by counting, without looking at what the catalogue claims, and then compared with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.plugins.hook_target import HookTarget, Role, When
from tests.runtime.catalogue_run import LAYERS, OTHERS, REGULAR, Run


def scheduler_pattern(run: Run, name: str) -> When | None:
    """The moment that fits what the regular requests ran of a target; `EVENT` if it ran and none fits, None if not."""
    requests = [[(step, step["ran"].get(name, 0)) for step in steps] for steps in run.steps]
    counts = [pair for steps in requests for pair in steps]
    if not any(count for _, count in counts):
        return None
    giving = [count for step, count in counts if step["tokens"]]
    if all(count >= LAYERS for _, count in counts):
        return When.LAYER
    if all(0 < count < LAYERS for count in giving):
        return When.STEP
    if all((count > 0) == step["prompt"] for step, count in counts):
        return When.PROMPT
    if all((count > 0) != step["prompt"] for step, count in counts):
        return When.DECODE
    if len({sum(count for _, count in steps) for steps in requests}) == 1:
        return When.REQUEST
    return When.EVENT


def main_pattern(run: Run, name: str) -> When | None:
    """The same for the main process, which sees no steps but the tokens of each."""
    counts = [window.get(name, 0) for window in run.main[2 : 2 + len(REGULAR)]]
    if not any(counts):
        return None
    first, second, _ = counts
    if first > 0 and len(set(counts)) == 1:
        return When.REQUEST
    longer = REGULAR[1].new_tokens - REGULAR[0].new_tokens
    return When.STEP if min(counts) > 0 and second - first >= longer else When.EVENT


def observed(run: Run, name: str) -> dict[Role, frozenset[When]]:
    """The moments at which each process ran a target."""
    kinds = {window["kind"] for window in run.scheduler if _ran(window, name)}
    scheduler = {when for kind, when in (("start", When.ONCE), ("capture", When.CAPTURE)) if kind in kinds}
    pattern = scheduler_pattern(run, name)
    if pattern is None and "step" in kinds:
        pattern = When.EVENT
    scheduler |= {pattern} if pattern is not None else set()
    main = {When.ONCE} if name in run.main[0] or name in run.main[-1] else set()
    pattern = main_pattern(run, name)
    if pattern is None and name in run.main[OTHERS]:
        pattern = When.EVENT
    main |= {pattern} if pattern is not None else set()
    return {role: frozenset(found) for role, found in ((Role.MAIN, main), (Role.SCHEDULER, scheduler)) if found}


def _ran(window: dict[str, Any], name: str) -> bool:
    return name in window["ran"]


def reached(run: Run, targets: Sequence[HookTarget]) -> set[str]:
    """The targets that the run reached in every process that the catalogue says runs them."""
    return {t.name for t in targets if t.runs.keys() <= observed(run, t.name).keys()}


def faults(run: Run, targets: Sequence[HookTarget]) -> list[str]:
    """What the catalogue says of targets, and the run disproves; one that the run has not reached has no fault."""
    found = []
    for target in targets:
        seen = observed(run, target.name)
        for role in Role:
            claimed, ran = target.runs.get(role, frozenset()), seen.get(role, frozenset())
            if not _agree(claimed, ran):
                found.append(
                    f"{target.name} in {role.value}: the catalogue says {_in_words(claimed)}, it ran {_in_words(ran)}"
                )
    return found


def _agree(claimed: frozenset[When], ran: frozenset[When]) -> bool:
    if not ran:
        # Not reached: only what comes up or is asked for may stay away.
        return claimed <= {When.EVENT, When.DEMAND}
    if When.EVENT in claimed:
        # What comes up does so at no moment that comes again, and need not have come up.
        return claimed - {When.EVENT} == ran - {When.EVENT}
    return claimed == ran


def _in_words(moments: frozenset[When]) -> str:
    return ", ".join(sorted(when.value for when in moments)) or "never"
