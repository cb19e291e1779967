"""From a name to a target: spellings, re-exports, and names that do not exist."""

from __future__ import annotations

import sys
import types

import pytest

from hookery import (
    HookApplyError,
    HookRegistry,
    HookState,
    HookType,
    HookWarning,
    MissedHookWarning,
    TargetNotFoundError,
)
from tests.hookery.support import Modules

SHOP = """
    def price(item):
        return item

    class Till:
        class Drawer:
            def open(self):
                return "open"

        def sell(self, item):
            return item

        LIMIT = 7

    NOTHING = None
    ANSWER = 42
"""


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


def shout(result: str, *args: object) -> str:
    return result.upper()


@pytest.mark.parametrize("spelling", ["shop.Till.Drawer.open", "shop:Till.Drawer.open"])
def test_dotted_and_colon_names_reach_the_same_place(
    shop: types.ModuleType, registry: HookRegistry, spelling: str
) -> None:
    registry.register(spelling, shout, HookType.AFTER)
    registry.apply_hooks()
    assert shop.Till.Drawer().open() == "OPEN"


def test_hooks_under_both_spellings_share_one_target(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.price", lambda result, item: result + "1", HookType.AFTER)
    registry.apply_hooks()
    stand_in = shop.price
    registry.register("shop:price", lambda result, item: result + "2", HookType.AFTER)
    registry.apply_hooks()
    assert shop.price("tea") == "tea12"
    assert shop.price is stand_in


def test_the_same_hook_under_both_spellings_is_one_hook(shop: types.ModuleType, registry: HookRegistry) -> None:
    first = registry.register("shop.price", shout, HookType.AFTER)
    assert registry.register("shop:price", shout, HookType.AFTER) is first


@pytest.mark.parametrize("spelling", ["shop.Till.sell", "shop:Till.sell"])
def test_revert_takes_either_spelling(shop: types.ModuleType, registry: HookRegistry, spelling: str) -> None:
    registry.register("shop.Till.sell", shout, HookType.AFTER)
    registry.apply_hooks()
    registry.revert(spelling)
    assert shop.Till().sell("tea") == "tea"


class TestReexports:
    """What a package re-exports is one target, by whichever name it is hooked."""

    @pytest.fixture
    def package(self, modules: Modules) -> types.ModuleType:
        modules.write(
            store__init="from store.impl import price, Till",
            store__impl="""
                def price(item): return item
                class Till:
                    def sell(self, item): return item
            """,
        )
        return modules.load("store")

    @pytest.mark.parametrize("name", ["store.price", "store.impl.price", "store:price", "store.impl:price"])
    def test_a_hook_by_one_name_runs_under_both(
        self, package: types.ModuleType, registry: HookRegistry, name: str
    ) -> None:
        registry.register(name, shout, HookType.AFTER)
        registry.apply_hooks()
        assert (package.price("tea"), package.impl.price("tea")) == ("TEA", "TEA")

    def test_hooks_by_both_names_make_one_chain(self, package: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("store.price", lambda result, item: result + "1", HookType.AFTER)
        registry.register("store.impl.price", lambda result, item: result + "2", HookType.AFTER)
        registry.apply_hooks()
        assert (package.price("tea"), package.impl.price("tea")) == ("tea12", "tea12")
        assert package.price is package.impl.price

    @pytest.mark.parametrize("rounds", [1, 2])
    def test_the_same_hook_by_both_names_runs_once(
        self, package: types.ModuleType, registry: HookRegistry, rounds: int
    ) -> None:
        calls: list[str] = []

        def note(item: str) -> None:
            calls.append(item)

        first = registry.register("store.price", note, HookType.BEFORE)
        if rounds == 2:
            registry.apply_hooks()
        second = registry.register("store.impl.price", note, HookType.BEFORE)
        registry.apply_hooks()
        package.impl.price("tea")
        assert calls == ["tea"]
        assert (first.state, second.state) == (HookState.APPLIED, HookState.SKIPPED)
        assert "store.price" in second.detail

    def test_revert_by_the_other_name_takes_it_back(self, package: types.ModuleType, registry: HookRegistry) -> None:
        original = package.price
        registry.register("store.price", shout, HookType.AFTER)
        registry.apply_hooks()
        registry.revert("store.impl.price")
        assert package.price is package.impl.price is original

    def test_revert_by_one_name_takes_both_registrations(
        self, package: types.ModuleType, registry: HookRegistry
    ) -> None:
        original = package.price
        registry.register("store.price", shout, HookType.AFTER)
        registry.register("store.impl.price", shout, HookType.AFTER)
        registry.apply_hooks()
        registry.revert("store.price")
        assert package.price is package.impl.price is original

    def test_a_member_of_a_reexported_class_is_one_target(
        self, package: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("store.Till.sell", lambda result, *args: result + "1", HookType.AFTER)
        registry.register("store.impl.Till.sell", lambda result, *args: result + "2", HookType.AFTER)
        registry.apply_hooks()
        assert package.Till().sell("tea") == "tea12"
        registry.revert("store.impl.Till.sell")
        assert package.Till().sell("tea") == "tea"

    def test_an_alias_in_a_class_is_a_method_of_its_own(self, modules: Modules, registry: HookRegistry) -> None:
        shop = modules.load("shop", "class N:\n    def __add__(self, o): return 'sum'\n    __radd__ = __add__")
        registry.register("shop.N.__add__", shout, HookType.AFTER)
        registry.apply_hooks()
        assert (shop.N() + 1, 1 + shop.N()) == ("SUM", "sum")


class TestSubmodules:
    @pytest.fixture
    def store(self, modules: Modules) -> types.ModuleType:
        modules.write(
            store__init="from store.price import price",
            store__price="""
                class price:
                    def __new__(cls, item): return item
                    @staticmethod
                    def detail(): return "of the class"
                def detail(): return "of the module"
            """,
        )
        return modules.load("store")

    def test_where_a_submodule_and_an_attribute_share_a_name_the_dotted_form_means_the_submodule(
        self, store: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("store.price.detail", shout, HookType.AFTER)
        registry.apply_hooks()
        assert sys.modules["store.price"].detail() == "OF THE MODULE"

    def test_as_the_last_part_of_the_name_it_is_the_attribute(
        self, store: types.ModuleType, registry: HookRegistry
    ) -> None:
        replacement = type("Replacement", (), {})
        registry.register("store.price", replacement, HookType.REPLACE)
        registry.apply_hooks()
        assert store.price is replacement

    def test_the_colon_form_means_the_attribute(self, store: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("store:price.detail", shout, HookType.AFTER)
        registry.apply_hooks()
        assert (store.price.detail(), sys.modules["store.price"].detail()) == ("OF THE CLASS", "of the module")


def test_a_module_reached_under_another_name_is_a_module(registry: HookRegistry) -> None:
    import os.path

    original = os.path.basename
    registry.register("os.path.basename", shout, HookType.AFTER)
    registry.apply_hooks()
    assert os.path.basename("a/b") == "B"
    registry.revert()
    assert os.path.basename is original


def test_a_namespace_that_looks_like_a_module_but_is_not_imported_is_an_attribute(
    modules: Modules, registry: HookRegistry
) -> None:
    shop = modules.load("shop", "import types\nops = types.ModuleType('elsewhere.ops')\nops.add = lambda a: a")
    registry.register("shop.ops.add", shout, HookType.AFTER)
    registry.apply_hooks()
    assert shop.ops.add("tea") == "TEA"


def test_a_module_that_replaced_itself_by_an_object_is_hooked_at_the_objects_class(
    modules: Modules, registry: HookRegistry
) -> None:
    modules.write(
        shop="""
        import sys
        class Shop:
            def price(self, item): return item
        sys.modules[__name__] = Shop()
        """
    )
    import importlib

    shop = importlib.import_module("shop")
    try:
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "TEA"
    finally:
        del sys.modules["shop"]


class TestInstances:
    """A name that passes through an instance means its class."""

    SHOP = """
        import functools
        class Till:
            def sell(self, item): return item
            @property
            def total(self): return "total"
            @functools.cached_property
            def kept(self): return "kept"
        till, other = Till(), Till()
        """

    @pytest.fixture
    def shop(self, modules: Modules) -> types.ModuleType:
        return modules.load("shop", self.SHOP)

    def test_every_instance_is_hooked(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.till.sell", lambda result, *args: result.upper(), HookType.AFTER)
        registry.apply_hooks()
        assert (shop.till.sell("tea"), shop.other.sell("tea")) == ("TEA", "TEA")

    @pytest.mark.parametrize("attribute", ["sell", "only_here"])
    def test_an_attribute_of_the_instances_own_is_an_error_because_the_hook_would_not_run(
        self, shop: types.ModuleType, registry: HookRegistry, attribute: str
    ) -> None:
        setattr(shop.till, attribute, lambda item: item + "?")
        registry.register(f"shop.till.{attribute}", shout, HookType.AFTER)
        with pytest.raises(HookApplyError, match=f"the instance has a '{attribute}' of its own"):
            registry.apply_hooks()
        assert getattr(shop.till, attribute)("tea") == "tea?"
        assert shop.other.sell("tea") == "tea"

    def test_a_property_goes_before_what_the_instance_has(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        vars(shop.till)["total"] = "hidden"
        registry.register("shop.till.total", shout, HookType.AFTER)
        registry.apply_hooks()
        assert shop.till.total == "TOTAL"

    def test_what_an_instance_has_computed_is_no_attribute_of_its_own(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        assert shop.till.kept == "kept"
        registry.register("shop.till.kept", shout, HookType.AFTER)
        registry.apply_hooks()
        assert (shop.till.kept, shop.other.kept) == ("kept", "KEPT")


def test_an_attribute_of_the_metaclass_is_a_miss_that_names_the_metaclass(
    modules: Modules, registry: HookRegistry
) -> None:
    modules.load("shop", "class Meta(type):\n    def made(cls): return 'made'\nclass Till(metaclass=Meta):\n    pass")
    registry.register("shop.Till.made", shout, HookType.AFTER)
    with pytest.raises(HookApplyError, match=r"'made'; it is an attribute of its metaclass, shop\.Meta"):
        registry.apply_hooks(strict=True)


@pytest.mark.parametrize(
    "name", ["price", "", ".price", "shop.", "shop..price", "shop:", ":price", "shop:a:b", "shop.pri ce", "shop.1"]
)
def test_what_cannot_name_a_target_is_refused_at_registration(registry: HookRegistry, name: str) -> None:
    with pytest.raises(ValueError, match="does not name a hook target"):
        registry.register(name, shout, HookType.AFTER)
    assert registry.applied_hooks() == []


MISSES = [
    ("shop.prise", "'shop' has no 'prise'", "'price'"),
    ("shop:prise", "'shop' has no 'prise'", "'price'"),
    ("shop.Til.sell", "'shop' has no 'Til'", "'Till'"),
    ("shop.Till.sel", "'shop.Till' has no 'sel'", "'sell'"),
    ("shop.Till.Drawers.open", "'shop.Till' has no 'Drawers'", "'Drawer'"),
    ("jsom.dumps", "there is no module 'jsom'", "'json'"),
    ("jsom:dumps", "there is no module 'jsom'", "'json'"),
    ("json.decodr:JSONDecoder", "'json' has no 'decodr'", "'decoder'"),
]


@pytest.mark.parametrize(("name", "what", "suggestion"), MISSES)
class TestMisses:
    def test_a_miss_is_recorded_and_warned_about_with_the_nearest_names(
        self, shop: types.ModuleType, registry: HookRegistry, name: str, what: str, suggestion: str
    ) -> None:
        hook = registry.register(name, shout, HookType.AFTER)
        with pytest.warns(HookWarning) as caught:
            registry.apply_hooks()
        assert hook.state is HookState.MISSED
        for text in (str(caught[0].message), hook.detail):
            assert name in text
            assert what in text
            assert suggestion in text
        assert "shout" in str(caught[0].message)

    def test_a_miss_is_warned_about_once(
        self, shop: types.ModuleType, registry: HookRegistry, name: str, what: str, suggestion: str
    ) -> None:
        registry.register(name, shout, HookType.AFTER)
        with pytest.warns(HookWarning):
            registry.apply_hooks()
        registry.apply_hooks()  # a second warning would be an error here

    def test_strict_raises_instead_of_warning(
        self, shop: types.ModuleType, registry: HookRegistry, name: str, what: str, suggestion: str
    ) -> None:
        registry.register(name, shout, HookType.AFTER)
        with pytest.raises(HookApplyError, match=what) as caught:
            registry.apply_hooks(strict=True)
        assert suggestion in str(caught.value)
        assert isinstance(caught.value.__cause__, TargetNotFoundError)


def test_a_miss_that_came_into_being_is_applied_by_the_next_apply(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    hook = registry.register("shop.discount", shout, HookType.AFTER)
    with pytest.warns(HookWarning):
        registry.apply_hooks()
    shop.discount = lambda: "ten"
    registry.apply_hooks()
    assert (shop.discount(), hook.state) == ("TEN", HookState.APPLIED)


@pytest.mark.parametrize("name", ["shop.NOTHING", "shop.ANSWER", "shop.Till.LIMIT"])
def test_what_cannot_be_called_cannot_be_hooked(shop: types.ModuleType, registry: HookRegistry, name: str) -> None:
    before = dict(vars(shop))
    registry.register(name, shout, HookType.AFTER)
    with pytest.raises(HookApplyError, match="cannot be hooked"):
        registry.apply_hooks()
    assert dict(vars(shop)) == before


def test_a_target_whose_owner_cannot_be_changed_is_an_error_that_says_so(registry: HookRegistry) -> None:
    registry.register("builtins.str.upper", shout, HookType.AFTER)
    with pytest.raises(HookApplyError, match=r"builtins:str\.upper cannot be replaced"):
        registry.apply_hooks()
    assert "a".upper() == "A"


@pytest.mark.parametrize("error", ["AttributeError", "TypeError", "RuntimeError", "KeyError"])
@pytest.mark.parametrize("target", ["shop.Frozen.f", "shop.Frozen.Inner"])
def test_a_metaclass_that_refuses_leaves_nothing_behind(
    modules: Modules, registry: HookRegistry, error: str, target: str
) -> None:
    shop = modules.load(
        "shop",
        f"""
        class Meta(type):
            def __setattr__(cls, name, value): raise {error}("frozen")
        class Frozen(metaclass=Meta):
            class Inner: pass
            def f(self): return "plain"
        """,
    )
    hook = type("Inner", (), {}) if target.endswith("Inner") else shout
    registry.register(target, hook, HookType.REPLACE)
    with pytest.raises(HookApplyError, match="frozen"):
        registry.apply_hooks()
    assert shop.Frozen().f() == "plain"
    assert [record.state for record in registry.applied_hooks()] == ["reverted"]
    registry.apply_hooks()  # and nothing is left to fail again


def test_names_that_are_resolved_together_wait_each_for_its_own_module(
    modules: Modules, registry: HookRegistry
) -> None:
    functions = "def price(item): return item\ndef cost(item): return item"
    source = f"{functions}\nclass Till:\n    def sell(self, item): return item"
    modules.write(shop=source, depot__init="def find(item): return item", depot__shelf=source, depot__floor=source)
    modules.write(market__init="", market__stall=source)
    modules.load("depot")
    waits = {
        "shop.price": "shop",
        "shop.Till.sell": "shop",
        "shop:cost": "shop",
        "market.stall.price": "market",
        "market.stall.Till.sell": "market",
        "market.stall:cost": "market.stall",
        "depot.shelf.price": "depot.shelf",
        "depot.floor.price": "depot.floor",
        "depot.shelf.Till.sell": "depot.shelf",
        "depot.floor:cost": "depot.floor",
        "depot.find": None,
    }
    hooks = {name: registry.register(name, shout, HookType.AFTER) for name in waits}
    missing = [registry.register(name, shout, HookType.AFTER) for name in ("nowhere.price", "nowhere.cost")]
    with pytest.warns(MissedHookWarning, match="nowhere"):
        registry.apply_hooks()
    assert {name: hook.waits_for for name, hook in hooks.items()} == waits
    assert [hook.state for hook in missing] == [HookState.MISSED, HookState.MISSED]
    assert (modules.load("depot.shelf").price("tea"), hooks["depot.floor.price"].state) == (
        "TEA",
        HookState.PENDING,
    )
    assert (modules.load("market.stall").cost("tea"), modules.load("depot.floor").cost("tea")) == ("TEA", "TEA")
    assert {hook.state for name, hook in hooks.items() if not name.startswith("shop")} == {HookState.APPLIED}
