"""What a hooked call costs: hookery beside the ways to do it by hand, in one run.

Every peer calls the same hooks around the same target, `f(x, y=1)` called as `f(1)`, as a function and as a method. The
rounds of the peers alternate, so that a machine whose speed drifts treats all alike, and the ratio is the median of the
ratios to the unhooked call of the same round. The cost of the loop itself is measured too and taken off.

    python benchmarks/hook_overhead.py
    python benchmarks/hook_overhead.py --rounds 200 --calls 20000 --json
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.metadata
import itertools
import json
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import wrapt

import hookery
from hookery import HookRegistry, HookSource, HookType

Function = Callable[..., Any]
Loop = Callable[[int], float]

TARGET = """
def f(x, y=1):
    return x

class Owner:
    def f(self, x, y=1):
        return x
"""


def before(*args: Any, **kwargs: Any) -> None:
    return None


def after(result: Any, *args: Any, **kwargs: Any) -> None:
    return None


def around(original_fn: Function, *args: Any, **kwargs: Any) -> Any:
    return original_fn(*args, **kwargs)


def around_too(original_fn: Function, *args: Any, **kwargs: Any) -> Any:
    return original_fn(*args, **kwargs)


def replace(*args: Any, **kwargs: Any) -> Any:
    return args[-1]


Hooks = tuple[tuple[HookType, Function], ...]
SCENARIOS: dict[str, Hooks] = {
    "BEFORE": ((HookType.BEFORE, before),),
    "AFTER": ((HookType.AFTER, after),),
    "AROUND": ((HookType.AROUND, around),),
    "REPLACE": ((HookType.REPLACE, replace),),
    "BEFORE+AFTER+2 AROUND": (
        (HookType.BEFORE, before),
        (HookType.AFTER, after),
        (HookType.AROUND, around),
        (HookType.AROUND, around_too),
    ),
}


def by_hand(original: Function, hook_type: HookType, hook: Function, shape: str) -> Function:
    """The monkey patch that somebody writes who knows the target's parameters."""
    if shape == "method":

        def before_method(self: Any, x: Any, y: Any = 1) -> Any:
            changed = hook(self, x, y)
            if changed is not None:
                args, kwargs = changed
                return original(*args, **kwargs)
            return original(self, x, y)

        def after_method(self: Any, x: Any, y: Any = 1) -> Any:
            result = original(self, x, y)
            changed = hook(result, self, x, y)
            return result if changed is None else changed

        def around_method(self: Any, x: Any, y: Any = 1) -> Any:
            return hook(original, self, x, y)

        def replace_method(self: Any, x: Any, y: Any = 1) -> Any:
            return hook(self, x)

        choice: dict[HookType, Function] = {
            HookType.BEFORE: before_method,
            HookType.AFTER: after_method,
            HookType.AROUND: around_method,
            HookType.REPLACE: replace_method,
        }
        return choice[hook_type]

    def before_function(x: Any, y: Any = 1) -> Any:
        changed = hook(x, y)
        if changed is not None:
            args, kwargs = changed
            return original(*args, **kwargs)
        return original(x, y)

    def after_function(x: Any, y: Any = 1) -> Any:
        result = original(x, y)
        changed = hook(result, x, y)
        return result if changed is None else changed

    def around_function(x: Any, y: Any = 1) -> Any:
        return hook(original, x, y)

    def replace_function(x: Any, y: Any = 1) -> Any:
        return hook(x)

    choice = {
        HookType.BEFORE: before_function,
        HookType.AFTER: after_function,
        HookType.AROUND: around_function,
        HookType.REPLACE: replace_function,
    }
    return choice[hook_type]


def by_closure(original: Function, hook_type: HookType, hook: Function, shape: str) -> Function:
    """What most engines put in place: a closure over anything, that `functools.wraps` makes up."""
    if hook_type is HookType.BEFORE:

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            changed = hook(*args, **kwargs)
            if changed is not None:
                args, kwargs = changed
            return original(*args, **kwargs)

    elif hook_type is HookType.AFTER:

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            changed = hook(result, *args, **kwargs)
            return result if changed is None else changed

    elif hook_type is HookType.AROUND:

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return hook(original, *args, **kwargs)

    else:

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs)

    return wrapper


