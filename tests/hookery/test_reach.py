"""Who holds the original, and what they hold while it is hooked and afterwards."""

from __future__ import annotations

import asyncio
import sys
import types
from typing import Any

import pytest

from hookery import HookRegistry, HookSource, HookType
from tests.hookery.support import Modules, run_python


def shout(result: str, *args: Any) -> str:
    return result.upper()


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", "def price(item): return item\nclass Till: pass\nalias = price")


class TestHolders:
    def test_who_imported_the_name_before_is_rebound_and_restored(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        client = modules.load("client", "from shop import price\nfrom shop import price as cost")
        original = shop.price
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert client.price is client.cost is shop.alias is shop.price
        assert client.price("tea") == "TEA"
        registry.revert()
        assert client.price is client.cost is shop.alias is shop.price is original

    def test_who_imported_the_name_while_it_was_hooked_gets_the_original_at_revert(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        original = shop.price
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        client = modules.load("client", "from shop import price")
        assert client.price("tea") == "TEA"
        registry.revert()
        assert client.price is original

    def test_who_imported_it_between_two_rounds_runs_both_hooks(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        client = modules.load("client", "from shop import price")
        registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
        registry.apply_hooks()
        assert client.price("tea") == "TEA!"

    def test_the_stand_in_stays_the_same_object_while_the_hooks_change(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.price", shout, HookType.AFTER, source=HookSource("a"))
        registry.apply_hooks()
        stand_in = shop.price
        registry.register("shop.price", lambda item: None, HookType.BEFORE, source=HookSource("b"))
        registry.apply_hooks()
        assert shop.price is stand_in
        registry.revert(source="a")
        assert shop.price is stand_in
        assert stand_in("tea") == "tea"

    def test_a_holder_that_has_let_go_is_not_given_anything_back(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        client = modules.load("client", "from shop import price")
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        client.price = "something else"
        registry.revert()
        assert client.price == "something else"

    def test_a_module_that_left_sys_modules_is_restored_too(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        client = modules.load("client", "from shop import price")
        original = shop.price
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        del sys.modules["client"]
        registry.revert()
        assert client.price is original

    def test_an_inherited_method_rebinds_nobody(self, modules: Modules, registry: HookRegistry) -> None:
        shop = modules.load(
            "shop", "def sell(self): return 'tea'\nclass Till:\n    sell = sell\nclass SubTill(Till): pass"
        )
        before = shop.sell
        registry.register("shop.SubTill.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        assert shop.sell is before
        assert (shop.SubTill().sell(), shop.Till().sell()) == ("TEA", "tea")

    def test_things_in_sys_modules_that_are_no_modules_are_left_alone(
        self, shop: types.ModuleType, registry: HookRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Touchy:
            __slots__ = ()

            def __getattr__(self, name: str) -> Any:
                raise AssertionError(f"looked at {name}")

            def __eq__(self, other: object) -> bool:
                raise AssertionError("compared")

            __hash__ = object.__hash__

        monkeypatch.setitem(sys.modules, "touchy", Touchy())  # type: ignore[misc]
        holder = types.ModuleType("holder_of_touchy")
        holder.value = Touchy()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "holder_of_touchy", holder)
        monkeypatch.setitem(sys.modules, "blocked", None)  # type: ignore[arg-type]
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "TEA"


class TestOwnModule:
    """The module that a hook was written in keeps the original, so that a hook may call what it imported."""

    @pytest.mark.parametrize(
        "sources",
        [{"early": "from shop import price as original", "late": ""}, {"early": "", "late": "import_now()"}],
        ids=["imported before", "imported after"],
    )
    def test_a_replace_that_calls_what_its_module_imported_does_not_call_itself(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry, sources: dict[str, str]
    ) -> None:
        late = "def import_now():\n    global original\n    from shop import price as original"
        modules.write(
            plug=f"{sources['early']}\n{late}\ndef louder(item): return original(item).upper()",
            client="from shop import price",
        )
        plug, client = modules.load("plug"), modules.load("client")
        registry.register("shop.price", plug.louder, HookType.REPLACE)
        registry.apply_hooks()
        if sources["late"]:
            plug.import_now()
        assert (shop.price("tea"), client.price("tea")) == ("TEA", "TEA")
        assert plug.original("tea") == "tea"

    def test_nor_does_one_whose_module_imports_it_when_the_target_was_called_already(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        plug = modules.load(
            "plug",
            """
            def original(item): return "none"
            def import_now():
                global original
                from shop import price as original
            def louder(item): return original(item).upper()
            """,
        )
        registry.register("shop.price", plug.louder, HookType.REPLACE)
        registry.apply_hooks()
        assert shop.price("tea") == "NONE"
        for _ in range(2):
            plug.import_now()
            assert shop.price("tea") == "TEA"
            assert plug.original("tea") == "tea"

    @pytest.mark.parametrize("engine", ["generated", "wrapt"])
    @pytest.mark.parametrize("kind", ["function", "coroutine", "generator"])
    def test_nor_does_one_that_imports_it_while_it_runs(
        self, modules: Modules, registry: HookRegistry, engine: str, kind: str
    ) -> None:
        before, answer, call = {
            "function": ("def", "return", "original(item)"),
            "coroutine": ("async def", "return", "await original(item)"),
            "generator": ("def", "yield", "next(original(item))"),
        }[kind]
        modules.write(
            shop=f"{before} price(item): {answer} item",
            plug=f"""
            original = None
            {before} louder(item):
                global original
                if original is None:
                    from shop import price as original
                {answer} ({call}) + "!"
            """,
        )
        shop, plug = modules.load("shop"), modules.load("plug")
        registry.register("shop.price", plug.louder, HookType.REPLACE, engine=engine)
        registry.apply_hooks()

        def ask() -> Any:
            asked = shop.price("tea")
            if kind == "coroutine":
                return asyncio.run(asked)
            return next(asked) if kind == "generator" else asked

        assert [ask(), ask()] == ["tea!", "tea!"]

    def test_so_it_is_in_a_script_that_imports_its_target_after_loading_plugins(self, modules: Modules) -> None:
        modules.write(shop="def price(item): return item")
        out = run_python(
            """
            import hookery
            @hookery.plugin_hook("shop.price", hookery.HookType.REPLACE)
            def louder(item): return price(item).upper()
            hookery.load_plugins()
            from shop import price
            import shop
            print(shop.price("tea"), shop.price("tea"))
            """,
            path=[modules.folder],
            environment={"HOOKERY_PLUGINS": ""},
        )
        assert out == "TEA TEA\n"

    def test_a_reload_of_the_plugin_that_imports_the_hooked_name_does_not_make_it_recurse(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        import importlib

        plug = modules.load(
            "plug", "from shop import price as original\ndef louder(item): return original(item).upper()"
        )
        registry.register("shop.price", plug.louder, HookType.REPLACE)
        registry.register("shop.price", lambda item: None, HookType.BEFORE, source=HookSource("another"))
        registry.apply_hooks()
        importlib.reload(plug)
        registry.register("shop.price", plug.louder, HookType.REPLACE)
        assert shop.price("tea") == "TEA"

    def test_each_target_spares_only_the_modules_of_its_own_hooks(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        modules.write(
            shop="def price(item): return item\ndef cost(item): return item",
            plug="from shop import price, cost\ndef louder(result, item): return result.upper()",
        )
        shop, plug = modules.load("shop"), modules.load("plug")
        registry.register("shop.price", plug.louder, HookType.AFTER)
        registry.register("shop.cost", shout, HookType.AFTER)
        registry.apply_hooks()
        assert (plug.price("tea"), plug.cost("tea")) == ("tea", "TEA")
        assert (shop.price("tea"), shop.cost("tea")) == ("TEA", "TEA")

    def test_when_its_hook_leaves_the_module_is_like_any_other(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        plug = modules.load("plug", "from shop import price\ndef louder(result, item): return result.upper()")
        original = shop.price
        registry.register("shop.price", plug.louder, HookType.AFTER)
        registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
        registry.apply_hooks()
        assert plug.price is original
        registry.revert(source="plug")
        assert plug.price is shop.price
        assert plug.price("tea") == "tea!"
        registry.revert()
        assert plug.price is original

    def test_a_module_that_gets_a_hook_after_it_was_rebound_is_given_the_original_back(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        plug = modules.load(
            "plug", "from shop import price as original\ndef louder(item): return original(item).upper()"
        )
        registry.register("shop.price", lambda item: None, HookType.BEFORE)
        registry.apply_hooks()
        registry.register("shop.price", plug.louder, HookType.REPLACE)
        registry.apply_hooks()
        assert shop.price("tea") == "TEA"

    @pytest.mark.parametrize("kind", ["partial", "method", "object"])
    def test_the_module_of_a_partial_a_method_or_an_object_is_where_its_code_is(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry, kind: str
    ) -> None:
        plug = modules.load(
            "plug",
            """
            import functools
            from shop import price as original
            def louder(end, item): return original(item).upper() + end
            class Louder:
                def __call__(self, item): return louder("!", item)
                def method(self, item): return louder("!", item)
            partial, method, object = functools.partial(louder, "!"), Louder().method, Louder()
            """,
        )
        registry.register("shop.price", getattr(plug, kind), HookType.REPLACE)
        registry.apply_hooks()
        assert shop.price("tea") == "TEA!"

    def test_a_hook_in_the_targets_own_module_runs_for_calls_from_that_module(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        shop = modules.load(
            "shop",
            """
            def price(item): return item
            def louder(result, item): return result.upper()
            def ask(): return price("tea")
            """,
        )
        registry.register("shop.price", shop.louder, HookType.AFTER)
        registry.apply_hooks()
        assert shop.ask() == "TEA"
        assert shop.ask() == "TEA"


class TestNobodysCodeRuns:
    """Applying, listing and taking back look at everything that is loaded, and wake none of it."""

    @pytest.fixture
    def asked(self) -> list[str]:
        return []

    @pytest.fixture(params=["module", "other"])
    def touchy(self, request: pytest.FixtureRequest, asked: list[str]) -> Any:
        """Something in `sys.modules` that reports whoever looks at it in the ordinary way."""

        def report(self: Any, name: str = "__dict__") -> Any:
            asked.append(name)
            raise RuntimeError("outside of a context")

        base = types.ModuleType if request.param == "module" else object
        made: Any = type("Touchy", (base,), {"__dict__": property(report), "__getattr__": report})
        return made("touchy") if base is types.ModuleType else made()

    @pytest.mark.parametrize("reach", ["globals", "deep"])
    def test_of_what_lies_in_sys_modules(
        self,
        shop: types.ModuleType,
        registry: HookRegistry,
        monkeypatch: pytest.MonkeyPatch,
        touchy: Any,
        asked: list[str],
        reach: Any,
    ) -> None:
        monkeypatch.setitem(sys.modules, "touchy", touchy)
        registry.register("shop.price", shout, HookType.AFTER)
        registry.register("touchy.f", shout, HookType.AFTER)
        registry.apply_hooks(reach=reach)
        registry.problems()
        assert shop.price("tea") == "TEA"
        registry.revert()
        assert asked == []

    def test_of_a_module_whose_namespace_is_hidden_its_globals_are_rebound(
        self, shop: types.ModuleType, registry: HookRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Hidden(types.ModuleType):
            @property
            def __dict__(self) -> Any:
                return {}

        hidden = Hidden("hidden")
        hidden.price = shop.price
        monkeypatch.setitem(sys.modules, "hidden", hidden)
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert hidden.price is shop.price

    def test_of_what_a_hooks_own_module_holds(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry, asked: list[str]
    ) -> None:
        class Lazy:
            @property
            def __class__(self) -> Any:
                asked.append("__class__")
                return dict

        class Meta(type):
            def __getattribute__(cls, name: str) -> Any:
                asked.append(name)
                return super().__getattribute__(name)

        plug = modules.load("plug", "def louder(result, item): return result.upper()")
        strange = Meta("Strange", (), {})
        asked.clear()
        vars(plug).update(lazy=Lazy(), Strange=strange)
        registry.register("shop.price", plug.louder, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        registry.problems()
        registry.revert()
        assert asked == []


class TestHookedHooks:
    """A hook's function may be hooked itself."""

    PLUG = "def louder(result, item): return result.upper()"

    def test_before_it_is_registered_its_hooks_run_with_it(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        plug = modules.load("plug", self.PLUG)
        registry.register("plug.louder", lambda result, *args: result + "!", HookType.AFTER)
        registry.apply_hooks()
        registry.register("shop.price", plug.louder, HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "TEA!"

    @pytest.mark.parametrize("engine", ["generated", "wrapt", "inplace"])
    def test_afterwards_the_chain_that_goes_past_them_is_named(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        plug = modules.load("plug", self.PLUG)
        registry.register("shop.price", plug.louder, HookType.AFTER, engine=engine)
        registry.apply_hooks()
        registry.register("plug.louder", lambda result, *args: result + "!", HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "TEA"
        assert registry.unreached() == {"plug.louder": ["the hooks of shop:price"]}
        assert registry.explain("plug.louder").rebound == ()


@pytest.mark.parametrize("value", ["0", "''", "True", "()"])
def test_globals_that_share_a_value_with_a_missed_target_are_untouched(
    modules: Modules, registry: HookRegistry, value: str
) -> None:
    from hookery import HookApplyError

    shop = modules.load("shop", f"price = {value}\nother = {value}")
    client = modules.load("client", f"price = {value}")
    registry.register("shop.price", lambda *args: "hooked", HookType.REPLACE)
    with pytest.raises(HookApplyError, match="cannot be hooked"):
        registry.apply_hooks()
    assert shop.price == shop.other == client.price == eval(value)


def test_equal_functions_of_other_modules_are_untouched(modules: Modules, registry: HookRegistry) -> None:
    class Equal:
        def __call__(self, item: str) -> str:
            return item

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    shop, client = modules.load("shop", ""), modules.load("client", "")
    shop.price, client.price = Equal(), Equal()
    theirs = client.price
    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    assert shop.price("tea") == "TEA"
    assert client.price is theirs
