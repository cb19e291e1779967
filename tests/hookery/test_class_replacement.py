"""REPLACE of a class, and the hooks on members of whichever class stands at the name."""

from __future__ import annotations

import types
from typing import Any

import pytest

from hookery import HookApplyError, HookRegistry, HookSource, HookState, HookType, HookWarning, MissedHookWarning
from tests.hookery.support import Modules

SHOP = """
    class Till:
        class Drawer:
            def open(self): return "drawer"
        def sell(self, item): return "till " + item
        def only_here(self): return "old"

    class SubTill(Till):
        pass
"""


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


@pytest.fixture
def client(modules: Modules, shop: types.ModuleType) -> types.ModuleType:
    return modules.load("client", "from shop import Till\ndef sell(item): return Till().sell(item)")


class NewTill:
    class Drawer:
        def open(self) -> str:
            return "new drawer"

    def sell(self, item: str) -> str:
        return "new " + item


class NewestTill:
    def sell(self, item: str) -> str:
        return "newest " + item


def shout(result: str, *args: Any) -> str:
    return result.upper()


def test_the_replacement_stands_at_the_name_and_with_everybody_who_imported_it(
    client: types.ModuleType, shop: types.ModuleType, registry: HookRegistry
) -> None:
    original = shop.Till
    registry.register("shop.Till", NewTill, HookType.REPLACE)
    registry.apply_hooks()
    assert shop.Till is client.Till is NewTill
    assert client.sell("tea") == "new tea"
    registry.revert()
    assert shop.Till is client.Till is original


def test_a_replacement_that_subclasses_the_original_it_imported_keeps_it(
    modules: Modules, shop: types.ModuleType, registry: HookRegistry
) -> None:
    plug = modules.load(
        "plug",
        """
        from shop import Till
        class Louder(Till):
            def sell(self, item): return super().sell(item).upper()
        """,
    )
    original = shop.Till
    registry.register("shop.Till", plug.Louder, HookType.REPLACE)
    registry.apply_hooks()
    assert shop.Till().sell("tea") == "TILL TEA"
    assert isinstance(shop.Till(), original)
    assert plug.Till is original


@pytest.mark.parametrize("hook_type", [HookType.BEFORE, HookType.AFTER, HookType.AROUND])
def test_a_class_takes_no_other_type_of_hook(
    shop: types.ModuleType, registry: HookRegistry, hook_type: HookType
) -> None:
    original = shop.Till
    registry.register("shop.Till", shout, hook_type)
    with pytest.raises(HookApplyError, match=r"shop:Till is a class; it can only be REPLACEd, by a class"):
        registry.apply_hooks()
    assert shop.Till is original


