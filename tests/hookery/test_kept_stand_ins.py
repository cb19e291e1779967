"""Who took a stand-in while it stood: given the original when the last hook leaves, and reached by the hooks after."""

from __future__ import annotations

import types
from typing import Any

import pytest

from hookery import HookRegistry, HookType
from tests.hookery.support import Modules

SHOP = """
def price(item): return item
class Till:
    def sell(self, item): return item
    @staticmethod
    def cost(item): return item
    @property
    def name(self): return "till"
"""
TAKEN = [
    ("shop.price", "TABLE = {'k': shop.price}", "TABLE['k']"),
    ("shop.price", "LIST = [shop.price]", "LIST[0]"),
    ("shop.price", "def ask(item, f=shop.price): return f(item)", "ask.__defaults__[0]"),
    ("shop.price", "class Other:\n    alias = shop.price", "vars(Other)['alias']"),
    ("shop.Till.sell", "TABLE = {'k': shop.Till.sell}", "TABLE['k']"),
    ("shop.Till.cost", "TABLE = {'k': shop.Till.cost}", "TABLE['k']"),
    ("shop.Till.cost", "class Other:\n    cost = vars(shop.Till)['cost']", "vars(Other)['cost'].__func__"),
    ("shop.Till.name", "class Other:\n    name = vars(shop.Till)['name']", "vars(Other)['name'].fget"),
]


def shout(result: Any, *args: Any) -> Any:
    return result.upper()


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


def original(shop: types.ModuleType, target: str) -> Any:
    if target == "shop.price":
        return shop.price
    found = vars(shop.Till)[target.rpartition(".")[2]]
    return found.fget if isinstance(found, property) else getattr(found, "__func__", found)


@pytest.mark.parametrize(("target", "code", "held"), TAKEN)
def test_who_took_it_has_the_original_after_the_last_revert(
    modules: Modules, shop: types.ModuleType, registry: HookRegistry, target: str, code: str, held: str
) -> None:
    before = original(shop, target)
    registry.register(target, shout, HookType.AFTER)
    registry.apply_hooks()
    client = modules.load("client", "import shop\n" + code)
    assert eval(held, vars(client)) is not before
    registry.revert()
    assert eval(held, vars(client)) is original(shop, target) is before


def test_a_partial_of_it_passes_through_and_is_named_when_the_target_is_hooked_again(
    modules: Modules, shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    client = modules.load("client", "import functools, shop\nask = functools.partial(shop.price, 'tea')")
    assert client.ask() == "TEA"
    registry.revert()
    assert client.ask() == "tea"
    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    assert client.ask() == "tea"
    assert registry.unreached() == {"shop.price": ["client.ask.func"]}


def test_a_global_that_came_back_with_an_old_stand_in_is_rebound_by_the_next_hooks(
    modules: Modules, shop: types.ModuleType, registry: HookRegistry
) -> None:
    before = shop.price
    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    kept = shop.price
    client = modules.load("client", "from shop import price")
    registry.revert()
    client.price = kept
    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    assert client.price("tea") == "TEA"
    registry.revert()
    assert client.price is before


def test_nothing_is_kept_alive(modules: Modules, shop: types.ModuleType, registry: HookRegistry) -> None:
    import gc
    import weakref

    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    stand_in = weakref.ref(shop.price)
    registry.revert()
    gc.collect()
    assert stand_in() is None
