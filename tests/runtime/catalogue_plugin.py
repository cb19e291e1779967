"""A plugin that puts a hook on everything in the catalogue, and says how often each ran in every step.

In the scheduler the counts are hookery's own, taken at the end of each step and around the making of each graph runner.
They are written to the file that `CATALOGUE_TRACE` names when the scheduler's loop ends. The classes that
`CATALOGUE_KEPT` names are not replaced.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import hookery
from hookery import HookType
from runtime.plugins.catalogue import CATALOGUE
from runtime.plugins.hook_target import HookTarget, Role
from tests.runtime.catalogue_elsewhere import is_class

TOGETHER = 4
"""Requests that start in one step, if each may get `TOGETHER_TOKENS`."""
TOGETHER_TOKENS = 24
REPLAYED_LENGTH = 16
"""The longest sequence that decodes are recorded for, so that some are replayed and others are not."""
ABORTED_TOKENS = 30
"""A request that may get so many gets no more than one until it has been aborted."""

MODULES_WITHOUT_TORCH = ("runtime.managers.batch_policy", "runtime.managers.tokenizer_manager")
"""Where classes are replaced in the main process too: the others need torch, which must not be imported there."""

GRAPH_RUNNERS = ("CudaGraphRunner", "BreakableCudaGraphRunner")

made: Counter[str] = Counter()
"""How many objects of each replaced class there are."""
windows: list[dict[str, Any]] = []
_last: dict[str, int] = {}
_batch: dict[str, Any] = {}
_together: set[str] = set()


def passing(*args: Any, **kwargs: Any) -> None:
    """A hook that changes nothing."""


def calls() -> dict[str, int]:
    """How often each target was run in this process."""
    ran = {r.target: r.calls or 0 for r in hookery.applied_hooks() if r.hook.endswith(":passing")}
    return ran | {name: made[name] for name in replaced}


def close_window(kind: str) -> None:
    """Note what has run since the last call of this."""
    global _last
    now = calls()
    ran = {name: count - _last.get(name, 0) for name, count in now.items() if count > _last.get(name, 0)}
    windows.append({"kind": kind, "ran": ran, **_batch})
    _last = now
    _batch.clear()


def counted(target: HookTarget) -> type:
    """A subclass of the class at the target that counts its instances."""
    module, _, name = target.name.rpartition(".")
    base: Any = getattr(importlib.import_module(module), name)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        is_runner = name in GRAPH_RUNNERS
        if is_runner:
            close_window("start")
        made[target.name] += 1
        base.__init__(self, *args, **kwargs)
        if is_runner:
            close_window("capture")

    # Found by this name in a child process too.
    return type(f"Counted{name}", (base,), {"__init__": __init__, "__module__": __name__})


def around_step(original_fn: Callable[..., int], scheduler: Any) -> int:
    done = original_fn(scheduler)
    close_window("step")
    return done


def note_batch(scheduler: Any, batch: Any) -> None:
    _batch.update(
        requests=[request.request_id for request in (*batch.extends, *batch.decodes)],
        prompt=bool(batch.extends),
        tokens=len(batch.requests),
    )


def note_runner(result: Any, *args: Any) -> None:
    _batch["replayed"] = result is not None


def short_lengths(result: list[int], *args: Any) -> list[int]:
    return [REPLAYED_LENGTH]


def hold(original_fn: Callable[..., None], scheduler: Any) -> None:
    """Receive until all that is to run together is there, and what is to be aborted has been."""
    original_fn(scheduler)
    while _is_incomplete(scheduler):
        time.sleep(0.001)
        original_fn(scheduler)


def _is_incomplete(scheduler: Any) -> bool:
    for request in scheduler.by_id.values():
        most = request.sampling_params.max_new_tokens
        if most == TOGETHER_TOKENS:
            _together.add(request.request_id)
        if most == ABORTED_TOKENS and request.output_ids and not request.finished:
            return True
    return 0 < len(_together) < TOGETHER


def around_loop(original_fn: Callable[..., None], scheduler: Any) -> None:
    close_window("start")
    try:
        original_fn(scheduler)
    finally:
        Path(os.environ["CATALOGUE_TRACE"]).write_text(json.dumps(windows))


replaced: dict[str, type] = {
    target.name: counted(target)
    for target in CATALOGUE
    if is_class(target) and target.name.rpartition(".")[2] not in os.environ["CATALOGUE_KEPT"].split()
    if current_process().name == Role.SCHEDULER.value or target.name.startswith(MODULES_WITHOUT_TORCH)
}
globals().update({cls.__name__: cls for cls in replaced.values()})

for _name, _class in replaced.items():
    hookery.registry.register(_name, _class, HookType.REPLACE)
for _target in CATALOGUE:
    if not is_class(_target):
        # What waits for a message is counted when it has one.
        _type = HookType.AFTER if _target.name.endswith("Channel.receive") else HookType.BEFORE
        hookery.registry.register(_target.name, passing, _type)

_SCHEDULER = "runtime.managers.scheduler.Scheduler"
hookery.registry.register(f"{_SCHEDULER}.step", around_step, HookType.AROUND, priority=1)
hookery.registry.register(f"{_SCHEDULER}.run_batch", note_batch, HookType.BEFORE, priority=1)
hookery.registry.register("runtime.model_executor.graph_runner.runner_for", note_runner, HookType.AFTER)
hookery.registry.register(
    "runtime.model_executor.cuda_graph_runner.CudaGraphRunner.choose_capture_lengths", short_lengths, HookType.AFTER
)
hookery.registry.register(f"{_SCHEDULER}.receive_messages", hold, HookType.AROUND, priority=1)
hookery.registry.register(f"{_SCHEDULER}.event_loop", around_loop, HookType.AROUND, priority=-1)
