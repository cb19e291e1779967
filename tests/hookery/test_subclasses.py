"""Subclasses that override a hooked method: named, and hooked where that was asked for."""

from __future__ import annotations

import importlib
import types

import pytest

from hookery import HookApplyError, HookRegistry, HookType, HookWarning, format_table
from tests.hookery.support import Modules

SHOP = """
class Till:
    def sell(self, item): return [item]
    @classmethod
    def brand(cls, item): return [item]
    @staticmethod
    def cost(item): return [item]
    def lend(self, item): return [item]
class Plain(Till): pass
class Silent(Till):
    def sell(self, item): return ["silent", item]
    @classmethod
    def brand(cls, item): return ["silent", item]
    @staticmethod
    def cost(item): return ["silent", item]
class Polite(Till):
    def sell(self, item): return ["polite", *super().sell(item)]
class Below(Silent):
    def sell(self, item): return ["below", item]
    lend = None
def price(item): return item
"""


def mark(result: list[str], *args: object) -> list[str]:
    return [*result, "hooked"]


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


def overridden_by(registry: HookRegistry) -> list[tuple[str, ...]]:
    return [record.overridden_by for record in registry.applied_hooks()]


def test_overriding_subclasses_are_named(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.Till.sell", mark, HookType.AFTER)
    registry.apply_hooks()
    assert overridden_by(registry) == [("shop.Below.sell", "shop.Polite.sell", "shop.Silent.sell")]
    assert shop.Silent().sell("tea") == ["silent", "tea"]
    table = format_table({"main": registry.applied_hooks()})
    assert "mark is not on shop.Below.sell, which overrides shop.Till.sell" in table


def test_one_that_is_hooked_by_itself_is_named_no_more(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.Till.sell", mark, HookType.AFTER)
    registry.register("shop.Silent.sell", mark, HookType.AFTER)
    registry.register("shop.Plain.sell", lambda result, *args: result, HookType.AFTER)
    registry.apply_hooks()
    of_till, of_silent, of_plain = overridden_by(registry)
    assert of_till == ("shop.Below.sell", "shop.Polite.sell", "shop.Silent.sell")  # another hook, though the same code
    assert of_silent == ("shop.Below.sell",)
    assert of_plain == ()


@pytest.mark.parametrize("member", ["sell", "brand", "cost"])
def test_asked_for_they_are_hooked_and_restored(shop: types.ModuleType, registry: HookRegistry, member: str) -> None:
    before = {name: dict(vars(getattr(shop, name))) for name in ("Till", "Plain", "Silent", "Polite", "Below")}
    registry.register(f"shop.Till.{member}", mark, HookType.AFTER, subclasses=True)
    registry.apply_hooks()
    assert overridden_by(registry) == [()]
    assert getattr(shop.Silent(), member)("tea") == ["silent", "tea", "hooked"]
    assert getattr(shop.Plain(), member)("tea") == ["tea", "hooked"]
    registry.revert()
    for name, namespace in before.items():
        now = vars(getattr(shop, name))
        assert now.keys() == namespace.keys()
        assert all(now[key] is value for key, value in namespace.items())


def test_an_override_that_calls_super_runs_the_hook_once_per_level(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.Till.sell", mark, HookType.AFTER, subclasses=True)
    registry.apply_hooks()
    assert shop.Polite().sell("tea") == ["polite", "tea", "hooked", "hooked"]
    assert shop.Below().sell("tea") == ["below", "tea", "hooked"]


def test_a_subclass_that_is_defined_later_is_named_and_hooked_by_the_next_round(
    modules: Modules, shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.Till.sell", mark, HookType.AFTER, subclasses=True)
    registry.apply_hooks()
    client = modules.load("client", "import shop\nclass New(shop.Till):\n    def sell(self, item): return [item]")
    assert overridden_by(registry) == [("client.New.sell",)]
    registry.apply_hooks()
    assert overridden_by(registry) == [()]
    assert client.New().sell("tea") == ["tea", "hooked"]
    registry.apply_hooks()
    assert client.New().sell("tea") == ["tea", "hooked"]
    registry.revert("shop.Till.sell")
    assert client.New().sell("tea") == ["tea"]


def test_an_override_that_cannot_be_hooked_stays_named(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.Till.lend", mark, HookType.AFTER, subclasses=True)
    registry.apply_hooks()
    assert overridden_by(registry) == [("shop.Below.lend",)]


def test_an_override_that_the_hook_does_not_fit_undoes_its_source(modules: Modules, registry: HookRegistry) -> None:
    shop = modules.load(
        "shop",
        """
        class Till:
            async def sell(self, item): return item
        class Sub(Till):
            def sell(self, item): return item
        """,
    )
    original = shop.Till.sell

    async def hook(result: str, *args: object) -> None: ...

    registry.register("shop.Till.sell", hook, HookType.AFTER, subclasses=True)
    with pytest.raises(HookApplyError, match="coroutine function"):
        registry.apply_hooks()
    assert shop.Till.sell is original
    later = HookRegistry()
    try:
        later.register("shop.Till.lend", mark, HookType.AFTER, subclasses=True)
        with pytest.warns(HookWarning, match="'lend'"):
            later.apply_hooks()
    finally:
        later.reset()


def test_a_late_override_that_the_hook_does_not_fit_undoes_its_source(modules: Modules, registry: HookRegistry) -> None:
    shop = modules.load("shop", "class Till:\n    async def sell(self, item): return item")
    original = shop.Till.sell

    async def hook(result: str, *args: object) -> None: ...

    registry.register("shop.Till.sell", hook, HookType.AFTER, subclasses=True)
    registry.apply_hooks()
    client = modules.load("client", "import shop\nclass New(shop.Till):\n    def sell(self, item): return item")
    with pytest.raises(HookApplyError, match=r"client:New\.sell|its target is not"):
        registry.apply_hooks()
    assert shop.Till.sell is original
    assert client.New().sell("tea") == "tea"


@pytest.mark.parametrize("target", ["shop.price", "shop.Till"])
def test_it_is_for_members_of_classes(shop: types.ModuleType, registry: HookRegistry, target: str) -> None:
    class Other: ...

    hook = Other if target == "shop.Till" else mark
    registry.register(target, hook, HookType.REPLACE, subclasses=True)
    with pytest.raises(HookApplyError, match="subclasses=True is for members of classes"):
        registry.apply_hooks()


def test_after_a_reload_the_new_subclasses_are_hooked(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.Till.sell", mark, HookType.AFTER, subclasses=True)
    registry.apply_hooks()
    importlib.reload(shop)
    assert shop.Silent().sell("tea") == ["silent", "tea", "hooked"]


def test_where_the_class_is_replaced_the_hook_goes_to_the_new_ones_subclasses(
    modules: Modules, shop: types.ModuleType, registry: HookRegistry
) -> None:
    client = modules.load(
        "client",
        """
        class NewTill:
            def sell(self, item): return [item]
        class NewSub(NewTill):
            def sell(self, item): return ["new", item]
        """,
    )
    registry.register("shop.Till.sell", mark, HookType.AFTER, subclasses=True)
    registry.apply_hooks()
    registry.register("shop.Till", client.NewTill, HookType.REPLACE)
    registry.apply_hooks()
    assert client.NewSub().sell("tea") == ["new", "tea", "hooked"]
    registry.revert("shop.Till")
    assert client.NewSub().sell("tea") == ["new", "tea"]
    assert shop.Silent().sell("tea") == ["silent", "tea", "hooked"]


def test_the_decorator_takes_it_too(shop: types.ModuleType, registry: HookRegistry) -> None:
    import hookery

    try:
        hookery.plugin_hook("shop.Till.sell", HookType.AFTER, subclasses=True)(mark)
        hookery.registry.apply_hooks()
        assert shop.Silent().sell("tea") == ["silent", "tea", "hooked"]
    finally:
        hookery.registry.reset()