def by_wrapt(original: Function, hook_type: HookType, hook: Function, shape: str) -> Function:
    """A bare `wrapt.FunctionWrapper`: `wrapped` is bound already, so hooks that want `self` are given `instance`."""
    if hook_type is HookType.AROUND:

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            return hook(wrapped, *args, **kwargs)

    elif hook_type is HookType.BEFORE:

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            changed = hook(instance, *args, **kwargs) if shape == "method" else hook(*args, **kwargs)
            if changed is not None:
                args, kwargs = changed
            return wrapped(*args, **kwargs)

    elif hook_type is HookType.AFTER:

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            result = wrapped(*args, **kwargs)
            if shape == "method":
                changed = hook(result, instance, *args, **kwargs)
            else:
                changed = hook(result, *args, **kwargs)
            return result if changed is None else changed

    else:

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            return hook(instance, *args, **kwargs) if shape == "method" else hook(*args, **kwargs)

    stand_in: Function = wrapt.FunctionWrapper(original, wrapper)
    return stand_in


BY_HAND: dict[str, Callable[[Function, HookType, Function, str], Function]] = {
    "hand-written patch": by_hand,
    "functools.wraps closure": by_closure,
    "wrapt.FunctionWrapper": by_wrapt,
}
UNHOOKED, HOOKERY, REVERTED = "unhooked", "hookery", "hookery, reverted"
PEERS = (UNHOOKED, *BY_HAND, HOOKERY, REVERTED)
SHAPES = ("function", "method")


@dataclass(frozen=True)
class Row:
    """The figures of one peer over all rounds; nanoseconds per call, without the loop."""

    shape: str
    hooks: str
    peer: str
    ns_median: float
    ns_p10: float
    ns_p90: float
    ratio: float


class Subject:
    """One target of its own for one peer, hooked in that peer's way."""

    def __init__(self, peer: str, shape: str, hooks: Hooks) -> None:
        self.peer = peer
        self.name = f"hook_overhead_target_{next(_numbers)}"
        self.module = types.ModuleType(self.name)
        exec(TARGET, vars(self.module))
        self.registry = HookRegistry(counting=False)
        holder = self.module if shape == "function" else self.module.Owner
        original = vars(holder)["f"]
        if peer in BY_HAND:
            function = original
            for hook_type, hook in hooks:
                function = BY_HAND[peer](function, hook_type, hook, shape)
            setattr(holder, "f", function)  # noqa: B010  (a class or a module)
        elif peer in (HOOKERY, REVERTED):
            sys.modules[self.name] = self.module
            target = f"{self.name}.f" if shape == "function" else f"{self.name}.Owner.f"
            for hook_type, hook in hooks:
                self.registry.register(target, hook, hook_type, source=HookSource("benchmark"))
            self.registry.apply_hooks(strict=True)
            if peer == REVERTED:
                self.registry.revert()
        instance = self.module.Owner()
        self.loop = function_loop(self.module.f) if shape == "function" else method_loop(instance)
        try:
            self._check(original, vars(holder)["f"], len(hooks), self.module if shape == "function" else instance)
        except AssertionError:
            self.close()
            raise

    def _check(self, original: Function, standing: Function, hooks: int, owner: Any) -> None:
        if self.peer == REVERTED and standing is not original:
            raise AssertionError("revert did not bring the original back")
        expected = 0 if self.peer in (UNHOOKED, REVERTED) else hooks
        if (ran := count_hooks(lambda: owner.f(1))) != expected:
            raise AssertionError(f"{self.peer} ran {ran} hooks instead of {expected}")
        if owner.f(1) != 1:
            raise AssertionError(f"{self.peer} changed the result")

    def close(self) -> None:
        self.registry.reset()
        sys.modules.pop(self.name, None)


_numbers = itertools.count()


def count_hooks(call: Function) -> int:
    """How many of the hooks a call runs."""
    codes = [hook.__code__ for hooks in SCENARIOS.values() for _, hook in hooks]
    ran = 0

    def profile(frame: types.FrameType, event: str, argument: Any) -> None:
        nonlocal ran
        ran += event == "call" and frame.f_code in codes

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return ran


def function_loop(f: Function) -> Loop:
    def loop(calls: int) -> float:
        repeat = itertools.repeat(None, calls)
        started = time.perf_counter_ns()
        for _ in repeat:
            f(1)
        return (time.perf_counter_ns() - started) / calls

    return loop


