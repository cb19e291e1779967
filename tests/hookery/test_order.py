"""The order in which the hooks of one target run, compared with a plain reading of the rules.

The rules: a REPLACE stands innermost, the highest priority winning, then the last registered. The others follow in the
order of registration, each wrapping what came before; a higher priority is further out.
"""

from __future__ import annotations

import itertools
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookery import HookRegistry, HookSource, HookState, HookType, HookWarning
from tests.hookery.support import Modules

Trace = list[tuple[str, int]]


@dataclass(frozen=True)
class Spec:
    """A hook to be: it adds its number to the argument (BEFORE, AROUND) or to the result (AFTER, AROUND, REPLACE)."""

    number: int
    type: HookType
    priority: int
    typed: bool = True  # names the target's parameter

    def function(self, trace: Trace) -> Any:
        def before(value: int) -> tuple[tuple[int], dict[str, Any]]:
            trace.append(("before", self.number))
            return (value * 3 + self.number,), {}

        def after(result: int, value: int) -> int:
            trace.append(("after", self.number))
            return result * 5 + value + self.number

        def around(original_fn: Any, value: int) -> int:
            trace.append(("in", self.number))
            result = original_fn(value * 7 + self.number)
            trace.append(("out", self.number))
            return int(result) * 11

        def replace(value: int) -> int:
            trace.append(("replace", self.number))
            return value * 13 + self.number

        named: Any = {
            HookType.BEFORE: before,
            HookType.AFTER: after,
            HookType.AROUND: around,
            HookType.REPLACE: replace,
        }[self.type]
        return named if self.typed else lambda *args, **kwargs: named(*args, **kwargs)


def call_by_the_rules(specs: list[Spec], value: int) -> tuple[int, Trace]:
    """What a target `f(value) == value` hooked with `specs`, in this order of registration, returns and runs."""
    trace: Trace = []

    def outside_in() -> Iterator[Spec]:
        for priority in sorted({spec.priority for spec in specs}, reverse=True):
            yield from (s for s in reversed(specs) if s.priority == priority and s.type is not HookType.REPLACE)

    replacement = None
    for spec in specs:
        if spec.type is HookType.REPLACE and (replacement is None or spec.priority >= replacement.priority):
            replacement = spec

    unfinished: list[tuple[Spec, int]] = []
    for spec in outside_in():
        unfinished.append((spec, value))
        if spec.type is HookType.BEFORE:
            trace.append(("before", spec.number))
            value = value * 3 + spec.number
        elif spec.type is HookType.AROUND:
            trace.append(("in", spec.number))
            value = value * 7 + spec.number
    result = value
    if replacement is not None:
        trace.append(("replace", replacement.number))
        result = value * 13 + replacement.number
    for spec, argument in reversed(unfinished):
        if spec.type is HookType.AFTER:
            trace.append(("after", spec.number))
            result = result * 5 + argument + spec.number
        elif spec.type is HookType.AROUND:
            trace.append(("out", spec.number))
            result = result * 11
    return result, trace


def test_the_rules_on_an_example_worked_by_hand() -> None:
    specs = [
        Spec(1, HookType.AROUND, 0),
        Spec(2, HookType.REPLACE, 0),
        Spec(3, HookType.BEFORE, 9),
        Spec(4, HookType.AFTER, 0),
        Spec(5, HookType.REPLACE, 0),
    ]
    expected = [("before", 3), ("in", 1), ("replace", 5), ("out", 1), ("after", 4)]
    assert call_by_the_rules(specs, 1) == ((((1 * 3 + 3) * 7 + 1) * 13 + 5) * 11 * 5 + 6 + 4, expected)


specs_lists = st.lists(
    st.tuples(st.sampled_from(list(HookType)), st.integers(-2, 2), st.booleans()),
    max_size=7,
).map(lambda drawn: [Spec(number, *options) for number, options in enumerate(drawn, start=1)])


