"""What a hook is called with, and what becomes of what it returns, for every kind of target."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest

import hookery
from hookery import HookRegistry, HookType
from tests.hookery.support import Modules

SHOP = """
    import functools

    def price(item, count=1):
        return f"{item}*{count}"

    class Till:
        def __init__(self, name="till"):
            self.name = name

        def sell(self, item, count=1):
            return f"{self.name}:{item}*{count}"

        @classmethod
        def open(cls, item, count=1):
            return f"{cls.__name__}:{item}*{count}"

        @staticmethod
        def quote(item, count=1):
            return f"{item}*{count}"

        @functools.lru_cache
        def remembered(self, item, count=1):
            return f"{self.name}:{item}*{count}"

        def __call__(self, item, count=1):
            return f"called:{item}*{count}"


    class SubTill(Till):
        pass

    class OtherTill(Till):
        def sell(self, item, count=1):
            return f"other:{item}*{count}"

        @classmethod
        def open(cls, item, count=1):
            return f"other:{cls.__name__}:{item}*{count}"

    class BothTill(SubTill, OtherTill):
        pass

    till = Till("instance")
    cached = functools.lru_cache(price)
    half = functools.partial(price, "half")
"""

# How each kind of target is reached, what leads its arguments, and the item part of its unhooked result for "tea".
CALLS = {
    "shop.price": (lambda shop: shop.price, lambda shop: ()),
    "shop.cached": (lambda shop: shop.cached, lambda shop: ()),
    "shop.Till.quote": (lambda shop: shop.Till.quote, lambda shop: ()),
    "shop.Till.sell": (lambda shop: shop.till.sell, lambda shop: (shop.till,)),
    "shop.Till.open": (lambda shop: shop.Till.open, lambda shop: (shop.Till,)),
    "shop.Till.remembered": (lambda shop: shop.till.remembered, lambda shop: (shop.till,)),
    "shop.Till.__call__": (lambda shop: shop.till, lambda shop: (shop.till,)),
    "shop.SubTill.quote": (lambda shop: shop.SubTill.quote, lambda shop: ()),
    "shop.SubTill.open": (lambda shop: shop.SubTill.open, lambda shop: (shop.SubTill,)),
}
every_kind = pytest.mark.parametrize("target", CALLS)


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


def reach(shop: types.ModuleType, target: str) -> tuple[Any, tuple[Any, ...]]:
    callable_of, leading_of = CALLS[target]
    return callable_of(shop), leading_of(shop)


@every_kind
def test_before_sees_the_arguments_as_they_were_passed(
    shop: types.ModuleType, registry: HookRegistry, target: str
) -> None:
    seen = []
    registry.register(target, lambda *args, **kwargs: seen.append((args, kwargs)), HookType.BEFORE)
    call, leading = reach(shop, target)
    plain = call("tea", count=2)
    registry.apply_hooks()
    call, leading = reach(shop, target)
    assert call("tea", count=2) == plain
    assert call("tea", 2) == plain
    assert seen == [((*leading, "tea"), {"count": 2}), ((*leading, "tea", 2), {})]


@every_kind
def test_before_may_change_the_arguments(shop: types.ModuleType, registry: HookRegistry, target: str) -> None:
    def double(*args: Any, **kwargs: Any) -> Any:
        return args, {"count": kwargs["count"] * 2}

    registry.register(target, double, HookType.BEFORE)
    registry.apply_hooks()
    call, _ = reach(shop, target)
    assert call("tea", count=2).endswith("tea*4")


@every_kind
def test_after_sees_the_result_first_and_may_replace_it(
    shop: types.ModuleType, registry: HookRegistry, target: str
) -> None:
    seen = []

    def sign(result: str, *args: Any, **kwargs: Any) -> str:
        seen.append((result, args, kwargs))
        return result + "!"

    call, leading = reach(shop, target)
    plain = call("tea", count=2)
    registry.register(target, sign, HookType.AFTER)
    registry.apply_hooks()
    call, leading = reach(shop, target)
    assert call("tea", count=2) == plain + "!"
    assert seen == [(plain, (*leading, "tea"), {"count": 2})]


@every_kind
def test_around_calls_the_original_with_the_same_arguments(
    shop: types.ModuleType, registry: HookRegistry, target: str
) -> None:
    def twice(original_fn: Any, *args: Any, **kwargs: Any) -> Any:
        return original_fn(*args, **kwargs), original_fn(*args, **{**kwargs, "count": 9})

    call, _ = reach(shop, target)
    plain = call("tea", count=2), call("tea", count=9)
    registry.register(target, twice, HookType.AROUND)
    registry.apply_hooks()
    call, _ = reach(shop, target)
    assert call("tea", count=2) == plain


@every_kind
def test_replace_gets_every_argument_and_the_original_does_not_run(
    shop: types.ModuleType, registry: HookRegistry, target: str
) -> None:
    registry.register(target, lambda *args, **kwargs: (args, kwargs), HookType.REPLACE)
    registry.apply_hooks()
    call, leading = reach(shop, target)
    assert call("tea", count=2) == ((*leading, "tea"), {"count": 2})


@every_kind
@pytest.mark.parametrize("hook_type", HookType)
def test_after_revert_the_target_does_what_it_did(
    shop: types.ModuleType, registry: HookRegistry, target: str, hook_type: HookType
) -> None:
    call, _ = reach(shop, target)
    plain = call("tea", count=2)
    registry.register(target, lambda *args, **kwargs: 1 / 0, hook_type)
    registry.apply_hooks()
    call, _ = reach(shop, target)
    with pytest.raises(ZeroDivisionError):
        call("tea", count=2)
    registry.revert()
    call, _ = reach(shop, target)
    assert call("tea", count=2) == plain


def test_after_that_returns_none_keeps_the_result_and_NONE_makes_it_none(  # noqa: N802
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    answers = iter([None, hookery.NONE, 0])
    registry.register("shop.price", lambda *args, **kwargs: next(answers), HookType.AFTER)
    registry.apply_hooks()
    assert [shop.price("tea"), shop.price("tea"), shop.price("tea")] == ["tea*1", None, 0]


def test_the_next_after_hook_sees_the_none_that_the_one_before_made(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    seen = []
    registry.register("shop.price", lambda result, *args: hookery.NONE, HookType.AFTER)
    registry.register("shop.price", lambda result, *args: seen.append(result), HookType.AFTER)
    registry.apply_hooks()
    assert shop.price("tea") is None
    assert seen == [None]


@pytest.mark.parametrize(
    "answer",
    [0, False, (), ((1,),), ([1], {}), ((1,), [("a", 1)]), ((1,), {}, None), "xy", [(1,), {}], {"args": ()}],
    ids=repr,
)
def test_a_before_hook_that_returns_something_else_is_a_type_error_that_names_it(
    shop: types.ModuleType, registry: HookRegistry, answer: Any
) -> None:
    def misguided(*args: Any, **kwargs: Any) -> Any:
        return answer

    registry.register("shop.price", misguided, HookType.BEFORE)
    registry.apply_hooks()
    with pytest.raises(TypeError) as caught:
        shop.price("tea")
    for part in ("BEFORE", "misguided", "shop.price", repr(answer), "None or (args, kwargs)"):
        assert part in str(caught.value)


def test_arguments_named_like_the_engines_own_reach_the_target(modules: Modules, registry: HookRegistry) -> None:
    odd = modules.load("odd", "def f(**kwargs): return kwargs")
    names = ["self", "cls", "wrapped", "instance", "args", "kwargs", "hook", "inner", "original", "function"]
    for hook_type in HookType:
        if hook_type is HookType.AROUND:
            registry.register("odd.f", lambda original_fn, /, **kwargs: original_fn(**kwargs), hook_type)
        if hook_type is HookType.BEFORE:
            registry.register("odd.f", lambda **kwargs: None, hook_type)
        if hook_type is HookType.AFTER:
            registry.register("odd.f", lambda result, /, **kwargs: None, hook_type)
    registry.apply_hooks()
    arguments = dict.fromkeys(names, 1)
    assert odd.f(**arguments) == arguments


def test_an_exception_passes_through_every_hook_and_after_hooks_do_not_run(
    modules: Modules, registry: HookRegistry
) -> None:
    shop = modules.load("shop", "def fail(): raise LookupError('sold out')")
    seen = []
    registry.register("shop.fail", lambda *args: seen.append("after"), HookType.AFTER)
    registry.register("shop.fail", lambda original_fn: original_fn(), HookType.AROUND)
    registry.apply_hooks()
    with pytest.raises(LookupError, match="sold out"):
        shop.fail()
    assert seen == []


def test_an_exception_of_a_hook_reaches_the_caller(shop: types.ModuleType, registry: HookRegistry) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError("closed")

    registry.register("shop.price", refuse, HookType.BEFORE)
    registry.apply_hooks()
    with pytest.raises(PermissionError, match="closed"):
        shop.price("tea")


def test_a_hook_may_be_any_callable(shop: types.ModuleType, registry: HookRegistry) -> None:
    seen: list[str] = []

    class Recorder:
        def __call__(self, *args: Any) -> None:
            seen.append("object")

        def method(self, *args: Any) -> None:
            seen.append("method")

    registry.register("shop.price", Recorder(), HookType.BEFORE)
    registry.register("shop.price", Recorder().method, HookType.BEFORE)
    registry.register(
        "shop.price", functools.partial(lambda word, *args: seen.append(word), "partial"), HookType.BEFORE
    )
    registry.apply_hooks()
    assert shop.price("tea") == "tea*1"
    assert seen == ["partial", "method", "object"]


class TestMethods:
    def test_a_method_called_on_the_class_gets_self_as_passed(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        seen = []
        registry.register("shop.Till.sell", lambda *args, **kwargs: seen.append(args), HookType.BEFORE)
        registry.apply_hooks()
        assert shop.Till.sell(shop.till, "tea") == "instance:tea*1"
        stranger = types.SimpleNamespace(name="stranger")
        assert shop.Till.sell(stranger, "tea") == "stranger:tea*1"
        assert seen == [(shop.till, "tea"), (stranger, "tea")]

    def test_none_as_self_is_an_argument_like_any_other(self, modules: Modules, registry: HookRegistry) -> None:
        shop = modules.load("shop", "class Till:\n    def me(self, x=0): return (self, x)")
        registry.register("shop.Till.me", lambda original_fn, *args: original_fn(*args), HookType.AROUND)
        registry.apply_hooks()
        assert shop.Till.me(None, 1) == (None, 1)

    def test_a_classmethod_sees_the_class_it_was_called_on(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        seen = []
        registry.register("shop.Till.open", lambda cls, *args: seen.append(cls), HookType.BEFORE)
        registry.apply_hooks()
        assert shop.SubTill.open("tea") == "SubTill:tea*1"
        assert shop.SubTill().open("tea") == "SubTill:tea*1"
        assert seen == [shop.SubTill, shop.SubTill]

    def test_a_staticmethod_called_on_an_instance_gets_no_first_argument(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        seen = []
        registry.register("shop.Till.quote", lambda *args: seen.append(args), HookType.BEFORE)
        registry.apply_hooks()
        assert shop.till.quote("tea") == "tea*1"
        assert seen == [("tea",)]

    def test_a_bound_method_saved_before_the_hook_was_changed_runs_the_new_hooks(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.Till.sell", lambda *args: None, HookType.BEFORE)
        registry.apply_hooks()
        saved = shop.till.sell
        registry.register("shop.Till.sell", lambda result, *args: result + "!", HookType.AFTER)
        registry.apply_hooks()
        assert saved("tea") == "instance:tea*1!"

    def test_a_name_that_leads_through_an_instance_means_its_class(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.till.sell", lambda result, *args: result + "!", HookType.AFTER)
        registry.apply_hooks()
        assert shop.Till("another").sell("tea") == "another:tea*1!"

    def test_a_module_function_hung_on_a_class_still_gets_self(self, modules: Modules, registry: HookRegistry) -> None:
        shop = modules.load("shop", "def f(*args): return args")
        registry.register("shop.f", lambda original_fn, *args: original_fn(*args), HookType.AROUND)
        registry.apply_hooks()
        holder = type("Holder", (), {"m": shop.f})()
        assert holder.m(1) == (holder, 1)

    def test_a_hooked_initialiser_builds_the_object(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.Till.__init__", lambda self, name="till": ((self, name.upper()), {}), HookType.BEFORE)
        registry.apply_hooks()
        assert shop.Till("corner").sell("tea") == "CORNER:tea*1"


class TestInherited:
    """A hook on an inherited name belongs to the named class alone."""

    @pytest.mark.parametrize("method", ["sell", "open", "quote"])
    def test_neither_the_base_class_nor_its_other_subclasses_are_hooked(
        self, shop: types.ModuleType, registry: HookRegistry, method: str
    ) -> None:
        before = dict(vars(shop.Till))
        registry.register(f"shop.SubTill.{method}", lambda result, *args: "hooked", HookType.AFTER)
        registry.apply_hooks()
        assert getattr(shop.SubTill(), method)("tea") == "hooked"
        assert getattr(shop.Till(), method)("tea") != "hooked"
        assert getattr(shop.OtherTill(), method)("tea") != "hooked"
        assert dict(vars(shop.Till)) == before

    @pytest.mark.parametrize("method", ["sell", "open", "quote"])
    def test_revert_leaves_nothing_in_the_named_class(
        self, shop: types.ModuleType, registry: HookRegistry, method: str
    ) -> None:
        before = dict(vars(shop.SubTill))
        registry.register(f"shop.SubTill.{method}", lambda *args: None, HookType.BEFORE)
        registry.apply_hooks()
        assert method in vars(shop.SubTill)
        registry.revert()
        assert dict(vars(shop.SubTill)) == before

    def test_an_inherited_classmethod_sees_the_class_it_was_called_on(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        seen = []
        registry.register("shop.SubTill.open", lambda cls, *args: seen.append(cls), HookType.BEFORE)
        registry.apply_hooks()
        below = type("Below", (shop.SubTill,), {})
        assert shop.SubTill.open("tea") == "SubTill:tea*1"
        assert below.open("tea") == "Below:tea*1"
        assert shop.Till.open("tea") == "Till:tea*1"
        assert seen == [shop.SubTill, below]

    @pytest.mark.parametrize("method", ["sell", "open", "quote"])
    @pytest.mark.parametrize("base_first", [True, False])
    def test_hooks_on_base_and_subclass_both_run_whichever_came_first(
        self, shop: types.ModuleType, registry: HookRegistry, method: str, base_first: bool
    ) -> None:
        seen: list[str] = []
        hooks = {
            f"shop.Till.{method}": lambda *args: seen.append("base"),
            f"shop.SubTill.{method}": lambda *args: seen.append("sub"),
        }
        for target in hooks if base_first else reversed(hooks):
            registry.register(target, hooks[target], HookType.BEFORE)
            registry.apply_hooks()
        getattr(shop.SubTill(), method)("tea")
        assert seen == ["sub", "base"]

    @pytest.mark.parametrize("method", ["sell", "open"])
    def test_the_next_class_in_line_of_several_bases_is_not_skipped(
        self, shop: types.ModuleType, registry: HookRegistry, method: str
    ) -> None:
        plain = getattr(shop.BothTill(), method)("tea")
        assert plain.startswith("other:")
        registry.register(f"shop.SubTill.{method}", lambda result, *args: result + "!", HookType.AFTER)
        registry.apply_hooks()
        assert getattr(shop.BothTill(), method)("tea") == plain + "!"

    def test_called_on_the_class_with_a_stranger_as_self(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.SubTill.sell", lambda result, *args: result + "!", HookType.AFTER)
        registry.apply_hooks()
        assert shop.SubTill.sell(types.SimpleNamespace(name="stranger"), "tea") == "stranger:tea*1!"


def test_builtin_functions_are_targets(registry: HookRegistry) -> None:
    import math

    original = math.gcd
    registry.register("math.gcd", lambda result, *args: -result, HookType.AFTER)
    registry.apply_hooks()
    assert math.gcd(4, 6) == -2
    registry.revert()
    assert math.gcd is original


def test_the_attributes_of_a_hooked_object_stay_reachable(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.cached", lambda *args: None, HookType.BEFORE)
    registry.apply_hooks()
    shop.cached("tea")
    shop.cached("tea")
    assert shop.cached.cache_info().hits == 1
    shop.cached.cache_clear()
    assert shop.cached.cache_info().currsize == 0


def test_a_hooked_function_keeps_name_signature_and_documentation(modules: Modules, registry: HookRegistry) -> None:
    import inspect

    shop = modules.load("shop", "def price(item: str, count: int = 1) -> str:\n    'What it costs.'\n    return item")
    signature = inspect.signature(shop.price)
    registry.register("shop.price", lambda *args: None, HookType.BEFORE)
    registry.apply_hooks()
    assert inspect.signature(shop.price) == signature
    assert (shop.price.__name__, shop.price.__doc__) == ("price", "What it costs.")
    assert inspect.isfunction(shop.price)


def test_a_hook_that_calls_its_own_target_recurses_plainly(modules: Modules, registry: HookRegistry) -> None:
    shop = modules.load("shop", "def down(n): return 0")

    def count_down(original_fn: Any, n: int) -> int:
        return 1 + shop.down(n - 1) if n else original_fn(n)

    registry.register("shop.down", count_down, HookType.AROUND)
    registry.apply_hooks()
    assert shop.down(5) == 5


@pytest.mark.parametrize("kind", ["classmethod", "staticmethod"])
def test_a_wrapper_that_somebody_put_around_a_descriptor_still_runs(
    modules: Modules, registry: HookRegistry, kind: str
) -> None:
    import wrapt

    shop = modules.load("shop", f"class Till:\n    @{kind}\n    def open(*args): return args[-1]")
    theirs = []

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        theirs.append(args)
        return wrapped(*args, **kwargs)

    shop.Till.open = wrapt.FunctionWrapper(vars(shop.Till)["open"], wrapper)
    registry.register("shop.Till.open", lambda result, *args: result + "!", HookType.AFTER)
    registry.apply_hooks()
    assert shop.Till.open("tea") == "tea!"
    assert theirs == [("tea",)]


def test_a_classmethod_of_a_c_class_gets_the_class_it_was_called_on(modules: Modules, registry: HookRegistry) -> None:
    shop = modules.load("shop", "class Book(dict): pass\nclass Diary(Book): pass")
    seen: list[Any] = []
    registry.register("shop.Book.fromkeys", lambda cls, *args: seen.append((cls, args)), HookType.BEFORE)
    registry.register("shop.Book.__init_subclass__", lambda cls, *args: seen.append(cls.__name__), HookType.BEFORE)
    registry.apply_hooks()
    made = [shop.Book.fromkeys("a"), shop.Diary.fromkeys("b"), shop.Book().fromkeys("c"), dict.fromkeys("d")]
    assert [(type(each), *each) for each in made] == [
        (shop.Book, "a"),
        (shop.Diary, "b"),
        (shop.Book, "c"),
        (dict, "d"),
    ]
    assert seen == [(shop.Book, ("a",)), (shop.Diary, ("b",)), (shop.Book, ("c",))]
    type("Novel", (shop.Book,), {})
    assert seen[3:] == ["Novel"]
    registry.revert()
    assert "fromkeys" not in vars(shop.Book)
    assert shop.Book.fromkeys("a") == {"a": None}