def test_a_function_cannot_replace_a_class_nor_a_class_a_method(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.Till", shout, HookType.REPLACE, source=HookSource("one"))
    registry.register("shop.Till.sell", NewTill, HookType.REPLACE, source=HookSource("other"))
    with pytest.raises(HookApplyError) as caught:
        registry.apply_hooks()
    assert "can only be REPLACEd, by a class" in str(caught.value)
    assert "a class cannot replace it" in str(caught.value)
    assert shop.Till().sell("tea") == "till tea"


@pytest.mark.parametrize("priorities", [(0, 0), (-1, 0), (0, -1), (5, 1)])
@pytest.mark.parametrize("rounds", [1, 2])
def test_of_two_replacements_the_higher_priority_wins_then_the_last_with_a_warning_that_names_both(
    client: types.ModuleType,
    shop: types.ModuleType,
    registry: HookRegistry,
    priorities: tuple[int, int],
    rounds: int,
) -> None:
    original = shop.Till
    first = registry.register("shop.Till", NewTill, HookType.REPLACE, priority=priorities[0], source=HookSource("a"))
    if rounds == 2:
        registry.apply_hooks()
    second = registry.register(
        "shop.Till", NewestTill, HookType.REPLACE, priority=priorities[1], source=HookSource("b")
    )
    winner, loser = (first, second) if priorities[0] > priorities[1] else (second, first)
    with pytest.warns(HookWarning) as caught:
        registry.apply_hooks()
    (warning,) = caught
    assert f"{winner.function_name} ({winner.source}) wins over" in str(warning.message)
    assert f"{loser.function_name} ({loser.source})" in str(warning.message)
    assert (winner.state, loser.state) == (HookState.APPLIED, HookState.SKIPPED)
    assert shop.Till is client.Till is winner.function
    registry.revert(source=winner.source)
    assert shop.Till is client.Till is loser.function
    registry.revert()
    assert shop.Till is client.Till is original


class TestMembers:
    @pytest.mark.parametrize("member_first", [True, False])
    @pytest.mark.parametrize("rounds", [1, 2])
    def test_a_hook_on_a_member_follows_to_the_replacement(
        self, shop: types.ModuleType, registry: HookRegistry, member_first: bool, rounds: int
    ) -> None:
        original_sell = shop.Till.sell
        hooks = [("shop.Till.sell", shout, HookType.AFTER), ("shop.Till", NewTill, HookType.REPLACE)]
        new_sell = NewTill.sell
        for target, hook, hook_type in hooks if member_first else reversed(hooks):
            registry.register(target, hook, hook_type)
            if rounds == 2:
                registry.apply_hooks()
        registry.apply_hooks()
        assert shop.Till().sell("tea") == "NEW TEA"
        registry.revert("shop.Till")
        assert shop.Till().sell("tea") == "TILL TEA"
        assert NewTill.sell is new_sell
        registry.revert()
        assert shop.Till.sell is original_sell

    @pytest.mark.parametrize("rounds", [1, 2])
    def test_so_does_a_hook_on_a_member_of_a_class_inside_it(
        self, shop: types.ModuleType, registry: HookRegistry, rounds: int
    ) -> None:
        registry.register("shop.Till.Drawer.open", shout, HookType.AFTER)
        if rounds == 2:
            registry.apply_hooks()
        registry.register("shop.Till", NewTill, HookType.REPLACE)
        registry.apply_hooks()
        assert shop.Till.Drawer().open() == "NEW DRAWER"
        registry.revert("shop.Till")
        assert shop.Till.Drawer().open() == "DRAWER"
        assert NewTill.Drawer().open() == "new drawer"

    @pytest.mark.parametrize("rounds", [1, 2])
    def test_so_does_one_that_names_the_class_where_it_is_reexported(
        self, client: types.ModuleType, shop: types.ModuleType, registry: HookRegistry, rounds: int
    ) -> None:
        registry.register("client.Till.sell", shout, HookType.AFTER)
        if rounds == 2:
            registry.apply_hooks()
        registry.register("shop.Till", NewTill, HookType.REPLACE)
        registry.apply_hooks()
        assert client.sell("tea") == "NEW TEA"
        registry.revert("shop.Till")
        assert client.sell("tea") == "TILL TEA"

    def test_it_follows_from_one_replacement_to_the_next(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.Till.sell", shout, HookType.AFTER)
        registry.register("shop.Till", NewTill, HookType.REPLACE)
        registry.apply_hooks()
        registry.register("shop.Till", NewestTill, HookType.REPLACE)
        with pytest.warns(HookWarning, match="wins over"):
            registry.apply_hooks()
        assert shop.Till().sell("tea") == "NEWEST TEA"
        assert NewTill().sell("tea") == "new tea"

    def test_a_member_that_the_replacement_lacks_is_missed_and_comes_back_with_the_original(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        hook = registry.register("shop.Till.only_here", shout, HookType.AFTER)
        registry.apply_hooks()
        registry.register("shop.Till", NewTill, HookType.REPLACE)
        with pytest.warns(MissedHookWarning, match="'only_here'"):
            registry.apply_hooks()
        assert hook.state is HookState.MISSED
        registry.revert("shop.Till")
        assert hook.state is HookState.APPLIED
        assert shop.Till().only_here() == "OLD"

    def test_one_that_was_taken_back_meanwhile_does_not_come_back(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.Till.only_here", shout, HookType.AFTER)
        registry.apply_hooks()
        registry.register("shop.Till", NewTill, HookType.REPLACE)
        with pytest.warns(MissedHookWarning):
            registry.apply_hooks()
        registry.revert("shop.Till.only_here")
        registry.revert("shop.Till")
        assert shop.Till().only_here() == "old"

    def test_hooks_on_an_instances_class_that_somebody_mocks_stay_where_they_are(
        self, shop: types.ModuleType, registry: HookRegistry, mocker: Any
    ) -> None:
        registry.register("shop.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        original = shop.Till
        mocker.patch("shop.Till")
        registry.register("shop.SubTill", NewTill, HookType.REPLACE)
        registry.apply_hooks()
        assert original().sell("tea") == "TILL TEA"


def test_who_imports_the_replacement_from_the_targets_name_follows_the_name(
    modules: Modules, shop: types.ModuleType, registry: HookRegistry
) -> None:
    original = shop.Till
    plug = modules.load("plug", "class New: ...\nclass Newer: ...")
    registry.register("shop.Till", plug.New, HookType.REPLACE)
    registry.apply_hooks()
    client = modules.load("client", "from shop import Till\nfrom plug import New")
    registry.register("shop.Till", plug.Newer, HookType.REPLACE, priority=1)
    with pytest.warns(HookWarning, match="wins over"):
        registry.apply_hooks()
    assert (client.Till, client.New) == (plug.Newer, plug.New)
    registry.revert()
    assert (client.Till, client.New) == (original, plug.New)


def test_existing_subclasses_keep_the_original_class(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.Till", NewTill, HookType.REPLACE)
    registry.apply_hooks()
    assert shop.SubTill().sell("tea") == "till tea"


def test_instances_made_before_keep_their_class(shop: types.ModuleType, registry: HookRegistry) -> None:
    made = shop.Till()
    registry.register("shop.Till", NewTill, HookType.REPLACE)
    registry.apply_hooks()
    assert made.sell("tea") == "till tea"


def test_the_listing_says_that_a_class_stands_there(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.Till", NewTill, HookType.REPLACE)
    registry.apply_hooks()
    (record,) = registry.applied_hooks()
    assert (record.engine, record.type, record.state) == ("class", "replace", "applied")
