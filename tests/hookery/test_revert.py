"""Transactions, taking hooks back, and the law that afterwards everything is the object it was."""

from __future__ import annotations

import re
import sys
import types
import warnings
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from hookery import HookApplyError, HookError, HookRegistry, HookSource, HookState, HookType, HookWarning, patch_table
from tests.hookery.support import Modules

SHOP = """
    def price(item): return item
    def cost(item): return item
    class Till:
        def sell(self, item): return item
"""


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


def shout(result: str, *args: Any) -> str:
    return result.upper()


def sign(result: str, *args: Any) -> str:
    return result + "!"


class TestTransactions:
    def test_a_source_that_fails_halfway_is_undone_and_the_others_stand(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        original_cost = shop.cost
        bad, good = HookSource("bad"), HookSource("good")
        registry.register("shop.price", shout, HookType.AFTER, source=bad)
        registry.register("shop.price", sign, HookType.AFTER, source=good)
        registry.register("shop.cost", shout, HookType.AFTER, source=bad)
        registry.register("shop.Till", shout, HookType.AFTER, source=bad)  # a class takes no such hook
        with pytest.raises(HookApplyError, match="can only be REPLACEd"):
            registry.apply_hooks()
        assert shop.price("tea") == "tea!"
        assert shop.cost is original_cost
        states = {(record.source, record.target): record.state for record in registry.applied_hooks()}
        assert states == {
            ("bad", "shop.price"): "reverted",
            ("good", "shop.price"): "applied",
            ("bad", "shop.cost"): "reverted",
            ("bad", "shop.Till"): "reverted",
        }

    def test_what_was_undone_says_why(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        hook = registry.register("shop.price", shout, HookType.AFTER)
        registry.register("shop.Till", shout, HookType.AFTER)
        with pytest.raises(HookApplyError):
            registry.apply_hooks()
        assert "its source was undone" in hook.detail
        assert "shop:Till is a class" in hook.detail

    def test_hooks_of_earlier_rounds_are_undone_with_their_source(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        original = shop.price
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        registry.register("shop.Till", shout, HookType.AFTER)
        with pytest.raises(HookApplyError):
            registry.apply_hooks()
        assert shop.price is original

    @pytest.mark.parametrize("strict", [True, False])
    def test_only_strict_makes_a_miss_a_failure_of_its_source(
        self, shop: types.ModuleType, registry: HookRegistry, strict: bool
    ) -> None:
        registry.register("shop.price", shout, HookType.AFTER)
        registry.register("shop.prise", shout, HookType.AFTER)
        if strict:
            with pytest.raises(HookApplyError, match="did you mean 'price'"):
                registry.apply_hooks(strict=True)
        else:
            with pytest.warns(HookWarning, match="did you mean 'price'"):
                registry.apply_hooks()
        assert shop.price("tea") == ("tea" if strict else "TEA")

    def test_no_hook_of_an_undone_source_comes_back_alone(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", shout, HookType.AFTER)
        registry.register("shop.late", shout, HookType.AFTER)
        with pytest.raises(HookApplyError):
            registry.apply_hooks(strict=True)
        shop.late = lambda: "late"
        registry.apply_hooks()
        assert (shop.price("tea"), shop.late()) == ("tea", "late")
        assert {record.state for record in registry.applied_hooks()} == {"reverted"}

    def test_every_failing_source_is_named(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.prise", shout, HookType.AFTER, source=HookSource("a"))
        registry.register("shop.Till", shout, HookType.AFTER, source=HookSource("b"))
        with pytest.raises(HookApplyError, match=r"(?s)shop\.prise.*shop:Till|shop:Till.*shop\.prise"):
            registry.apply_hooks(strict=True)

    def test_applying_again_changes_nothing(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        stand_in, records = shop.price, registry.applied_hooks()
        registry.apply_hooks()
        assert shop.price is stand_in
        assert shop.price("tea") == "tea!"
        assert [record.state for record in registry.applied_hooks()] == [record.state for record in records]


class TestRevert:
    def test_by_target(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", sign, HookType.AFTER)
        registry.register("shop.cost", sign, HookType.AFTER)
        registry.apply_hooks()
        registry.revert("shop.price")
        assert (shop.price("tea"), shop.cost("tea")) == ("tea", "tea!")

    @pytest.mark.parametrize("source", [HookSource("plug", "plug-dist", "1.0"), "plug", "plug-dist"])
    def test_by_source_its_name_or_its_distribution(
        self, shop: types.ModuleType, registry: HookRegistry, source: HookSource | str
    ) -> None:
        plug = HookSource("plug", "plug-dist", "1.0")
        registry.register("shop.price", shout, HookType.AFTER, source=plug)
        registry.register("shop.price", sign, HookType.AFTER, source=HookSource("other"))
        registry.register("shop.cost", shout, HookType.AFTER, source=plug)
        registry.apply_hooks()
        registry.revert(source=source)
        assert (shop.price("tea"), shop.cost("tea")) == ("tea!", "tea")

    def test_by_target_and_source(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        for target in ("shop.price", "shop.cost"):
            registry.register(target, shout, HookType.AFTER, source=HookSource("a"))
            registry.register(target, sign, HookType.AFTER, source=HookSource("b"))
        registry.apply_hooks()
        registry.revert("shop.price", source="a")
        assert (shop.price("tea"), shop.cost("tea")) == ("tea!", "TEA!")

    @pytest.mark.parametrize(
        ("target", "source"), [("shop.prise", None), (None, "nobody"), ("shop.price", "nobody"), ("shop.cost", "a")]
    )
    def test_naming_what_is_not_registered_is_an_error(
        self, shop: types.ModuleType, registry: HookRegistry, target: str | None, source: str | None
    ) -> None:
        registry.register("shop.price", sign, HookType.AFTER, source=HookSource("a"))
        registry.apply_hooks()
        with pytest.raises(HookError, match="nothing to revert"):
            registry.revert(target, source)
        assert shop.price("tea") == "tea!"

    def test_with_nothing_registered_there_is_nothing_to_do(self, registry: HookRegistry) -> None:
        registry.revert()

    def test_what_was_reverted_stays_in_the_listing_and_reset_forgets_it(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        registry.revert()
        assert [record.state for record in registry.applied_hooks()] == ["reverted"]
        registry.reset()
        assert registry.applied_hooks() == []

    def test_a_reverted_hook_is_not_applied_again(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", sign, HookType.AFTER)
        registry.revert()
        registry.apply_hooks()
        assert shop.price("tea") == "tea"

    def test_the_hooks_of_other_registries_stay(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        other = HookRegistry()
        registry.register("shop.price", shout, HookType.AFTER)
        other.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        other.apply_hooks()
        assert shop.price("tea") == "TEA!"
        registry.revert()
        assert shop.price("tea") == "tea!"
        other.revert()
        assert type(shop.price) is types.FunctionType

    def test_a_hook_that_two_registries_share_runs_once_and_until_the_last_of_them_leaves(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        other = HookRegistry()
        for each in (registry, other):
            each.register("shop.price", sign, HookType.AFTER)
            each.apply_hooks()
        assert shop.price("tea") == "tea!"
        registry.revert()
        assert shop.price("tea") == "tea!"
        assert [record.state for record in other.applied_hooks()] == ["applied"]
        other.revert()
        assert shop.price("tea") == "tea"

    def test_a_registry_that_was_forgotten_is_not_while_its_hooks_are_applied(
        self, modules: Modules, shop: types.ModuleType
    ) -> None:
        import gc
        import importlib

        HookRegistry().register("shop.price", sign, HookType.AFTER)
        (forgotten,) = [found for found in gc.get_objects() if type(found) is HookRegistry and found.applied_hooks()]
        forgotten.apply_hooks()
        del forgotten
        gc.collect()
        importlib.reload(shop)
        assert shop.price("tea") == "tea!"
        (found,) = [found for found in gc.get_objects() if type(found) is HookRegistry and found.applied_hooks()]
        found.reset()
        assert shop.price("tea") == "tea"


class TestForeignPatches:
    """What somebody else puts on top is left alone; what somebody kept passes straight through."""

    def test_a_patch_on_top_stays_and_is_reported(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        ours = shop.price

        def theirs(item: str) -> str:
            return "theirs " + str(ours(item))

        shop.price = theirs
        assert shop.price("tea") == "theirs tea!"
        with pytest.warns(HookWarning, match=r"shop:price was patched by somebody else.*theirs"):
            registry.revert()
        assert shop.price is theirs
        assert shop.price("tea") == "theirs tea"

    def test_a_hook_registered_afterwards_runs_around_the_patch(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        ours = shop.price

        def theirs(item: str) -> str:
            return "theirs " + str(ours(item))

        shop.price = theirs
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "THEIRS TEA!"
        with pytest.warns(HookWarning, match="patched by somebody else"):
            registry.revert()
        assert shop.price is theirs
        assert shop.price("tea") == "theirs tea"

    def test_a_patch_on_top_of_a_replaced_class_stays(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.Till", type("NewTill", (), {}), HookType.REPLACE)
        registry.apply_hooks()
        theirs = shop.Till = type("Theirs", (), {})
        with pytest.warns(HookWarning, match="shop:Till was patched by somebody else"):
            registry.revert()
        assert shop.Till is theirs

    @pytest.mark.parametrize("target", ["shop.price", "shop.Till.sell", "shop.SubTill.sell"])
    def test_a_mock_that_leaves_before_us(
        self, modules: Modules, registry: HookRegistry, mocker: Any, target: str
    ) -> None:
        shop = modules.load("shop", SHOP + "\n    class SubTill(Till): pass")
        before = snapshot(shop)
        registry.register(target, sign, HookType.AFTER)
        registry.apply_hooks()
        hooked = snapshot(shop)
        mocker.patch(target, return_value="mock")
        mocker.stopall()
        assert snapshot(shop) == hooked
        assert call(shop, target) == "tea!"
        registry.revert()
        assert snapshot(shop) == before

    @pytest.mark.parametrize("target", ["shop.price", "shop.Till.sell"])
    def test_a_mock_that_leaves_after_us(
        self, shop: types.ModuleType, registry: HookRegistry, mocker: Any, target: str
    ) -> None:
        registry.register(target, sign, HookType.AFTER)
        registry.apply_hooks()
        mocker.patch(target, return_value="mock")
        with pytest.warns(HookWarning, match="patched by somebody else"):
            registry.revert()
        assert call(shop, target) == "mock"
        mocker.stopall()
        assert call(shop, target) == "tea"  # the stand-in that mock had kept passes straight through

    def test_a_target_that_was_mocked_first(self, shop: types.ModuleType, registry: HookRegistry, mocker: Any) -> None:
        original = shop.price
        mock = mocker.patch("shop.price", return_value="mock")
        registry.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "mock!"
        mock.assert_called_once_with("tea")
        registry.revert()
        assert shop.price is mock
        mocker.stopall()
        assert shop.price is original

    def test_a_stand_in_that_somebody_kept_passes_straight_through_and_can_be_hooked_again(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        kept = shop.price
        registry.revert()
        assert kept("tea") == "tea"
        shop.price = kept
        registry.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "tea!"
        registry.revert()
        assert shop.price("tea") == "tea"

    def test_mocks_that_spy_see_the_hooked_calls(
        self, shop: types.ModuleType, registry: HookRegistry, mocker: Any
    ) -> None:
        registry.register("shop.price", sign, HookType.AFTER)
        registry.apply_hooks()
        spy = mocker.spy(shop, "price")
        assert shop.price("tea") == "tea!"
        assert spy.spy_return == "tea!"


def call(shop: types.ModuleType, target: str) -> Any:
    _, *path, name = target.split(".")
    holder: Any = getattr(shop, path[0])() if path else shop
    return getattr(holder, name)("tea")


def snapshot(*holders: Any) -> list[tuple[int, str, int]]:
    """The identity of everything that the holders' namespaces, and those of the classes in them, hold."""
    found = []
    for holder in holders:
        for name, value in vars(holder).items():
            if name.startswith("__"):
                continue
            found.append((id(holder), name, id(value)))
            if isinstance(value, dict):
                found += [(id(value), key, id(held)) for key, held in value.items()]
            if isinstance(value, types.FunctionType):
                found += [(id(value), "default", id(held)) for held in value.__defaults__ or ()]
            if isinstance(value, type):
                found += [(id(value), n, id(v)) for n, v in vars(value).items() if not n.startswith("__")]
    return sorted(found)


WORLD = {
    "law_shop": """
def price(item): return item
def cost(item): return item
class Till:
    def sell(self, item): return item
    @classmethod
    def open(cls, item): return item
    @staticmethod
    def quote(item): return item
class SubTill(Till):
    def extra(self, item): return item
""",
    "law_pkg": "from law_shop import price, cost, Till",
    "law_late": "",
    "law_client": "from law_shop import price as bought\nfrom law_pkg import cost, SubTill as Sub\n"
    "from law_shop import price, Till\nTABLE = {'price': price, 'cost': cost}\ndef ask(f=price): return f\n",
}
FUNCTION_TARGETS = [
    "law_shop.price",
    "law_shop:price",
    "law_pkg.price",
    "law_client.bought",
    "law_shop.cost",
    "law_shop.Till.sell",
    "law_pkg.Till.sell",
    "law_shop.Till.open",
    "law_shop.Till.quote",
    "law_shop.SubTill.sell",
    "law_shop.SubTill.open",
    "law_shop.SubTill.quote",
    "law_shop.SubTill.extra",
    "law_shop.absent",
]
CLASS_TARGETS = ["law_shop.Till", "law_pkg.Till", "law_shop.SubTill"]
CALLS: list[Any] = [
    lambda m: m["law_shop"].price("tea"),
    lambda m: m["law_pkg"].cost("tea"),
    lambda m: m["law_client"].bought("tea"),
    lambda m: m["law_shop"].Till().sell("tea"),
    lambda m: m["law_shop"].Till.open("tea"),
    lambda m: m["law_pkg"].Till.quote("tea"),
    lambda m: m["law_shop"].SubTill().sell("tea"),
    lambda m: m["law_shop"].SubTill.open("tea"),
    lambda m: m["law_shop"].SubTill().quote("tea"),
    lambda m: m["law_shop"].SubTill().extra("tea"),
]


class _Replacement:
    def sell(self, item: str) -> str:
        return item

    @classmethod
    def open(cls, item: str) -> str:
        return item

    @staticmethod
    def quote(item: str) -> str:
        return item

    def extra(self, item: str) -> str:
        return item


class Lifecycle(RuleBasedStateMachine):
    """Several registries register, apply and revert in any order. Whenever no hook is left, everything that held an
    original holds that very object again; at every moment the hooks that run are those that say they are applied."""

    hooks = Bundle("hooks")

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []
        self.functions: dict[int, Any] = {}
        self.registries = [HookRegistry() for _ in range(3)]
        self.catch = warnings.catch_warnings()
        self.catch.__enter__()
        warnings.simplefilter("ignore", HookWarning)

    def snapshot(self) -> list[tuple[int, str, int]]:
        return snapshot(*(module for name, module in self.modules.items() if name != "law_late"), _Replacement)

    def check_that_everything_is_as_it_was(self) -> None:
        assert self.snapshot() == self.before
        for name, value in vars(self.modules["law_late"]).items():
            assert name.startswith("__") or value is getattr(self.modules["law_shop"], name)

    @initialize()
    def build_the_world(self) -> None:
        self.modules: dict[str, types.ModuleType] = {}
        for name, source in WORLD.items():
            module = sys.modules[name] = self.modules[name] = types.ModuleType(name)
            exec(source.replace("SubTill as Sub", "Till as Sub"), vars(module))
        self.before = self.snapshot()

    @rule(
        target=hooks,
        registry=st.integers(0, 2),
        name=st.sampled_from(FUNCTION_TARGETS),
        hook_type=st.sampled_from(list(HookType)),
        priority=st.integers(-1, 1),
        source=st.sampled_from("ab"),
    )
    def register(self, registry: int, name: str, hook_type: HookType, priority: int, source: str) -> Any:
        number = len(self.functions)

        def before(*args: Any) -> None:
            self.log.append(number)

        def after(result: str, *args: Any) -> str:
            self.log.append(number)
            return result

        def around(original_fn: Any, *args: Any) -> Any:
            self.log.append(number)
            return original_fn(*args)

        def replace(*args: Any) -> str:
            self.log.append(number)
            return str(args[-1])

        functions = {
            HookType.BEFORE: before,
            HookType.AFTER: after,
            HookType.AROUND: around,
            HookType.REPLACE: replace,
        }
        self.functions[number] = functions[hook_type]
        return (
            registry,
            number,
            self.registries[registry].register(
                name, functions[hook_type], hook_type, priority=priority, source=HookSource(source)
            ),
        )

    @rule(registry=st.integers(0, 2), name=st.sampled_from(CLASS_TARGETS), fresh=st.booleans())
    def replace_class(self, registry: int, name: str, fresh: bool) -> None:
        replacement = type("Fresh", (_Replacement,), {}) if fresh else _Replacement
        self.registries[registry].register(name, replacement, HookType.REPLACE, source=HookSource("classes"))

    @rule(hook=hooks, registry=st.integers(0, 2))
    def register_the_same_elsewhere(self, hook: Any, registry: int) -> None:
        _, number, first = hook
        if any(known.function is self.functions[number] for known in self.registries[registry]._hooks):
            return
        self.registries[registry].register(
            first.target, self.functions[number], first.type, priority=first.priority, source=HookSource("twin")
        )

    @rule(registry=st.integers(0, 2), reach=st.sampled_from(["globals", "deep"]))
    def apply(self, registry: int, reach: Any) -> None:
        self.registries[registry].apply_hooks(reach=reach)

    @rule(name=st.sampled_from(["price", "cost", "Till"]))
    def somebody_imports(self, name: str) -> None:
        exec(f"from law_shop import {name}", vars(self.modules["law_client"]))
        if name != "Till":
            exec(f"TABLE[{name!r}] = law_shop.{name}", {**vars(self.modules["law_client"]), **self.modules})

    @rule(name=st.sampled_from(["price", "cost"]))
    def import_what_stands_there_when_all_is_applied(self, name: str) -> None:
        for registry in self.registries:
            registry.apply_hooks()
        setattr(self.modules["law_late"], name, getattr(self.modules["law_shop"], name))

    @rule(registry=st.integers(0, 2), fails=st.sampled_from(["law_shop.absent_too", "law_shop.Till"]))
    def apply_with_a_failing_source(self, registry: int, fails: str) -> None:
        chosen = self.registries[registry]
        chosen.register(fails, lambda *args: None, HookType.BEFORE, source=HookSource("a"))
        with pytest.raises(HookApplyError):
            chosen.apply_hooks(strict=True)

    @rule(hook=consumes(hooks))
    def revert_target(self, hook: Any) -> None:
        registry, _, made = hook
        if made.state is not HookState.REVERTED:
            self.registries[registry].revert(made.target)

    @rule(registry=st.integers(0, 2), source=st.sampled_from(["a", "b", "twin", "classes"]))
    def revert_source(self, registry: int, source: str) -> None:
        if any(
            hook.source.name == source and hook.state is not HookState.REVERTED
            for hook in self.registries[registry]._hooks
        ):
            self.registries[registry].revert(source=source)

    @rule(registry=st.integers(0, 2))
    def revert_all(self, registry: int) -> None:
        self.registries[registry].revert()

    @invariant()
    def what_says_it_is_applied_can_run_and_nothing_else_does(self) -> None:
        if not hasattr(self, "modules"):
            return
        self.log.clear()
        for each in CALLS:
            assert each(self.modules) == "tea"
        applied = {
            number
            for number, function in self.functions.items()
            for registry in self.registries
            for hook in registry._hooks
            if hook.function is function and hook.state is HookState.APPLIED
        }
        assert set(self.log) <= applied

    @invariant()
    def what_says_it_is_applied_runs_when_its_target_is_called(self) -> None:
        for number, function in self.functions.items():
            for hook in (hook for registry in self.registries for hook in registry._hooks):
                if hook.function is function and hook.state is HookState.APPLIED and hook.type is not HookType.REPLACE:
                    self.log.clear()
                    assert call(self.modules[re.split("[.:]", hook.target)[0]], hook.target.replace(":", ".")) == "tea"
                    assert number in self.log, hook.describe()

    @invariant()
    def with_no_hook_left_everything_is_the_object_it_was(self) -> None:
        if hasattr(self, "modules") and not patch_table.all_patches():
            self.check_that_everything_is_as_it_was()

    def teardown(self) -> None:
        try:
            for registry in reversed(self.registries):
                registry.reset()
            assert patch_table.all_patches() == []
            if hasattr(self, "modules"):
                self.check_that_everything_is_as_it_was()
        finally:
            self.catch.__exit__(None, None, None)
            for name in WORLD:
                sys.modules.pop(name, None)


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
