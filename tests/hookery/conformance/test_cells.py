"""Every kind of target, with every type of hook, with every engine that serves it, with generic and typed hooks."""

from __future__ import annotations

import types
from typing import Any

import pytest

from hookery import HookApplyError, HookRegistry, HookType, HookWarning
from tests.hookery.conformance.cells import CASES, IN_PLACE, NOT_IN_PLACE, SHOP, Case, cell_name, cells, check
from tests.hookery.support import Modules


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


@pytest.mark.cell
@pytest.mark.parametrize("cell", cells(), ids=cell_name)
def test_a_hook_does_what_the_contract_says_and_leaves_nothing_behind(
    cell: tuple[Case, str, HookType, bool], shop: types.ModuleType, registry: HookRegistry
) -> None:
    check(cell, shop, registry)


@pytest.mark.parametrize("case", [case for case in CASES if IN_PLACE not in case.engines], ids=str)
def test_in_place_refuses_what_is_inherited_or_no_plain_function(
    case: Case, shop: types.ModuleType, registry: HookRegistry
) -> None:
    raw = case.raw(shop)
    registry.register(case.target, lambda *args, **kwargs: None, HookType.REPLACE, engine="inplace")
    with pytest.raises(HookApplyError, match="cannot be hooked in place"):
        registry.apply_hooks()
    assert case.raw(shop)[1] == raw[1]


