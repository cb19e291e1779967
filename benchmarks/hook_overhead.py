"""What a hooked call costs: hookery beside the ways to do it by hand, in one run.

Every peer calls the same hooks around the same target: `f(x, y=1)` called as `f(1)`, as a function and as a method, and
`f(x, *, y=1)` called as `f(1, y=2)`; with generic hooks, which take `*args, **kwargs`, and with typed ones, which name
the target's parameters. That a hook ran is noted, calls are not counted. The rounds of the peers alternate, so that a
machine whose speed drifts treats all alike, and every ratio is the median of the ratios within one round. The cost of
the loop itself is measured too and taken off. At the end stand the limits that hookery is to keep to.

    python benchmarks/hook_overhead.py
    python benchmarks/hook_overhead.py --rounds 200 --calls 20000 --json
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
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

TARGETS = {
    "function": "def f(x, y=1):\n    return x",
    "method": "class Owner:\n    def f(self, x, y=1):\n        return x",
    "keyword-only": "def f(x, *, y=1):\n    return x",
}
SHAPES = tuple(TARGETS)
STYLES = ("generic", "typed")


HOOKS = """
def before({parameters}):
    return None

def after(result, {parameters}):
    return None

def around(original_fn, {parameters}):
    return original_fn({arguments})

def around_too(original_fn, {parameters}):
    return original_fn({arguments})

def replace({parameters}):
    return {x}
"""
# The parameters of the target, and how they are handed on.
TYPED = {
    "function": ("x, y=1", "x, y"),
    "method": ("self, x, y=1", "self, x, y"),
    "keyword-only": ("x, *, y=1", "x, y=y"),
}
Hooks = tuple[tuple[HookType, Function], ...]
SCENARIOS: dict[str, tuple[str, ...]] = {
    "BEFORE": ("before",),
    "AFTER": ("after",),
    "AROUND": ("around",),
    "REPLACE": ("replace",),
    "BEFORE+AFTER+2 AROUND": ("before", "after", "around", "around_too"),
}


def make_hooks(shape: str, style: str, names: Sequence[str]) -> Hooks:
    """The hooks of a scenario, written for one shape of target."""
    parameters, arguments = TYPED[shape] if style == "typed" else ("*args, **kwargs", "*args, **kwargs")
    result = "x" if style == "typed" else f"args[{int(shape == 'method')}]"
    namespace: dict[str, Any] = {}
    exec(HOOKS.format(parameters=parameters, arguments=arguments, x=result), namespace)
    return tuple((HookType[name.removesuffix("_too").upper()], namespace[name]) for name in names)


PATCHES = """
def before({parameters}):
    changed = hook({arguments})
    if changed is not None:
        args, kwargs = changed
        return original(*args, **kwargs)
    return original({arguments})

def after({parameters}):
    result = original({arguments})
    changed = hook(result, {arguments})
    return result if changed is None else changed

def around({parameters}):
    return hook(original, {arguments})

def replace({parameters}):
    return hook({arguments})
"""


def by_hand(original: Function, hook_type: HookType, hook: Function, shape: str) -> Function:
    """The monkey patch that somebody writes who knows the target's parameters."""
    parameters, arguments = TYPED[shape]
    namespace: dict[str, Any] = {"original": original, "hook": hook}
    exec(PATCHES.format(parameters=parameters, arguments=arguments), namespace)
    patch: Function = namespace[hook_type.value]
    return patch


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
    """A bare `wrapt.FunctionWrapper`: `wrapped` is bound to `instance`, unless the wrapper further out passed it on."""
    if hook_type is HookType.AROUND:

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            if instance is not None and shape == "method":
                return hook(original, instance, *args, **kwargs)
            return hook(wrapped, *args, **kwargs)

    elif hook_type is HookType.BEFORE:

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            if instance is not None and shape == "method":
                changed = hook(instance, *args, **kwargs)
            else:
                changed = hook(*args, **kwargs)
            if changed is not None:
                args, kwargs = changed
            return wrapped(*args, **kwargs)

    elif hook_type is HookType.AFTER:

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            result = wrapped(*args, **kwargs)
            if instance is not None and shape == "method":
                changed = hook(result, instance, *args, **kwargs)
            else:
                changed = hook(result, *args, **kwargs)
            return result if changed is None else changed

    else:

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            return hook(instance, *args, **kwargs) if shape == "method" else hook(*args, **kwargs)

    stand_in: Function = wrapt.FunctionWrapper(original, wrapper)
    return stand_in