def method_loop(instance: Any) -> Loop:
    def loop(calls: int) -> float:
        repeat = itertools.repeat(None, calls)
        started = time.perf_counter_ns()
        for _ in repeat:
            instance.f(1)
        return (time.perf_counter_ns() - started) / calls

    return loop


def empty_loop(calls: int) -> float:
    repeat = itertools.repeat(None, calls)
    started = time.perf_counter_ns()
    for _ in repeat:
        pass
    return (time.perf_counter_ns() - started) / calls


def measure(shape: str, hooks_name: str, *, rounds: int, calls: int) -> list[Row]:
    """Time all peers on one shape of target with one set of hooks."""
    subjects = [Subject(peer, shape, SCENARIOS[hooks_name]) for peer in PEERS]
    times: dict[str, list[float]] = {peer: [] for peer in PEERS}
    try:
        for subject in subjects:
            subject.loop(calls)  # warm
        enabled = gc.isenabled()
        gc.disable()
        try:
            for number in range(rounds):
                overhead = empty_loop(calls)
                turn = number % len(subjects)
                for subject in [*subjects[turn:], *subjects[:turn]]:
                    times[subject.peer].append(max(subject.loop(calls) - overhead, 0.1))
        finally:
            if enabled:
                gc.enable()
    finally:
        for subject in subjects:
            subject.close()
    return [row(shape, hooks_name, peer, times[peer], times[UNHOOKED]) for peer in PEERS]


def row(shape: str, hooks: str, peer: str, times: Sequence[float], unhooked: Sequence[float]) -> Row:
    ordered = sorted(times)
    last = len(ordered) - 1
    return Row(
        shape,
        hooks,
        peer,
        ns_median=statistics.median(ordered),
        ns_p10=ordered[round(last * 0.1)],
        ns_p90=ordered[round(last * 0.9)],
        ratio=statistics.median(mine / plain for mine, plain in zip(times, unhooked, strict=True)),
    )


def versions() -> dict[str, str]:
    proxy = "pure Python" if isinstance(wrapt.FunctionWrapper.__call__, types.FunctionType) else "C extension"
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "hookery": hookery.__version__,
        "wrapt": f"{importlib.metadata.version('wrapt')} ({proxy})",
        "cpu": cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def format_rows(rows: Sequence[Row]) -> str:
    """A table per shape: one line per peer, one column per set of hooks."""
    columns = list(dict.fromkeys(row.hooks for row in rows))
    found = {(row.shape, row.peer, row.hooks): row for row in rows}
    width = max(len(peer) for peer in PEERS)
    lines = []
    for shape in dict.fromkeys(row.shape for row in rows):
        cells = [f"{name:>28}" for name in columns]
        lines += ["", f"{shape:<{width}}" + "".join(cells), "-" * (width + 28 * len(columns))]
        for peer in dict.fromkeys(row.peer for row in rows):
            cells = []
            for name in columns:
                cell = found[shape, peer, name]
                spread = f"[{cell.ns_p10:.0f}-{cell.ns_p90:.0f}]"
                cells.append(f"{f'{cell.ns_median:.0f} {spread:<12} {cell.ratio:5.2f}x':>28}")
            lines.append(f"{peer:<{width}}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="interleaved rounds per table cell (default: 60)")
    parser.add_argument("--calls", type=int, default=10_000, help="calls per peer and round (default: 10000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.calls < 1:
        parser.error("--rounds and --calls must be at least 1")
    rows = [
        found
        for shape in SHAPES
        for hooks in SCENARIOS
        for found in measure(shape, hooks, rounds=options.rounds, calls=options.calls)
    ]
    if options.json:
        header = {**versions(), "rounds": options.rounds, "calls": options.calls}
        print(json.dumps({**header, "rows": [asdict(found) for found in rows]}, indent=2))
        return
    print("A hooked call of f(x, y=1) as f(1): median nanoseconds [10th-90th percentile], ratio to the unhooked call")
    for name, value in versions().items():
        print(f"{name:>8}: {value}")
    print(f"{'rounds':>8}: {options.rounds} of {options.calls} calls, peers interleaved, gc off, the loop taken off")
    print(format_rows(rows))


if __name__ == "__main__":
    main()