@pytest.mark.parametrize("engine", ["generated", "wrapt", "inplace"])
@settings(deadline=None, max_examples=60)  # a pass over the modules of a process that has torch takes its time
@given(specs=specs_lists, data=st.data())
def test_any_hooks_applied_in_any_rounds_and_partly_taken_back_run_by_the_rules(
    engine: str, specs: list[Spec], data: st.DataObject
) -> None:
    module = types.ModuleType("order_target")
    exec("def f(value): return value", vars(module))
    original = vars(module)["f"]
    sys.modules["order_target"] = module
    registry = HookRegistry()
    trace: Trace = []
    standing: list[Spec] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HookWarning)  # two REPLACE hooks on one target
            for spec in specs:
                registry.register(
                    "order_target.f",
                    spec.function(trace),
                    spec.type,
                    priority=spec.priority,
                    engine=data.draw(st.sampled_from(["auto", engine]), label="engine") if standing else engine,
                    source=HookSource(f"source{spec.number}"),
                )
                standing.append(spec)
                if data.draw(st.booleans(), label="apply now"):
                    registry.apply_hooks()
                    check(module, standing, trace)
            registry.apply_hooks()
            check(module, standing, trace)
            while standing:
                leaving = data.draw(st.sampled_from(standing), label="leaving")
                registry.revert(source=f"source{leaving.number}")
                standing.remove(leaving)
                check(module, standing, trace)
        assert vars(module)["f"] is original
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HookWarning)
            registry.reset()
        del sys.modules["order_target"]


def check(module: types.ModuleType, standing: list[Spec], trace: Trace) -> None:
    for call in (lambda f: f(2), lambda f: f(value=2)):
        trace.clear()
        result = call(vars(module)["f"])
        assert (result, trace) == call_by_the_rules(standing, 2)


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", "def f(value): return value")


@pytest.mark.parametrize(
    "order", list(itertools.permutations(HookType)), ids=lambda order: "-".join(t.name for t in order)
)
def test_a_replace_is_innermost_whenever_it_was_registered(
    shop: types.ModuleType, registry: HookRegistry, order: tuple[HookType, ...]
) -> None:
    trace: Trace = []
    for number, hook_type in enumerate(order):
        registry.register("shop.f", Spec(number, hook_type, 0).function(trace), hook_type)
        registry.apply_hooks()
    shop.f(1)
    assert ("replace", order.index(HookType.REPLACE)) in trace
    inside = trace.index(("replace", order.index(HookType.REPLACE)))
    assert all(what in ("before", "in") for what, _ in trace[:inside])
    assert all(what in ("after", "out") for what, _ in trace[inside + 1 :])


def test_two_replaces_warn_once_and_name_winner_and_loser(shop: types.ModuleType, registry: HookRegistry) -> None:
    def low(value: int) -> str:
        return "low"

    def high(value: int) -> str:
        return "high"

    winner = registry.register("shop.f", high, HookType.REPLACE, priority=1)
    loser = registry.register("shop.f", low, HookType.REPLACE)
    with pytest.warns(HookWarning) as caught:
        registry.apply_hooks()
    (warning,) = caught
    assert "high" in str(warning.message)
    assert "wins over" in str(warning.message)
    assert "low" in str(warning.message)
    assert "shop:f" in str(warning.message)
    assert (winner.state, loser.state) == (HookState.APPLIED, HookState.SKIPPED)
    assert "high" in loser.detail
    registry.register("shop.f", lambda value: None, HookType.BEFORE)
    registry.apply_hooks()  # says nothing: it is known already
    assert shop.f(1) == "high"


def test_the_outranked_replace_takes_over_when_the_winner_leaves(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.f", lambda value: "first", HookType.REPLACE, source=HookSource("a"))
    loser = registry.register("shop.f", lambda value: "last", HookType.REPLACE, priority=-1, source=HookSource("b"))
    with pytest.warns(HookWarning, match="wins over"):
        registry.apply_hooks()
    assert shop.f(1) == "first"
    registry.revert(source="a")
    assert shop.f(1) == "last"
    assert loser.state is HookState.APPLIED


def test_what_an_around_hook_is_given_goes_by_the_name_of_the_target_in_every_call(
    modules: Modules, registry: HookRegistry
) -> None:
    shop = modules.load("shop", "def price(item, tax=1): return item, tax")
    seen: list[tuple[object, ...]] = []

    def outer(original_fn: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((original_fn.__name__, original_fn.__qualname__))
        return original_fn(*args, **kwargs)

    def inner(original_fn: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return original_fn(*args, **kwargs)

    registry.register("shop.price", inner, HookType.AROUND)
    registry.register("shop.price", outer, HookType.AROUND)
    registry.apply_hooks()
    for _ in range(3):
        assert shop.price("tea", tax=2) == ("tea", 2)
        assert shop.price(item="tea") == ("tea", 1)
    assert seen == [("price", "price"), (("tea",), {"tax": 2}), ("price", "price"), ((), {"item": "tea"})] * 3
    assert [record.ran for record in registry.applied_hooks()] == [True, True]
