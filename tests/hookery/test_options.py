"""What can be asked for when a hook is registered: errors that do not stop the program, versions, typed parameters."""

from __future__ import annotations

import asyncio
import importlib.metadata
import types
from typing import Any

import pytest

from hookery import HookApplyError, HookRegistry, HookState, HookType, HookWarning
from tests.hookery.support import Modules, run_python


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load(
        "shop",
        """
        def price(item, count=1, *, tax=0): return f"{item}*{count}"
        async def fetch(item): return item
        def items(count): yield from range(count)
        def anything(*args, **kwargs): return args, kwargs
        class Till:
            def sell(self, item): return item
        """,
    )


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise LookupError("sold out")


def nonsense(*args: Any, **kwargs: Any) -> Any:
    return 7


@pytest.mark.parametrize("engine", ["generated", "wrapt", "inplace"])
@pytest.mark.parametrize("hook_type", [HookType.BEFORE, HookType.AFTER])
@pytest.mark.parametrize("others", ["alone", "with others", "typed"])
class TestOnError:
    def register(self, registry: HookRegistry, hook_type: HookType, engine: str, on_error: str, others: str) -> Any:
        if others == "with others":
            registry.register("shop.price", lambda result, *args, **kwargs: result + "!", HookType.AFTER)
            registry.register("shop.price", lambda original_fn, *a, **k: original_fn(*a, **k), HookType.AROUND)
        hook: Any = refuse
        if others == "typed" and hook_type is HookType.BEFORE:
            hook = lambda item, count, *, tax: refuse()  # noqa: E731
        elif others == "typed":
            hook = lambda result, item, count, *, tax: refuse()  # noqa: E731
        made = registry.register("shop.price", hook, hook_type, engine=engine, on_error=on_error)
        registry.apply_hooks()
        return made

    def test_warn_goes_on_with_what_there_was_and_says_so_each_time(
        self, shop: types.ModuleType, registry: HookRegistry, hook_type: HookType, engine: str, others: str
    ) -> None:
        self.register(registry, hook_type, engine, "warn", others)
        for _ in range(2):
            with pytest.warns(HookWarning, match="raised LookupError: sold out"):
                assert shop.price("tea", tax=1) == ("tea*1!" if others == "with others" else "tea*1")
        record = registry.applied_hooks()[-1]
        assert (record.state, record.last_error, record.ran) == ("applied", "LookupError: sold out", True)

    def test_disable_does_so_once_and_then_the_hook_is_out(
        self, shop: types.ModuleType, registry: HookRegistry, hook_type: HookType, engine: str, others: str
    ) -> None:
        hook = self.register(registry, hook_type, engine, "disable", others)
        expected = "tea*1!" if others == "with others" else "tea*1"
        with pytest.warns(HookWarning, match="is disabled, because it raised LookupError: sold out"):
            assert shop.price("tea") == expected
        assert shop.price("tea") == expected
        registry.register("shop.price", lambda *args, **kwargs: None, HookType.BEFORE)
        registry.apply_hooks()
        assert shop.price("tea") == expected
        assert hook.state is HookState.SKIPPED
        (record,) = [record for record in registry.applied_hooks() if record.on_error == "disable"]
        assert record.detail == "disabled after an error: LookupError: sold out"
        assert record.last_error == "LookupError: sold out"
        registry.revert()
        assert hook.state is HookState.REVERTED

    def test_raise_lets_the_caller_have_it(
        self, shop: types.ModuleType, registry: HookRegistry, hook_type: HookType, engine: str, others: str
    ) -> None:
        self.register(registry, hook_type, engine, "raise", others)
        with pytest.raises(LookupError, match="sold out"):
            shop.price("tea")


