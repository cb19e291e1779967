"""Targets whose module is imported later, again, half or lazily."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hookery import HookRegistry, HookSource, HookState, HookType, HookWarning, MissedHookWarning
from tests.hookery.support import Modules, run_python


def shout(result: str, *args: Any) -> str:
    return result.upper()


PRICE = "def price(item): return item"


class TestImport:
    def test_applying_imports_nothing(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(shop="raise AssertionError('imported')")
        hook = registry.register("shop.price", shout, HookType.AFTER)
        before = set(sys.modules)
        registry.apply_hooks()
        assert "shop" not in set(sys.modules) - before
        assert hook.state is HookState.PENDING
        assert "shop is not imported yet" in hook.detail

    @pytest.mark.parametrize("name", ["shop.price", "shop:price"])
    def test_the_hook_is_in_place_when_the_import_returns(
        self, modules: Modules, registry: HookRegistry, name: str
    ) -> None:
        modules.write(shop=PRICE)
        hook = registry.register(name, shout, HookType.AFTER)
        registry.apply_hooks()
        assert modules.load("shop").price("tea") == "TEA"
        assert hook.state is HookState.APPLIED

    def test_the_import_that_triggers_it_may_be_a_from_import(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(shop=PRICE, client="from shop import price")
        original = modules.load("shop").price
        modules.forget()
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        client = modules.load("client")
        assert client.price("tea") == "TEA"
        registry.revert()
        assert client.price is sys.modules["shop"].price
        assert client.price.__code__ == original.__code__
        assert type(client.price) is types.FunctionType

    def test_eager_imports_what_the_targets_need(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(store__init="", store__shop=PRICE)
        registry.register("store.shop.price", shout, HookType.AFTER)
        registry.apply_hooks(eager=True)
        assert sys.modules["store.shop"].price("tea") == "TEA"

    def test_eager_reports_an_import_that_fails_as_the_failure_of_that_source(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        from hookery import HookApplyError

        modules.write(shop="1 / 0", other=PRICE)
        registry.register("shop.price", shout, HookType.AFTER, source=HookSource("bad"))
        registry.register("other.price", shout, HookType.AFTER, source=HookSource("good"))
        with pytest.raises(HookApplyError, match="division"):
            registry.apply_hooks(eager=True)
        assert sys.modules["other"].price("tea") == "TEA"

    @pytest.mark.parametrize("name", ["store.shop.Till.sell", "store.shop:Till.sell"])
    def test_a_submodule_is_waited_for_though_its_package_is_imported(
        self, modules: Modules, registry: HookRegistry, name: str
    ) -> None:
        modules.write(store__init="", store__shop="class Till:\n    def sell(self, item): return item")
        registry.register(name, shout, HookType.AFTER)
        registry.apply_hooks()
        modules.load("store")
        registry.apply_hooks()
        assert "store.shop" not in sys.modules
        assert modules.load("store.shop").Till().sell("tea") == "TEA"

    def test_a_module_in_a_namespace_package(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(space__shop=PRICE)
        registry.register("space.shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert modules.load("space.shop").price("tea") == "TEA"

    def test_a_failed_import_raises_its_own_error_and_a_later_one_is_hooked(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        modules.write(shop="raise LookupError('not today')")
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        with pytest.raises(LookupError, match="not today"):
            importlib.import_module("shop")
        modules.write(shop=PRICE)
        assert modules.load("shop").price("tea") == "TEA"

    def test_a_replaced_class_and_its_members_wait_together(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(shop="class Till:\n    def sell(self, item): return item")

        class NewTill:
            def sell(self, item: str) -> str:
                return "new " + item

        registry.register("shop.Till.sell", shout, HookType.AFTER)
        registry.register("shop.Till", NewTill, HookType.REPLACE)
        registry.apply_hooks()
        assert modules.load("shop").Till().sell("tea") == "NEW TEA"

    def test_hooks_taken_back_while_they_wait_do_not_come(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(shop=PRICE)
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        registry.revert()
        assert modules.load("shop").price("tea") == "tea"

    def test_the_finder_is_there_only_while_it_is_needed(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(shop=PRICE)
        before = list(sys.meta_path)
        registry.register("shop.price", shout, HookType.AFTER)
        assert sys.meta_path == before
        registry.apply_hooks()
        assert sys.meta_path[1:] == before
        registry.revert()
        assert sys.meta_path == before


class TestMissDuringImport:
    def test_it_warns_and_the_import_succeeds(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(shop=PRICE)
        hook = registry.register("shop.prise", shout, HookType.AFTER)
        registry.apply_hooks()
        with pytest.warns(MissedHookWarning, match="did you mean 'price'"):
            modules.load("shop")
        assert hook.state is HookState.MISSED

    def test_it_never_raises_though_warnings_are_errors(self, modules: Modules) -> None:
        modules.write(shop=PRICE)
        out = run_python(
            """
            import hookery
            hookery.registry.register("shop.prise", print, hookery.HookType.AFTER)
            hookery.registry.apply_hooks(strict=True)
            import shop
            print(shop.price("tea"))
            """,
            path=[modules.folder],
            options=("-W", "error"),
        )
        assert out == "tea\n"

    def test_hooks_that_do_not_fit_are_taken_back_with_their_source_and_the_import_succeeds(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        modules.write(shop=PRICE + "\nclass Till: pass")
        source = HookSource("bad")
        registry.register("shop.price", shout, HookType.AFTER, source=source)
        registry.register("shop.Till", shout, HookType.AFTER, source=source)
        registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER, source=HookSource("good"))
        registry.apply_hooks()
        with pytest.warns(HookWarning, match="hooks of bad were taken back while shop was imported"):
            shop = modules.load("shop")
        assert shop.price("tea") == "tea!"


class TestHalfImported:
    def test_a_module_is_left_alone_until_its_code_has_run(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(
            shop="import client\ndef price(item): return item",
            client="import shop\nimport sys\nstate = sys.modules['hook_of_the_test'].apply()",
        )
        hook = registry.register("shop.price", shout, HookType.AFTER)
        holder = types.ModuleType("hook_of_the_test")

        def apply() -> HookState:
            registry.apply_hooks()  # shop has not defined price yet: not a miss
            return hook.state

        holder.apply = apply  # type: ignore[attr-defined]
        sys.modules["hook_of_the_test"] = holder
        try:
            shop = modules.load("shop")
        finally:
            del sys.modules["hook_of_the_test"]
        assert sys.modules["client"].state is HookState.PENDING
        assert shop.price("tea") == "TEA"

    @pytest.mark.parametrize("outcome", ["raise ImportError('halfway')", "pass"])
    def test_the_spec_of_a_module_under_way_is_an_ordinary_one_afterwards(
        self, modules: Modules, registry: HookRegistry, outcome: str
    ) -> None:
        from importlib.machinery import ModuleSpec

        modules.write(
            shop=f"""
            import sys
            registry = sys.modules["registry_of_the_test"]
            registry.apply_hooks()
            registry.specs.append(__spec__)
            {outcome}
            def price(item): return item
            """
        )
        specs: list[ModuleSpec] = []
        holder = types.SimpleNamespace(apply_hooks=registry.apply_hooks, specs=specs)
        hook = registry.register("shop.price", shout, HookType.AFTER)
        sys.modules["registry_of_the_test"] = holder  # type: ignore[assignment]
        try:
            if outcome == "pass":
                assert modules.load("shop").price("tea") == "TEA"
            else:
                with pytest.raises(ImportError, match="halfway"):
                    modules.load("shop")
                assert hook.state is HookState.PENDING
        finally:
            del sys.modules["registry_of_the_test"]
        assert [type(spec) for spec in specs] == [ModuleSpec]
        assert not any(name.startswith("_hookery") for name in vars(specs[0]))

    def test_one_that_took_the_name_halfway_through_is_rebound(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(shop="def price(item): return item\nimport client", client="from shop import price")
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        modules.load("shop")
        assert sys.modules["client"].price("tea") == "TEA"

    @pytest.mark.parametrize("name", ["store.shop.price", "store.shop:price"])
    def test_a_submodule_is_hooked_before_its_package_goes_on(
        self, modules: Modules, registry: HookRegistry, name: str
    ) -> None:
        modules.write(store__init="from store.shop import price\nearly = price('tea')", store__shop=PRICE)
        registry.register(name, shout, HookType.AFTER)
        registry.apply_hooks()
        assert modules.load("store").early == "TEA"


class TestReload:
    def test_a_reloaded_module_is_hooked_again(self, modules: Modules, registry: HookRegistry) -> None:
        shop = modules.load("shop", PRICE)
        hook = registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        modules.write(shop="def price(item): return 'reloaded ' + item")
        importlib.reload(shop)
        assert shop.price("tea") == "RELOADED TEA"
        assert hook.state is HookState.APPLIED
        registry.revert()
        assert shop.price("tea") == "reloaded tea"

    def test_who_kept_the_old_function_keeps_a_hooked_one_until_revert(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        shop = modules.load("shop", PRICE)
        original = shop.price
        client = modules.load("client", "from shop import price")
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        importlib.reload(shop)
        assert (client.price("tea"), shop.price("tea")) == ("TEA", "TEA")
        registry.revert()
        assert client.price is original
        assert shop.price is not original
        assert type(shop.price) is types.FunctionType

    def test_the_members_of_a_reloaded_class_are_hooked_and_those_of_the_old_one_stay_so(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        shop = modules.load("shop", "class Till:\n    def sell(self, item): return item")
        old = shop.Till()
        registry.register("shop.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        importlib.reload(shop)
        assert shop.Till is not type(old)
        assert (old.sell("tea"), shop.Till().sell("tea")) == ("TEA", "TEA")
        registry.revert()
        assert (old.sell("tea"), shop.Till().sell("tea")) == ("tea", "tea")

    def test_a_module_imported_anew_is_hooked_anew(self, modules: Modules, registry: HookRegistry) -> None:
        first = modules.load("shop", PRICE)
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        del sys.modules["shop"]
        second = modules.load("shop")
        assert second is not first
        assert (first.price("tea"), second.price("tea")) == ("TEA", "TEA")
        registry.revert()
        assert (first.price("tea"), second.price("tea")) == ("tea", "tea")

    def test_a_hook_that_named_the_reloaded_module_where_another_name_was_first(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        modules.write(store__init="from store.impl import price", store__impl=PRICE)
        store = modules.load("store")
        registry.register("store.price", lambda result, item: result + "1", HookType.AFTER)
        registry.register("store.impl.price", lambda result, item: result + "2", HookType.AFTER)
        registry.apply_hooks()
        importlib.reload(store.impl)
        assert store.price("tea") == "tea12"
        assert store.impl.price("tea") == "tea2"
        registry.revert()
        assert (store.price("tea"), store.impl.price("tea")) == ("tea", "tea")

    def test_a_reload_that_loses_the_target_warns_and_a_later_one_hooks_it_again(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        shop = modules.load("shop", PRICE)
        hook = registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        del shop.price
        modules.write(shop="cost = 1")
        with pytest.warns(MissedHookWarning, match="'price'"):
            importlib.reload(shop)
        assert hook.state is HookState.MISSED
        modules.write(shop=PRICE)
        importlib.reload(shop)
        assert shop.price("tea") == "TEA"

    def test_a_module_known_under_two_names(self, registry: HookRegistry) -> None:
        import os.path

        registry.register("os.path.basename", shout, HookType.AFTER)
        registry.apply_hooks()
        importlib.reload(os.path)
        assert os.path.basename("a/b") == "B"


class TestLazyPackages:
    """Applying never asks a package for an attribute that it would only make when asked."""

    MODULE_LEVEL = """
        def __getattr__(name):
            if name != "Till":
                raise AttributeError(name)
            from store.till import Till
            globals()["Till"] = Till
            return Till
    """
    CLASS_LEVEL = """
        import importlib, sys, types
        class Lazy(types.ModuleType):
            def __getattr__(self, name):
                if name != "Till":
                    raise AttributeError(name)
                self.Till = importlib.import_module("store.till").Till
                return self.Till
        sys.modules[__name__].__class__ = Lazy
    """

    @pytest.fixture(params=[MODULE_LEVEL, CLASS_LEVEL], ids=["module", "class"])
    def store(self, modules: Modules, request: pytest.FixtureRequest) -> types.ModuleType:
        modules.write(store__init=request.param, store__till="class Till:\n    def sell(self, item): return item")
        return modules.load("store")

    @pytest.mark.parametrize("name", ["store.Till.sell", "store:Till.sell"])
    def test_it_sleeps_on_and_the_hook_says_what_it_waits_for(
        self, store: types.ModuleType, registry: HookRegistry, name: str
    ) -> None:
        hook = registry.register(name, shout, HookType.AFTER)
        registry.apply_hooks()
        assert "store.till" not in sys.modules
        assert hook.state is HookState.PENDING
        assert "'Till'" in hook.detail
        assert "lazy" in hook.detail

    @pytest.mark.parametrize("name", ["store.Till.sell", "store:Till.sell"])
    def test_who_asks_for_the_attribute_first_gets_it_hooked(
        self, store: types.ModuleType, registry: HookRegistry, name: str
    ) -> None:
        registry.register(name, shout, HookType.AFTER)
        registry.apply_hooks()
        assert store.Till().sell("tea") == "TEA"

    def test_who_asks_first_gets_what_replaces_it(self, store: types.ModuleType, registry: HookRegistry) -> None:
        class NewTill: ...

        registry.register("store.Till", NewTill, HookType.REPLACE)
        registry.apply_hooks()
        assert store.Till is NewTill
        registry.revert()
        assert store.Till is sys.modules["store.till"].Till

    def test_another_attribute_and_one_that_there_is_not_are_answered_as_before(
        self, store: types.ModuleType, registry: HookRegistry
    ) -> None:
        hook = registry.register("store.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        with pytest.raises(AttributeError):
            _ = store.Nothing
        assert hook.state is HookState.PENDING

    @pytest.mark.parametrize("by", ["revert", "asking"])
    def test_once_nobody_waits_the_package_is_as_it_was(
        self, store: types.ModuleType, registry: HookRegistry, by: str
    ) -> None:
        before = (vars(store).get("__getattr__"), type(store))
        registry.register("store.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        assert (vars(store).get("__getattr__"), type(store)) != before
        if by == "revert":
            registry.revert()
        else:
            _ = store.Till
        assert (vars(store).get("__getattr__"), type(store)) == before

    def test_a_hook_that_does_not_fit_what_was_made_warns_and_the_asker_gets_it(
        self, store: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("store.Till", shout, HookType.AFTER)
        registry.apply_hooks()
        with pytest.warns(HookWarning, match="when store made 'Till'"):
            assert store.Till().sell("tea") == "tea"

    def test_a_package_that_keeps_nothing_is_hooked_too(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(
            store__init="""
            def __getattr__(name):
                import importlib
                return getattr(importlib.import_module("store.till"), name)
            """,
            store__till="class Till:\n    def sell(self, item): return item",
        )
        store = modules.load("store")
        registry.register("store.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        assert store.Till().sell("tea") == "TEA"

    def test_eager_wakes_it(self, store: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("store.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks(eager=True)
        assert store.Till().sell("tea") == "TEA"

    def test_named_where_it_is_defined_it_is_hooked_at_import(
        self, store: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("store.till.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        assert store.Till().sell("tea") == "TEA"

    def test_the_search_for_holders_wakes_nobody(self, store: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("os.path.basename", shout, HookType.AFTER)
        registry.apply_hooks()
        assert "store.till" not in sys.modules

    @pytest.mark.parametrize("hooked", ["before", "after"])
    def test_a_module_loaded_lazily_by_the_standard_library(
        self, modules: Modules, registry: HookRegistry, hooked: str
    ) -> None:
        modules.write(shop="import sys\nsys.modules['awake'] = 1\n" + PRICE)
        if hooked == "before":
            registry.register("shop.price", shout, HookType.AFTER)
            registry.apply_hooks()
        spec = importlib.util.find_spec("shop")
        assert spec is not None
        assert spec.loader is not None
        spec.loader = importlib.util.LazyLoader(spec.loader)
        shop = importlib.util.module_from_spec(spec)
        sys.modules["shop"] = shop
        spec.loader.exec_module(shop)
        if hooked == "after":
            registry.register("shop.price", shout, HookType.AFTER)
            registry.apply_hooks()
        try:
            assert "awake" not in sys.modules
            assert shop.price("tea") == "TEA"
        finally:
            sys.modules.pop("awake", None)


class TestLoaders:
    def test_module_and_spec_show_the_real_loader(self, modules: Modules, registry: HookRegistry) -> None:
        from importlib.machinery import SourceFileLoader

        modules.write(shop="during = type(__loader__), type(__spec__.loader)\n" + PRICE)
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        shop = modules.load("shop")
        assert shop.during == (SourceFileLoader, SourceFileLoader)
        assert (type(shop.__loader__), type(shop.__spec__.loader)) == (SourceFileLoader, SourceFileLoader)
        importlib.reload(shop)
        assert (type(shop.__loader__), type(shop.__spec__.loader)) == (SourceFileLoader, SourceFileLoader)

    def test_source_and_resources_of_a_watched_module_are_found(self, modules: Modules, registry: HookRegistry) -> None:
        import importlib.resources
        import inspect

        modules.write(store__init=PRICE)
        (modules.folder / "store" / "data.txt").write_text("data")
        registry.register("store.price", shout, HookType.AFTER)
        registry.apply_hooks()
        store = modules.load("store")
        assert inspect.getsource(store).strip() == PRICE
        assert importlib.resources.files("store").joinpath("data.txt").read_text() == "data"

    def test_a_target_in_a_zip_archive(
        self, tmp_path: Path, registry: HookRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = tmp_path / "archive.zip"
        with zipfile.ZipFile(archive, "w") as writer:
            writer.writestr("zipped/__init__.py", "")
            writer.writestr("zipped/shop.py", PRICE)
        monkeypatch.syspath_prepend(str(archive))
        registry.register("zipped.shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        try:
            shop = importlib.import_module("zipped.shop")
            assert shop.price("tea") == "TEA"
            assert type(shop.__loader__).__name__ == "zipimporter"
        finally:
            for name in ("zipped", "zipped.shop"):
                sys.modules.pop(name, None)

    def test_a_builtin_module_that_is_not_imported_yet(self) -> None:
        out = run_python(
            """
            import sys, hookery
            assert "_crypt" not in sys.modules
            name = next(n for n in ("_statistics", "_bisect", "_heapq", "audioop", "cmath") if n not in sys.modules)
            functions = {"_statistics": "_normal_dist_inv_cdf", "_bisect": "bisect_left", "_heapq": "heappush",
                         "cmath": "sqrt", "audioop": "add"}
            hookery.registry.register(f"{name}.{functions[name]}", lambda *a: "hooked", hookery.HookType.REPLACE)
            hookery.registry.apply_hooks()
            module = __import__(name)
            print(getattr(module, functions[name])(0.5, 0, 1), module.__spec__.loader is module.__loader__)
            """
        )
        assert out == "hooked True\n"

    def test_a_watched_module_runs_as_a_script(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(
            shop="""
            def price(item): return item
            if __name__ == "__main__":
                ran = price("tea"), type(__loader__).__name__, type(__spec__.loader).__name__
            """
        )
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        result = runpy.run_module("shop", run_name="__main__", alter_sys=True)
        assert result["ran"] == ("tea", "SourceFileLoader", "SourceFileLoader")
        assert modules.load("shop").price("tea") == "TEA"

    def test_python_m_of_a_watched_module(self, modules: Modules) -> None:
        modules.write(
            sitecustomize="""
                import hookery
                hookery.registry.register("store.main.price", lambda r, item: r.upper(), hookery.HookType.AFTER)
                hookery.registry.register("store.impl.price", lambda r, item: r.upper(), hookery.HookType.AFTER)
                hookery.registry.apply_hooks()
            """,
            store__init="",
            store__impl=PRICE,
            store__main="""
                from store.impl import price as imported
                def price(item): return item
                if __name__ == "__main__":
                    print(price("main"), imported("impl"), type(__loader__).__name__)
            """,
        )
        import os
        import subprocess

        repository = Path(__file__).parents[2]  # found before what the environment may have installed
        done = subprocess.run(
            [sys.executable, "-m", "store.main"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(modules.folder), str(repository)])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "main IMPL SourceFileLoader\n"