def by_ddtrace(original: Function, hook_type: HookType, hook: Function, shape: str) -> Function:
    """ddtrace's bytecode wrapping, which changes the function in place."""
    wrap = importlib.import_module("ddtrace.internal.wrapping").wrap

    def before(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = hook(*args, **kwargs)
        if changed is not None:
            args, kwargs = changed
        return function(*args, **kwargs)

    def after(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        changed = hook(result, *args, **kwargs)
        return result if changed is None else changed

    def around(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return hook(function, *args, **kwargs)

    def replace(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return hook(*args, **kwargs)

    wrappers = {"before": before, "after": after, "around": around, "replace": replace}
    wrapped: Function = wrap(original, wrappers[hook_type.value])
    return wrapped


HAND_WRITTEN, CLOSURE, WRAPT = "hand-written patch", "functools.wraps closure", "wrapt.FunctionWrapper"
BY_HAND: dict[str, Callable[[Function, HookType, Function, str], Function]] = {
    HAND_WRITTEN: by_hand,
    CLOSURE: by_closure,
    WRAPT: by_wrapt,
}
if importlib.util.find_spec("ddtrace") is not None:
    BY_HAND["ddtrace"] = by_ddtrace
UNHOOKED, HOOKERY, REVERTED = "unhooked", "hookery", "hookery, reverted"
PEERS = (UNHOOKED, *BY_HAND, HOOKERY, REVERTED)


@dataclass(frozen=True)
class Row:
    """The figures of one peer over all rounds; nanoseconds per call, without the loop. ``ratio`` is to the unhooked
    call, ``ratios`` to all peers."""

    shape: str
    style: str
    hooks: str
    peer: str
    ns_median: float
    ns_p10: float
    ns_p90: float
    ratio: float
    ratios: dict[str, float]


class Subject:
    """One target of its own for one peer, hooked in that peer's way."""

    def __init__(self, peer: str, shape: str, hooks: Hooks) -> None:
        self.peer = peer
        self.name = f"hook_overhead_target_{next(_numbers)}"
        self.module = types.ModuleType(self.name)
        exec(TARGETS[shape], vars(self.module))
        self.registry = HookRegistry(counting=False)
        self.codes = [hook.__code__ for _, hook in hooks]
        holder = self.module.Owner if shape == "method" else self.module
        original = vars(holder)["f"]
        if peer in BY_HAND:
            function = original
            for hook_type, hook in hooks:
                function = BY_HAND[peer](function, hook_type, hook, shape)
            setattr(holder, "f", function)  # noqa: B010  (a class or a module)
        elif peer in (HOOKERY, REVERTED):
            sys.modules[self.name] = self.module
            target = f"{self.name}.Owner.f" if shape == "method" else f"{self.name}.f"
            for hook_type, hook in hooks:
                self.registry.register(target, hook, hook_type, source=HookSource("benchmark"))
            self.registry.apply_hooks(strict=True)
            if peer == REVERTED:
                self.registry.revert()
        owner = self.module.Owner() if shape == "method" else self.module
        loops: dict[str, Callable[[Any], Loop]] = {
            "function": function_loop,
            "method": method_loop,
            "keyword-only": keyword_loop,
        }
        self.loop = loops[shape](owner if shape == "method" else owner.f)
        try:
            self._check(original, vars(holder)["f"], len(hooks), owner)
        except AssertionError:
            self.close()
            raise

    def _check(self, original: Function, standing: Function, hooks: int, owner: Any) -> None:
        if self.peer == REVERTED and standing is not original:
            raise AssertionError("revert did not bring the original back")
        expected = 0 if self.peer in (UNHOOKED, REVERTED) else hooks
        if (ran := self._count(lambda: owner.f(1))) != expected:
            raise AssertionError(f"{self.peer} ran {ran} hooks instead of {expected}")
        if owner.f(1) != 1:
            raise AssertionError(f"{self.peer} changed the result")

    def _count(self, call: Function) -> int:
        """How many of the hooks a call runs."""
        ran = 0

        def profile(frame: types.FrameType, event: str, argument: Any) -> None:
            nonlocal ran
            ran += event == "call" and frame.f_code in self.codes

        sys.setprofile(profile)
        try:
            call()
        finally:
            sys.setprofile(None)
        return ran

    def close(self) -> None:
        self.registry.reset()
        sys.modules.pop(self.name, None)


_numbers = itertools.count()


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


def keyword_loop(f: Function) -> Loop:
    def loop(calls: int) -> float:
        repeat = itertools.repeat(None, calls)
        started = time.perf_counter_ns()
        for _ in repeat:
            f(1, y=2)
        return (time.perf_counter_ns() - started) / calls

    return loop


LOOPS: dict[str, Callable[[Any], Loop]] = {
    "function": function_loop,
    "method": method_loop,
    "keyword-only": keyword_loop,
}


def empty_loop(calls: int) -> float:
    repeat = itertools.repeat(None, calls)
    started = time.perf_counter_ns()
    for _ in repeat:
        pass
    return (time.perf_counter_ns() - started) / calls


def measure(shape: str, style: str, hooks_name: str, *, rounds: int, calls: int) -> list[Row]:
    """Time all peers on one shape of target with one set of hooks."""
    hooks = make_hooks(shape, style, SCENARIOS[hooks_name])
    subjects = [Subject(peer, shape, hooks) for peer in PEERS]
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
    return [row(shape, style, hooks_name, peer, times) for peer in PEERS]


def median_ratio(mine: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(mine, others, strict=True))


def row(shape: str, style: str, hooks: str, peer: str, times: dict[str, list[float]]) -> Row:
    ordered = sorted(times[peer])
    last = len(ordered) - 1
    return Row(
        shape,
        style,
        hooks,
        peer,
        ns_median=statistics.median(ordered),
        ns_p10=ordered[round(last * 0.1)],
        ns_p90=ordered[round(last * 0.9)],
        ratio=median_ratio(times[peer], times[UNHOOKED]),
        ratios={other: median_ratio(times[peer], times[other]) for other in PEERS}
        if peer in (HOOKERY, REVERTED)
        else {},
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


@dataclass(frozen=True)
class Limit:
    """What a hooked call may cost, as a ratio of hookery to a peer; ``worst`` is the worst of the cells it is for."""

    name: str
    limit: float
    worst: float

    @property
    def kept(self) -> bool:
        return self.worst <= self.limit


FOUR = "BEFORE+AFTER+2 AROUND"


def limits(rows: Sequence[Row]) -> list[Limit]:
    """The limits, beside what was measured."""

    def worst(peer: str, shape: str, styles: Sequence[str], *, four: bool, of: str = HOOKERY) -> float:
        chosen = [
            found.ratios[peer]
            for found in rows
            if found.peer == of and found.shape == shape and found.style in styles and (found.hooks == FOUR) is four
        ]
        return max(chosen)

    generic, typed = STYLES
    return [
        Limit("one typed hook : hand-written patch", 1.15, worst(HAND_WRITTEN, "function", [typed], four=False)),
        Limit("one *args, **kwargs hook : closure", 1.0, worst(CLOSURE, "function", [generic], four=False)),
        Limit("four typed hooks : four closures", 0.6, worst(CLOSURE, "function", [typed], four=True)),
        Limit("four hooks, positional : four closures", 0.6, worst(CLOSURE, "function", [generic], four=True)),
        Limit("four hooks, keyword-only : four closures", 0.85, worst(CLOSURE, "keyword-only", [generic], four=True)),
        Limit("four hooks : four wrapt wrappers", 0.15, worst(WRAPT, "function", STYLES, four=True)),
    ]


def format_limits(found: Sequence[Limit]) -> str:
    width = max(len(limit.name) for limit in found)
    lines = [
        f"{limit.name:<{width}}  {limit.worst:5.2f}x  (limit {limit.limit:.2f}x){'' if limit.kept else '  NOT KEPT'}"
        for limit in found
    ]
    return "\n".join(["", "limits (the worst type of hook)", *lines, "reverted: the very object that was there before"])


def format_rows(rows: Sequence[Row]) -> str:
    """A table per shape and style: one line per peer, one column per set of hooks."""
    columns = list(dict.fromkeys(row.hooks for row in rows))
    found = {(row.shape, row.style, row.peer, row.hooks): row for row in rows}
    width = max(len(peer) for peer in [*PEERS, *(f"{shape}, {style}" for shape in SHAPES for style in STYLES)])
    lines = []
    for shape, style in dict.fromkeys((row.shape, row.style) for row in rows):
        cells = [f"{name:>28}" for name in columns]
        title = f"{shape}, {style}"
        lines += ["", f"{title:<{width}}" + "".join(cells), "-" * (width + 28 * len(columns))]
        for peer in dict.fromkeys(row.peer for row in rows):
            cells = []
            for name in columns:
                cell = found[shape, style, peer, name]
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
        for style in STYLES
        for hooks in SCENARIOS
        for found in measure(shape, style, hooks, rounds=options.rounds, calls=options.calls)
    ]
    if options.json:
        header = {**versions(), "rounds": options.rounds, "calls": options.calls}
        measured = {"rows": [asdict(found) for found in rows], "limits": [asdict(each) for each in limits(rows)]}
        print(json.dumps({**header, **measured}, indent=2))
        return
    print("A hooked call: median nanoseconds [10th-90th percentile], ratio to the unhooked call")
    for name, value in versions().items():
        print(f"{name:>8}: {value}")
    print(f"{'rounds':>8}: {options.rounds} of {options.calls} calls, peers interleaved, gc off, the loop taken off")
    print(format_rows(rows))
    print(format_limits(limits(rows)))


if __name__ == "__main__":
    main()
