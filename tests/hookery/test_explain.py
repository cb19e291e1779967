"""What `explain` says of a target, and what `problems` and `never_imported` find."""

from __future__ import annotations

import json
import types
from typing import Any

import pytest

import hookery
from hookery import HookRegistry, HookSource, HookType, HookWarning
from tests.hookery.support import Modules

SHOP = """
def price(item): return item
class Till:
    def sell(self, item): return item
class Sub(Till):
    def sell(self, item): return item
"""


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


def note(*args: Any) -> None: ...


def around(original_fn: Any, *args: Any) -> Any:
    return original_fn(*args)


def replace(item: str) -> str:
    return item


class TestExplain:
    def test_the_chain_is_in_the_order_of_the_call(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        registry.register("shop.price", replace, HookType.REPLACE, priority=9, source=HookSource("plug", "dist", "1.0"))
        registry.register("shop.price", around, HookType.AROUND, priority=5, count=True, reason="issue 7")
        registry.register("shop.price", note, HookType.AFTER)
        registry.apply_hooks()
        shop.price("tea")
        explained = registry.explain("shop:price")
        assert explained.state == "hooked"
        assert explained.resolves_to == "shop:price"
        assert (explained.kind, explained.inherited) == ("function", False)
        assert (explained.file, explained.line) == (shop.__file__, 2)
        assert [hook.type for hook in explained.chain] == ["around", "after", "before", "replace"]
        outermost = explained.chain[0]
        assert outermost.hook == f"{__name__}:around"
        assert (outermost.file, outermost.line) == (__file__, around.__code__.co_firstlineno)
        assert (outermost.priority, outermost.ran, outermost.calls, outermost.reason) == (5, True, 1, "issue 7")
        assert explained.chain[3].source == "plug (dist 1.0)"
        assert explained.engine is not None
        text = str(explained)
        assert text.startswith("shop:price is hooked\n  it is the function shop:price")
        assert f"1. AROUND {__name__}:around" in text
        assert "called 1 times; because: issue 7" in text
        assert "the original" not in text  # it is replaced

    def test_it_is_json_able(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        record = registry.explain("shop.price").to_dict()
        assert json.loads(json.dumps(record))["chain"][0]["type"] == "before"

    def test_it_names_who_was_rebound_and_who_was_not_reached(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        modules.load("client", "from shop import price\nprice_too = price\nT = (price,)\nU = [price]")
        registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        explained = registry.explain("shop.price")
        assert explained.rebound == ("client.price", "client.price_too")
        assert explained.unreached == ("client.T[0] (a tuple cannot be changed)", "client.U[0]")
        text = str(explained)
        assert "not reached, they call past the hooks:\n    client.T[0] (a tuple cannot be changed)" in text
        assert "2. the original" in text

    def test_it_names_overrides_that_have_none_of_the_hooks(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.Till.sell", note, HookType.BEFORE)
        registry.apply_hooks()
        assert registry.explain("shop.Till.sell").overridden_by == ("shop.Sub.sell",)
        registry.register("shop.Till.sell", note, HookType.AFTER, subclasses=True)
        registry.apply_hooks()
        assert registry.explain("shop.Till.sell").overridden_by == ()
        of_sub = registry.explain("shop.Sub.sell")
        assert [hook.type for hook in of_sub.chain] == ["after"]

    def test_hooks_of_other_registries_are_in_it(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        assert len(hookery.explain("shop.price").chain) == 1

    def test_a_hook_that_is_not_part_of_the_chain_is_listed_with_why(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.price", replace, HookType.REPLACE)
        registry.register("shop.price", lambda item: item, HookType.REPLACE, priority=1)
        with pytest.warns(HookWarning, match="two REPLACE"):
            registry.apply_hooks()
        registry.register("shop.price", note, HookType.BEFORE)
        explained = registry.explain("shop.price")
        assert [(hook.state, hook.type) for hook in explained.other_hooks] == [
            ("skipped", "replace"),
            ("pending", "before"),
        ]
        assert "skipped: outranked by" in str(explained)
        assert "; pending (" in str(explained)

    def test_a_target_that_nobody_hooked(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        explained = registry.explain("shop.Till.sell")
        assert (explained.state, explained.kind, explained.chain) == ("not hooked", "method", ())
        assert "shop.Till.sell is not hooked\n  it is the method shop:Till.sell" in str(explained)

    def test_a_pending_target_says_what_it_waits_for(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(shop=SHOP)
        registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        explained = registry.explain("shop.price")
        assert (explained.state, explained.detail) == ("pending", "shop is not imported yet")
        assert [hook.state for hook in explained.other_hooks] == ["pending"]
        assert str(explained).startswith("shop.price is pending: shop is not imported yet")

    def test_a_missed_target_says_the_nearest_names(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        explained = registry.explain("shop.prise")
        assert explained.state == "missed"
        assert "did you mean 'price'?" in explained.detail

    def test_what_cannot_name_a_target_is_an_error(self, registry: HookRegistry) -> None:
        with pytest.raises(ValueError, match="does not name a hook target"):
            registry.explain("price")

    def test_a_patch_that_somebody_put_over_the_hooks_is_said(
        self, shop: types.ModuleType, registry: HookRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        with monkeypatch.context() as patched:
            patched.setattr(shop, "price", len)
            explained = registry.explain("shop.price")
            assert explained.detail == "somebody has put a builtin_function_or_method over the hooks"
            assert [problem.kind for problem in registry.problems()] == ["displaced"]

    def test_an_inherited_target_and_a_class(self, modules: Modules, registry: HookRegistry) -> None:
        shop = modules.load("shop", SHOP + "class Heir(Till): pass\n")

        class NewTill: ...

        registry.register("shop.Heir.sell", note, HookType.BEFORE)
        registry.register("shop.Till", NewTill, HookType.REPLACE)
        registry.apply_hooks()
        heir, till = registry.explain("shop.Heir.sell"), registry.explain("shop.Till")
        assert heir.inherited
        assert "it is the inherited method shop:Heir.sell" in str(heir)
        assert (till.kind, till.line, till.engine) == ("class", 3, "class")
        assert till.unreached == (
            "shop.Heir.__bases__[0] (a tuple cannot be changed)",
            "shop.Sub.__bases__[0] (a tuple cannot be changed)",
        )
        assert till.file == shop.__file__

    def test_what_is_hooked_in_place_is_still_where_it_was_written(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.price", note, HookType.BEFORE, engine="inplace")
        registry.register("shop.Till.sell", shop.price, HookType.REPLACE)
        registry.apply_hooks()
        explained = registry.explain("shop.price")
        assert (explained.engine, explained.file, explained.line) == ("inplace", shop.__file__, 2)
        hook = registry.explain("shop.Till.sell").chain[0]
        assert (hook.file, hook.line) == (shop.__file__, 2)
        registry.revert()
        explained = registry.explain("shop.price")
        assert (explained.state, explained.file, explained.line) == ("not hooked", shop.__file__, 2)

    def test_what_is_cached_is_where_its_function_was_written(self, modules: Modules, registry: HookRegistry) -> None:
        cached = modules.load("cached", "import functools\n@functools.lru_cache\ndef f(): ...\n")
        explained = registry.explain("cached.f")
        assert (explained.file, explained.line) == (cached.__file__, 2)

    @pytest.mark.parametrize(("target", "file"), [("math.sqrt", None), ("json.decoder.scanstring", None)])
    def test_what_was_not_written_in_python_has_no_file(
        self, registry: HookRegistry, target: str, file: str | None
    ) -> None:
        import math  # noqa: F401

        explained = registry.explain(target)
        assert (explained.state, explained.file, explained.line) == ("not hooked", file, None)


class TestProblems:
    def test_there_are_none_where_every_hook_is_where_it_was_asked_for(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        modules.load("client", "from shop import price")
        registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        assert registry.problems() == []

    def test_each_kind_is_found(self, modules: Modules, shop: types.ModuleType, registry: HookRegistry) -> None:
        modules.load("client", "from shop import price\nT = (price,)")
        modules.write(later="def f(): ...")
        registry.register("shop.price", note, HookType.BEFORE)
        registry.register("shop.price", replace, HookType.REPLACE, priority=1)
        registry.register("shop.price", lambda item: item, HookType.REPLACE)
        registry.register("shop.Till.sell", note, HookType.AFTER)
        registry.register("shop.prise", note, HookType.AFTER)
        registry.register("later.f", note, HookType.AFTER)
        with pytest.warns(HookWarning):
            registry.apply_hooks()
        found = {(problem.target, problem.kind): problem for problem in registry.problems()}
        assert set(found) == {
            ("shop.price", "unreached"),
            ("shop.price", "skipped"),
            ("shop.Till.sell", "overridden"),
            ("shop.prise", "missed"),
            ("later.f", "pending"),
        }
        assert found["later.f", "pending"].waits_for == "later"
        assert found["shop.price", "unreached"].detail == "client.T[0] (a tuple cannot be changed)"
        assert str(found["shop.Till.sell", "overridden"]) == (
            f"shop.Till.sell: {__name__}:note is overridden: shop.Sub.sell overrides it"
        )
        for problem in found.values():
            assert json.loads(json.dumps(problem.to_dict())) == problem.to_dict()

    def test_a_source_that_was_undone_is_one(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        registry.register("shop.prise", note, HookType.BEFORE)
        with pytest.raises(hookery.HookApplyError):
            registry.apply_hooks(strict=True)
        assert [(problem.target, problem.kind) for problem in registry.problems()] == [
            ("shop.price", "undone"),
            ("shop.prise", "undone"),
        ]

    def test_what_was_reverted_on_purpose_is_none(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        registry.revert()
        assert registry.problems() == []


class TestNeverImported:
    def test_hooks_that_still_wait_are_listed_with_what_they_wait_for(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        modules.write(
            later__init="", later__part="def f(): ...\ndef g(): ...", lazy="def __getattr__(name): raise AttributeError"
        )
        modules.load("lazy")
        for target in ("shop.price", "later.part.f", "later.part:g", "lazy.f"):
            registry.register(target, note, HookType.BEFORE)
        registry.apply_hooks()
        assert [(problem.target, problem.waits_for) for problem in registry.never_imported()] == [
            ("later.part.f", "later"),
            ("later.part:g", "later.part"),
            ("lazy.f", "lazy"),
        ]
        modules.load("later.part")
        assert [problem.target for problem in registry.never_imported()] == ["lazy.f"]

    def test_a_hook_that_was_never_applied_says_so(self, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        (problem,) = registry.never_imported()
        assert problem.detail == "it was registered after the last apply_hooks()"


def test_the_records_are_exported_and_nothing_else_is(registry: HookRegistry) -> None:
    assert hookery.Problem.__name__ == "Problem"
    assert hookery.Explanation.__name__ == "Explanation"
    assert hookery.ExplainedHook.__name__ == "ExplainedHook"
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        hookery.Nothing  # noqa: B018