@pytest.mark.parametrize("case", [case for case in CASES if case.engines == ("wrapt",)], ids=str)
def test_a_function_is_generated_for_plain_functions_only(
    case: Case, shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register(case.target, lambda *args, **kwargs: None, HookType.BEFORE, engine="generated")
    with pytest.raises(HookApplyError, match="no function can be generated in place of"):
        registry.apply_hooks()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("variable", [None, "", "auto", "wrapt"])
def test_left_to_itself_hookery_takes_the_first_engine_that_serves_or_wrapt_if_that_is_wished(
    case: Case,
    shop: types.ModuleType,
    registry: HookRegistry,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
) -> None:
    if variable is not None:
        monkeypatch.setenv("HOOKERY_ENGINE", variable)
    record = registry.register(case.target, lambda *args, **kwargs: None, HookType.REPLACE)
    registry.apply_hooks()
    wished = variable == "wrapt" and "wrapt" in case.engines
    assert record.engine == ("wrapt" if wished else case.engines[0])
    (listed,) = registry.applied_hooks()
    reason = "asked for by HOOKERY_ENGINE" if wished and len(case.engines) > 0 else listed.engine_reason
    assert listed.engine_reason == reason != ""


@pytest.mark.cell
@pytest.mark.parametrize("engine", NOT_IN_PLACE)
def test_all_accessors_of_a_property_are_hooked_and_leave_in_any_order(
    shop: types.ModuleType, registry: HookRegistry, engine: str
) -> None:
    original = vars(shop.Till)["total"]
    log: list[str] = []
    names = ["shop.Till.total.fset", "shop.Till.total", "shop.Till.total.fdel"]
    for order in (names, names[::-1], [names[1], names[2], names[0]]):
        for name in order:
            registry.register(name, lambda *args, name=name: log.append(name), HookType.BEFORE, engine=engine)
            registry.apply_hooks()
        shop.till.total = 1
        assert shop.till.total == "total 1"
        del shop.till.total
        assert log == names
        log.clear()
        for left, name in enumerate(names, start=1):
            registry.revert(name)
            shop.till.total = 1
            assert shop.till.total == "total 1"
            del shop.till.total
            assert log == names[left:]
            log.clear()
        assert vars(shop.Till)["total"] is original


def test_a_property_without_that_accessor_is_a_miss_that_names_those_it_has(
    modules: Modules, registry: HookRegistry
) -> None:
    modules.load("shop", "class Till:\n    @property\n    def total(self): return 1")
    registry.register("shop.Till.total.fset", lambda *args: None, HookType.BEFORE)
    with pytest.raises(HookApplyError, match="the property has fget"):
        registry.apply_hooks(strict=True)


@pytest.mark.cell
def test_an_accessor_hook_follows_a_replaced_class(shop: types.ModuleType, registry: HookRegistry) -> None:
    class NewTill:
        stored = 0

        @property
        def total(self) -> int:
            return self.stored

        @total.setter
        def total(self, value: int) -> None:
            self.stored = value

    registry.register("shop.Till.total.fset", lambda self, value: ((self, value * 2), {}), HookType.BEFORE)
    registry.apply_hooks()
    registry.register("shop.Till", NewTill, HookType.REPLACE)
    registry.apply_hooks()
    made = shop.Till()
    made.total = 4
    assert made.total == 8


class TestNone:
    """A module attribute that is None: an optional function that is not there."""

    @pytest.mark.cell
    def test_no_other_none_is_touched(self, shop: types.ModuleType, modules: Modules, registry: HookRegistry) -> None:
        client = modules.load("client", "from shop import nothing, also_nothing\nmine = None")
        registry.register("shop.nothing", lambda item: item + "!", HookType.REPLACE)
        registry.register("client.nothing", lambda item: item + "?", HookType.REPLACE)
        registry.apply_hooks()
        assert shop.nothing is not client.nothing
        assert (shop.nothing("tea"), client.nothing("tea")) == ("tea!", "tea?")
        assert shop.also_nothing is client.also_nothing is client.mine is None
        late = modules.load("late", "from shop import nothing")
        registry.revert()
        assert shop.nothing is client.nothing is late.nothing is None

    @pytest.mark.cell
    def test_what_somebody_kept_says_that_there_is_nothing(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.nothing", lambda item: item, HookType.REPLACE)
        registry.apply_hooks()
        kept = shop.nothing
        registry.revert()
        with pytest.raises(TypeError, match="shop:nothing is None"):
            kept("tea")

    @pytest.mark.parametrize("hook_type", [HookType.BEFORE, HookType.AFTER, HookType.AROUND])
    def test_it_can_only_be_replaced(self, shop: types.ModuleType, registry: HookRegistry, hook_type: HookType) -> None:
        registry.register("shop.nothing", lambda *args: None, hook_type)
        with pytest.raises(HookApplyError, match="shop:nothing is None; it cannot be hooked, only REPLACEd"):
            registry.apply_hooks()
        assert shop.nothing is None

    @pytest.mark.cell
    def test_a_coroutine_function_makes_it_one(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        import asyncio
        import inspect

        async def fetch(item: str) -> str:
            return item + "!"

        registry.register("shop.nothing", fetch, HookType.REPLACE)
        registry.apply_hooks()
        assert inspect.iscoroutinefunction(shop.nothing)
        assert asyncio.run(shop.nothing("tea")) == "tea!"
        registry.register("shop.nothing", lambda item: item + "?", HookType.REPLACE, priority=1)
        with pytest.warns(HookWarning, match="wins over"):
            registry.apply_hooks()
        assert asyncio.run(shop.nothing("tea")) == "tea?"


class TestDifferentEngines:
    def test_two_hooks_that_ask_for_different_engines_are_an_error_that_names_both(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        def one(*args: Any, **kwargs: Any) -> None: ...

        def two(*args: Any, **kwargs: Any) -> None: ...

        registry.register("shop.price", one, HookType.BEFORE, engine="wrapt")
        registry.apply_hooks()
        registry.register("shop.price", two, HookType.BEFORE, engine="inplace")
        with pytest.raises(
            HookApplyError, match=r"ask for different engines on shop:price: .*two.* for 'inplace'.*one"
        ):
            registry.apply_hooks()

    @pytest.mark.cell
    @pytest.mark.parametrize("asked", ["wrapt", "inplace"])
    @pytest.mark.parametrize("auto_first", [True, False])
    def test_a_hook_that_asks_for_none_goes_with_the_one_that_does(
        self, shop: types.ModuleType, modules: Modules, registry: HookRegistry, asked: str, auto_first: bool
    ) -> None:
        client = modules.load("client", "from shop import price")
        original = shop.price
        engines_asked = ["auto", asked] if auto_first else [asked, "auto"]
        hooks = []
        for engine in engines_asked:
            hook = registry.register("shop.price", lambda result, *args: result + "!", HookType.AFTER, engine=engine)
            registry.apply_hooks()
            hooks.append(hook)
        assert [hook.engine for hook in hooks] == [asked, asked]
        assert shop.price("tea") == client.price("tea") == "tea*1!!"
        registry.revert()
        assert shop.price is client.price is original
        assert shop.price("tea") == "tea*1"

    def test_an_unknown_engine_is_refused_at_registration(self, registry: HookRegistry) -> None:
        with pytest.raises(ValueError, match="can be 'auto', 'generated', 'wrapt' or 'inplace'"):
            registry.register("shop.price", print, HookType.BEFORE, engine="magic")

    def test_an_unknown_engine_in_the_environment_is_an_error(
        self, shop: types.ModuleType, registry: HookRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOOKERY_ENGINE", "magic")
        registry.register("shop.price", print, HookType.BEFORE)
        with pytest.raises(HookApplyError, match="HOOKERY_ENGINE is 'magic'"):
            registry.apply_hooks()

    def test_a_class_takes_no_engine(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.Till", type("New", (), {}), HookType.REPLACE, engine="wrapt")
        with pytest.raises(HookApplyError, match="its replacement stands at the name"):
            registry.apply_hooks()