class TestOnErrorOtherwise:
    @pytest.mark.parametrize("on_error", ["warn", "disable"])
    @pytest.mark.parametrize("hook_type", [HookType.AROUND, HookType.REPLACE])
    def test_only_observers_may_fail(self, registry: HookRegistry, hook_type: HookType, on_error: str) -> None:
        with pytest.raises(TypeError, match="can only be raised"):
            registry.register("shop.price", refuse, hook_type, on_error=on_error)
        assert registry.applied_hooks() == []

    def test_an_unknown_way_is_refused(self, registry: HookRegistry) -> None:
        with pytest.raises(ValueError, match="'raise', 'warn' or 'disable'"):
            registry.register("shop.price", refuse, HookType.BEFORE, on_error="ignore")

    @pytest.mark.parametrize("typed", [True, False])
    def test_what_a_before_hook_should_not_return_is_its_error(
        self, shop: types.ModuleType, registry: HookRegistry, typed: bool
    ) -> None:
        hook = (lambda self, item: nonsense()) if typed else nonsense
        registry.register("shop.Till.sell", hook, HookType.BEFORE, on_error="disable")
        registry.apply_hooks()
        with pytest.warns(HookWarning, match=r"None or \(args, kwargs\)"):
            assert shop.Till().sell("tea") == "tea"

    @pytest.mark.parametrize("typed", [True, False])
    def test_a_call_that_does_not_fit_the_target_disables_nobody(
        self, shop: types.ModuleType, registry: HookRegistry, typed: bool
    ) -> None:
        hook = registry.register("shop.price", lambda item, count, *, tax: None, HookType.BEFORE, on_error="disable")
        if not typed:
            registry.register("shop.price", lambda *args, **kwargs: None, HookType.BEFORE)
        registry.apply_hooks()
        with pytest.raises(TypeError, match=r"price\(\)"):
            shop.price("tea", 1, 2, 3)
        assert hook.state is HookState.APPLIED

    @pytest.mark.parametrize("hook_type", [HookType.BEFORE, HookType.AFTER])
    @pytest.mark.parametrize("asynchronous", [True, False])
    def test_on_coroutine_functions(
        self, shop: types.ModuleType, registry: HookRegistry, hook_type: HookType, asynchronous: bool
    ) -> None:
        async def refuse_later(*args: Any) -> None:
            raise LookupError("sold out")

        hook = refuse_later if asynchronous else refuse
        registry.register("shop.fetch", hook, hook_type, on_error="disable")
        registry.apply_hooks()
        with pytest.warns(HookWarning, match="disabled"):
            assert asyncio.run(shop.fetch("tea")) == "tea"
        assert asyncio.run(shop.fetch("tea")) == "tea"

    @pytest.mark.parametrize("hook_type", [HookType.BEFORE, HookType.AFTER])
    def test_on_generators(self, shop: types.ModuleType, registry: HookRegistry, hook_type: HookType) -> None:
        registry.register("shop.items", refuse, hook_type, on_error="warn")
        registry.apply_hooks()
        with pytest.warns(HookWarning, match="sold out"):
            assert list(shop.items(2)) == [0, 1]

    def test_where_warnings_are_errors_the_program_goes_on_all_the_same(self, modules: Modules) -> None:
        modules.write(shop="def price(item): return item")
        out = run_python(
            """
            import hookery, shop
            def refuse(item): raise LookupError("sold out")
            hookery.registry.register("shop.price", refuse, hookery.HookType.BEFORE, on_error="warn")
            hookery.registry.apply_hooks()
            print(shop.price("tea"))
            """,
            path=[modules.folder],
        )
        assert out == "tea\n"

    def test_an_interrupt_is_never_swallowed(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        registry.register("shop.price", interrupt, HookType.BEFORE, on_error="warn")
        registry.apply_hooks()
        with pytest.raises(KeyboardInterrupt):
            shop.price("tea")


class TestVersions:
    @pytest.mark.parametrize(("versions", "state"), [(">=8", "applied"), ("<2", "skipped"), (">=1,<2", "skipped")])
    def test_a_hook_for_other_versions_is_skipped_and_says_why(
        self, registry: HookRegistry, versions: str, state: str
    ) -> None:
        original = pytest.approx
        hook = registry.register("pytest.approx", lambda *args, **kwargs: None, HookType.BEFORE, versions=versions)
        registry.apply_hooks()
        assert hook.state.value == state
        assert (pytest.approx is original) is (state == "skipped")
        (record,) = registry.applied_hooks()
        assert record.versions == versions
        if state == "skipped":
            version = importlib.metadata.version("pytest")
            assert record.detail == f"it is for versions {versions}, and pytest {version} is installed"
        registry.revert()
        assert pytest.approx is original

    def test_a_target_that_another_version_does_not_have_is_no_miss(self, registry: HookRegistry) -> None:
        hook = registry.register("pytest.not_there", lambda *args: None, HookType.BEFORE, versions="<2")
        registry.apply_hooks(strict=True)
        assert hook.state is HookState.SKIPPED

    def test_the_top_level_module_may_be_named_otherwise_than_its_distribution(self, registry: HookRegistry) -> None:
        hook = registry.register("_pytest.python.Module", type("M", (), {}), HookType.REPLACE, versions="<2")
        registry.apply_hooks()
        assert "pytest" in hook.detail

    def test_what_belongs_to_no_distribution_is_an_error(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", lambda *args: None, HookType.BEFORE, versions=">=1")
        with pytest.raises(HookApplyError, match="'shop' belongs to no installed distribution"):
            registry.apply_hooks()

    def test_what_is_no_specifier_is_refused(self, registry: HookRegistry) -> None:
        with pytest.raises(ValueError, match="not a version specifier"):
            registry.register("shop.price", lambda *args: None, HookType.BEFORE, versions="new ones")

    def test_packaging_comes_with_the_first_that_asks(self) -> None:
        out = run_python(
            """
            import sys, hookery
            hookery.registry.register("json.dumps", print, hookery.HookType.BEFORE)
            before = "packaging" in sys.modules
            hookery.registry.register("json.loads", print, hookery.HookType.BEFORE, versions=">=1")
            print(before, "packaging" in sys.modules)
            """
        )
        assert out == "False True\n"


class TestTyped:
    @pytest.mark.parametrize(
        ("target", "hook_type", "hook"),
        [
            ("shop.price", HookType.BEFORE, lambda item: None),
            ("shop.price", HookType.BEFORE, lambda item, number, *, tax: None),
            ("shop.price", HookType.BEFORE, lambda item, count, tax, more: None),
            ("shop.price", HookType.AFTER, lambda: None),
            ("shop.price", HookType.AFTER, lambda item, count, *, tax: None),
            ("shop.price", HookType.AROUND, lambda original_fn, item, count: None),
            ("shop.price", HookType.REPLACE, lambda item, *, tax: None),
            ("shop.anything", HookType.BEFORE, lambda item: None),
            ("shop.Till.sell", HookType.BEFORE, lambda item: None),
            ("shop.fetch", HookType.BEFORE, lambda thing: None),
        ],
    )
    def test_a_hook_that_does_not_fit_is_an_error_that_shows_both_and_changes_nothing(
        self, shop: types.ModuleType, registry: HookRegistry, target: str, hook_type: HookType, hook: Any
    ) -> None:
        import inspect

        before = dict(vars(shop)), dict(vars(shop.Till))
        owner: Any = shop.Till if "Till" in target else shop
        parameters = str(inspect.signature(vars(owner)[target.rpartition(".")[2]]))
        registry.register(target, hook, hook_type)
        with pytest.raises(HookApplyError) as caught:
            registry.apply_hooks()
        assert isinstance(caught.value.__cause__, TypeError)
        assert parameters in str(caught.value)
        assert str(inspect.signature(hook)) in str(caught.value)
        assert (dict(vars(shop)), dict(vars(shop.Till))) == before

    @pytest.mark.parametrize(
        "hook",
        [
            lambda item, count, *, tax: (item, count, tax),
            lambda item, count, tax: (item, count, tax),
            lambda tax, count, item: (item, count, tax),
            lambda *, item, count, tax: (item, count, tax),
            lambda item, count=5, *, tax=6, own=None: (item, count, tax),
            lambda item, /, count, *, tax: (item, count, tax),
        ],
    )
    @pytest.mark.parametrize("with_generic", [True, False])
    def test_defaults_arrive_filled_in_however_the_hook_takes_them(
        self, shop: types.ModuleType, registry: HookRegistry, hook: Any, with_generic: bool
    ) -> None:
        registry.register("shop.price", hook, HookType.REPLACE)
        if with_generic:
            registry.register("shop.price", lambda *args, **kwargs: None, HookType.BEFORE)
        registry.apply_hooks()
        assert shop.price("tea") == ("tea", 1, 0)
        assert shop.price(tax=3, item="tea") == ("tea", 1, 3)

    @pytest.mark.parametrize("with_generic", [True, False])
    def test_a_before_hook_changes_what_those_further_in_get_and_nobody_else(
        self, shop: types.ModuleType, registry: HookRegistry, with_generic: bool
    ) -> None:
        seen: list[Any] = []
        registry.register("shop.price", lambda result, item, count, *, tax: seen.append(("in", count)), HookType.AFTER)
        registry.register("shop.price", lambda item, count, *, tax: ((item,), {"count": 8}), HookType.BEFORE)
        registry.register("shop.price", lambda result, item, count, *, tax: seen.append(("out", count)), HookType.AFTER)
        if with_generic:
            registry.register("shop.price", lambda *args, **kwargs: None, HookType.BEFORE)
        registry.apply_hooks()
        assert shop.price("tea") == "tea*8"
        assert seen == [("in", 8), ("out", 1)]

    def test_what_a_before_hook_returns_has_to_fit_the_target(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.fetch", lambda item: ((), {"nothing": 1}), HookType.BEFORE)
        registry.apply_hooks()
        with pytest.raises(TypeError, match=r"fetch\(\)"):
            asyncio.run(shop.fetch("tea"))

    def test_parameters_named_like_the_engines_own_do_no_harm(self, modules: Modules, registry: HookRegistry) -> None:
        odd = modules.load(
            "odd",
            """
            def f(__hookery_inner, __hookery_result=1, *, len=2): return __hookery_inner
            def hook(result, __hookery_inner, __hookery_result, *, len):
                return (result, __hookery_inner, __hookery_result, len)
            """,
        )
        registry.register("odd.f", odd.hook, HookType.AFTER)
        registry.apply_hooks()
        assert odd.f(0) == (0, 0, 1, 2)


def test_generic_hooks_see_any_call_as_it_was_passed(modules: Modules, registry: HookRegistry) -> None:
    shop = modules.load("shop", "def f(a, b=1, c=2, d=3, e=4, *, k=5, m=6): return (a, b, c, d, e, k, m)")
    seen: list[Any] = []

    def before(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))

    def around(original_fn: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return original_fn(*args, **kwargs)

    plain = shop.f
    registry.register("shop.f", before, HookType.BEFORE)
    registry.register("shop.f", lambda result, *args, **kwargs: before(*args, **kwargs), HookType.AFTER)
    registry.register("shop.f", around, HookType.AROUND)
    registry.register(
        "shop.f", around_too := (lambda original_fn, *a, **k: around(original_fn, *a, **k)), HookType.AROUND
    )
    registry.apply_hooks()
    assert around_too
    for count in range(1, 6):
        for kwargs in ({}, {"k": 9}, {"m": 9}, {"k": 8, "m": 9}, {"m": 9, "k": 8}):
            seen.clear()
            args = tuple(range(count))
            assert shop.f(*args, **kwargs) == plain(*args, **kwargs)
            assert seen == [(args, kwargs)] * 4
            assert [list(each) for _, each in seen] == [list(kwargs)] * 4
    seen.clear()
    assert shop.f(b=2, a=1) == plain(b=2, a=1)
    assert seen == [((), {"b": 2, "a": 1})] * 4
    with pytest.raises(TypeError, match=r"f\(\)"):
        shop.f()


def test_the_decorator_takes_all_options(modules: Modules) -> None:
    modules.write(shop="def price(item): return item")
    out = run_python(
        """
        import hookery, shop
        @hookery.plugin_hook("shop.price", hookery.HookType.AFTER, priority=2, engine="inplace", on_error="disable",
                             reason="because", count=True)
        def hook(result, item): return result + "!"
        hookery.registry.apply_hooks()
        print(shop.price("tea"))
        record = hookery.applied_hooks()[0]
        print(record.engine, record.engine_reason, record.on_error, record.reason, record.calls)
        """,
        path=[modules.folder],
    )
    assert out == "tea!\ninplace asked for by a hook disable because 1\n"
