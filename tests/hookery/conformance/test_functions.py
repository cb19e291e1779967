"""What a hooked function still is to pickle, copy, inspect and whoever holds it; limits are asserted as limits."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import pickle
import traceback
import types
import typing
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hookery import HookApplyError, HookRegistry, HookType
from tests.hookery.conformance.cells import FUNCTION_ENGINES, GENERATED, IN_PLACE, WRAPT
from tests.hookery.support import Modules, run_python

SHOP = '''
import functools

def price(item: str, count: int = 1, *, tax: "int" = 0) -> str:
    """What it costs."""
    return f"{item}*{count}"

price.unit = "EUR"

async def fetch(item): return item
def items(item): yield item
async def stream(item): yield item

class Till:
    def sell(self, item): return item
    @classmethod
    def open(cls, item): return item
    @staticmethod
    def quote(item): return item
    @property
    def total(self): return "total"
    @total.setter
    def total(self, value): return "total"
    @total.deleter
    def total(self): return "total"

class SubTill(Till): pass

TABLE = {"price": price}
ITEMS = [price]
def with_default(item, how=price): return how(item)
def make():
    how = price
    return lambda item: how(item)
in_closure = make()
class Holder:
    how = staticmethod(price)
partial = functools.partial(price)
till = Till()
bound = till.sell
'''

Check = Callable[[Any, Any], None]


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


def hook(registry: HookRegistry, engine: str, *targets: str) -> None:
    for target in targets or ("shop.price",):
        registry.register(target, mark, HookType.AFTER, engine=engine)
    registry.apply_hooks()


def mark(result: Any, *args: Any, **kwargs: Any) -> Any:
    return result + "!" if isinstance(result, str) else None


def is_a_function(shop: Any, original: Any) -> None:
    assert type(shop.price) is types.FunctionType
    assert vars(shop.Till)["sell"] is shop.Till.sell is shop.Till.sell
    assert shop.Till().sell("tea") == "tea!"


def pickles(shop: Any, original: Any) -> None:
    for found in (shop.price, shop.Till.sell, shop.till.sell, shop.Till.open, shop.Till.quote):
        loaded = pickle.loads(pickle.dumps(found))
        arguments = (shop.till, "tea") if found == shop.Till.sell else ("tea",)
        assert loaded(*arguments).endswith("!")


def pickles_where_inherited(shop: Any, original: Any) -> None:
    for found in (shop.SubTill.sell, shop.SubTill().sell, shop.SubTill.open, shop.SubTill.quote):
        loaded = pickle.loads(pickle.dumps(found))
        arguments = (shop.till, "tea") if found == shop.SubTill.sell else ("tea",)
        assert loaded(*arguments).endswith("!")


def copies(shop: Any, original: Any) -> None:
    assert copy.copy(shop.price) is copy.deepcopy(shop.price) is shop.price
    assert copy.deepcopy({"how": shop.price})["how"]("tea") == "tea*1!"
    assert copy.deepcopy(shop.till).sell("tea") == "tea!"


def pickles_a_stale_reference(shop: Any, original: Any) -> None:
    assert pickle.loads(pickle.dumps(original))("tea") == "tea*1!"


def cloudpickles_by_value(shop: Any, original: Any) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    cloudpickle.register_pickle_by_value(shop)
    try:
        loaded = pickle.loads(cloudpickle.dumps(shop.price))
    finally:
        cloudpickle.unregister_pickle_by_value(shop)
    assert loaded is not shop.price
    assert loaded("tea") == "tea*1!"


def holds_weakly(shop: Any, original: Any) -> None:
    assert weakref.WeakMethod(shop.till.sell)()("tea") == "tea!"  # type: ignore[misc]
    assert weakref.ref(shop.price)()("tea") == "tea*1!"  # type: ignore[misc]


def holds_accessors_weakly(shop: Any, original: Any) -> None:
    accessors = vars(shop.Till)["total"]
    assert weakref.ref(accessors.fget)()(shop.till) == "total!"  # type: ignore[misc]
    assert weakref.ref(accessors.fset)()  # type: ignore[truthy-function]
    for accessor in (accessors.fget, accessors.fdel):
        assert weakref.WeakMethod(types.MethodType(accessor, shop.till))()() == "total!"  # type: ignore[misc]


def is_recognised(shop: Any, original: Any) -> None:
    assert inspect.iscoroutinefunction(shop.fetch)
    assert inspect.isgeneratorfunction(shop.items)
    assert inspect.isasyncgenfunction(shop.stream)
    assert inspect.isfunction(shop.price)
    assert inspect.ismethod(shop.till.sell)
    assert shop.price("tea") == "tea*1!"


def keeps_its_signature(shop: Any, original: Any) -> None:
    assert str(inspect.signature(shop.price)) == "(item: str, count: int = 1, *, tax: 'int' = 0) -> str"
    assert str(inspect.signature(shop.till.sell)) == "(item)"
    assert str(inspect.signature(shop.Till.open)) == "(item)"
    specification = inspect.getfullargspec(shop.price)
    assert (specification.args, specification.kwonlyargs) == (["item", "count"], ["tax"])
    assert typing.get_type_hints(shop.price) == {"item": str, "count": int, "tax": int, "return": str}
    assert shop.price("tea") == "tea*1!"


def keeps_its_attributes(shop: Any, original: Any) -> None:
    price = shop.price
    assert (price.__name__, price.__qualname__, price.__module__) == ("price", "price", "shop")
    assert (price.__doc__, price.unit) == ("What it costs.", "EUR")
    assert (price.__defaults__, price.__kwdefaults__) == ((1,), {"tax": 0})
    assert price.__annotations__ == {"item": str, "count": int, "tax": "int", "return": str}
    assert (shop.Till.sell.__qualname__, vars(shop.Till)["open"].__func__.__name__) == ("Till.sell", "open")
    assert price.__code__.co_name == "price"
    assert price("tea") == "tea*1!"


def shows_its_source(shop: Any, original: Any) -> None:
    assert inspect.getsource(shop.price).startswith("def price(item: str")
    assert shop.price("tea") == "tea*1!"


def unwraps_to_the_original(shop: Any, original: Any) -> None:
    assert shop.price("tea") == "tea*1!"
    assert inspect.unwrap(shop.price) is original
    assert inspect.unwrap(shop.price)("tea") == "tea*1"


def runs_through_the_descriptor(shop: Any, original: Any) -> None:
    assert vars(shop.Till)["open"].__func__(shop.Till, "tea") == "tea!"
    assert vars(shop.Till)["quote"].__func__("tea") == "tea!"
    assert vars(shop.Till)["quote"]("tea") == "tea!"


def reaches_every_holder(shop: Any, original: Any) -> None:
    answers = [
        shop.TABLE["price"]("tea"),
        shop.ITEMS[0]("tea"),
        shop.with_default("tea"),
        shop.in_closure("tea"),
        shop.Holder.how("tea"),
        shop.partial("tea"),
        original("tea"),
    ]
    assert answers == ["tea*1!"] * 7
    assert shop.bound("tea") == "tea!"


def names_itself_in_a_traceback(shop: Any, original: Any) -> None:
    assert shop.price("tea") == "tea*1!"
    with pytest.raises(TypeError, match=r"price\(\)") as caught:
        shop.price("tea", 1, 2, 3, 4)
    assert traceback.format_exception(caught.value)


# The limits of the engines, and what comes of them; without an entry an engine has none.
CHECKS: dict[Check, dict[str, type[BaseException]]] = {
    is_a_function: {WRAPT: AssertionError},
    pickles: {},
    pickles_where_inherited: {},
    copies: {},
    pickles_a_stale_reference: {GENERATED: pickle.PicklingError, WRAPT: pickle.PicklingError},
    cloudpickles_by_value: {},
    holds_weakly: {WRAPT: TypeError},
    holds_accessors_weakly: {},
    is_recognised: {},
    keeps_its_signature: {},
    keeps_its_attributes: {},
    shows_its_source: {IN_PLACE: OSError},
    unwraps_to_the_original: {IN_PLACE: AssertionError},
    runs_through_the_descriptor: {},
    reaches_every_holder: {GENERATED: AssertionError, WRAPT: AssertionError},
    names_itself_in_a_traceback: {},
}
TARGETS = (
    "shop.price",
    "shop.Till.sell",
    "shop.Till.open",
    "shop.Till.quote",
    "shop.Till.total",
    "shop.Till.total.fset",
    "shop.Till.total.fdel",
    "shop.fetch",
    "shop.items",
    "shop.stream",
)
INHERITED = ("shop.SubTill.sell", "shop.SubTill.open", "shop.SubTill.quote")


def targets_of(check: Check) -> tuple[str, ...]:
    return INHERITED if check is pickles_where_inherited else TARGETS


CELLS = [
    (check, engine)
    for check in CHECKS
    for engine in FUNCTION_ENGINES
    if (check, engine) != (pickles_where_inherited, IN_PLACE)  # refused: see below
]


@pytest.mark.cell
@pytest.mark.parametrize(("check", "engine"), CELLS, ids=lambda value: getattr(value, "__name__", value))
def test_a_hooked_function(check: Check, engine: str, shop: types.ModuleType, registry: HookRegistry) -> None:
    original = shop.price
    hook(registry, engine, *targets_of(check))
    limit = CHECKS[check].get(engine)
    if limit is None:
        check(shop, original)
        return
    for method in (shop.SubTill().sell, shop.SubTill.open, shop.SubTill.quote):
        assert method("tea") == "tea!"  # it is hooked, and yet
    with pytest.raises(limit) as caught:
        check(shop, original)
    assert caught.type is limit


@pytest.mark.parametrize("target", INHERITED)
def test_in_place_refuses_what_is_inherited(target: str, shop: types.ModuleType, registry: HookRegistry) -> None:
    with pytest.raises(HookApplyError, match="it is inherited, and every class that shares the function"):
        hook(registry, IN_PLACE, target)
    assert (shop.SubTill().sell("tea"), shop.SubTill.open("tea"), shop.SubTill.quote("tea")) == ("tea",) * 3


@pytest.mark.cell
@pytest.mark.parametrize("engine", FUNCTION_ENGINES)
def test_it_is_the_target_of_a_spawned_process(modules: Modules, engine: str, does_nothing: bool) -> None:
    modules.write(
        shop="import sys\ndef leave(code): sys.exit(code)",
        shop_hooks="def one_more(code): return (code + 1,), {}",
    )
    out = run_python(
        f"""
        import multiprocessing, shop, shop_hooks, hookery
        from hookery import engines
        from tests.hookery.conformance.conftest import NoOp
        if {does_nothing}: engines.make_stand_in = NoOp
        hook = hookery.registry.register("shop.leave", shop_hooks.one_more, hookery.HookType.BEFORE, engine={engine!r})
        hookery.registry.apply_hooks()
        process = multiprocessing.get_context("spawn").Process(target=shop.leave, args=(3,))
        process.start()
        process.join()
        print(process.exitcode)
        try:
            shop.leave(3)
        except SystemExit as leaving:
            print(leaving.code)
        """,
        path=[modules.folder, Path(__file__).parents[3]],
    )
    assert out == "4\n4\n"


@pytest.mark.cell
@pytest.mark.parametrize("engine", ["auto", WRAPT])
def test_a_cache_keeps_its_interface(modules: Modules, registry: HookRegistry, engine: str) -> None:
    shop = modules.load("shop", "import functools\n@functools.lru_cache\ndef price(item): return item")
    hook(registry, engine)
    assert (shop.price("tea"), shop.price("tea")) == ("tea!", "tea!")
    assert shop.price.cache_info().hits == 1
    shop.price.cache_clear()
    assert shop.price.cache_info().currsize == 0
    assert shop.price.cache_parameters() == {"maxsize": 128, "typed": False}


@pytest.mark.parametrize("engine", [GENERATED, IN_PLACE])
def test_no_function_stands_in_for_a_cache(modules: Modules, registry: HookRegistry, engine: str) -> None:
    shop = modules.load("shop", "import functools\n@functools.lru_cache\ndef price(item): return item")
    with pytest.raises(HookApplyError, match=r"an object of the type functools\._lru_cache_wrapper"):
        hook(registry, engine)
    assert shop.price("tea") == "tea"


@pytest.mark.cell
@pytest.mark.parametrize("engine", [GENERATED, IN_PLACE])
def test_where_all_hooks_are_typed_the_code_has_the_targets_parameters(
    shop: types.ModuleType, registry: HookRegistry, engine: str
) -> None:
    names = shop.price.__code__.co_varnames[:3]
    seen: list[Any] = []
    registry.register(
        "shop.price", lambda item, count, *, tax: seen.append((item, count, tax)), HookType.BEFORE, engine=engine
    )
    registry.apply_hooks()
    assert shop.price.__code__.co_varnames[:3] == names
    assert shop.price("tea") == "tea*1"
    assert seen == [("tea", 1, 0)]
    registry.register("shop.price", lambda *args, **kwargs: seen.append((args, kwargs)), HookType.BEFORE)
    registry.apply_hooks()
    shop.price("tea", tax=2)
    assert seen[1:] == [(("tea",), {"tax": 2}), ("tea", 1, 2)]


@pytest.mark.cell
class TestInPlace:
    def test_the_very_object_stays_and_its_code_comes_back(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        price, code, state = shop.price, shop.price.__code__, dict(vars(shop.price))
        names = set(vars(shop))
        hook(registry, IN_PLACE)
        assert shop.price is price
        assert price("tea") == "tea*1!"
        registry.revert()
        assert (price.__code__, vars(price)) == (code, state)
        assert price("tea") == "tea*1"
        assert set(vars(shop)) == names

    def test_a_generator_that_was_made_while_it_was_hooked_runs_after_the_hook_left(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        hook(registry, IN_PLACE, "shop.items")
        names = {name for name in vars(shop) if name.startswith("__hookery")}
        generator = shop.items("tea")
        registry.revert()
        assert list(generator) == ["tea"]
        del generator
        assert names
        assert not {name for name in vars(shop) if name.startswith("__hookery")}

    def test_one_function_under_two_names_is_hooked_in_place_under_one(
        self, modules: Modules, registry: HookRegistry
    ) -> None:
        shop = modules.load("shop", "class A:\n    def __add__(self, item): return item\n    __radd__ = __add__")
        hook(registry, IN_PLACE, "shop.A.__add__")
        assert ("tea" + shop.A(), shop.A() + "tea") == ("tea!", "tea!")
        registry.register("shop.A.__radd__", mark, HookType.AFTER, engine=IN_PLACE)
        with pytest.raises(HookApplyError, match=r"is hooked in place already, as shop:A\.__add__"):
            registry.apply_hooks()

    def test_a_saved_original_is_the_hooked_function(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        saved = shop.price
        registry.register(
            "shop.price", lambda *args, **kwargs: saved(*args, **kwargs), HookType.REPLACE, engine=IN_PLACE
        )
        registry.apply_hooks()
        with pytest.raises(RecursionError):
            shop.price("tea")

    def test_zero_argument_super_and_closures_work(self, modules: Modules, registry: HookRegistry) -> None:
        shop = modules.load(
            "shop",
            """
            class Till:
                def sell(self, item): return item
            def make(mark, more):
                class Sub(Till):
                    def sell(self, item): return super().sell(item) + mark + more
                return Sub
            Sub = make("?", ".")
            """,
        )
        hook(registry, IN_PLACE, "shop.Sub.sell")
        assert shop.Sub().sell("tea") == "tea?.!"


@pytest.mark.cell
def test_a_function_that_was_wrapped_takes_what_its_wrapper_takes(modules: Modules, registry: HookRegistry) -> None:
    shop = modules.load(
        "shop",
        """
        import functools
        def loud(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs): return function(*args, **kwargs).upper()
            return wrapper
        @loud
        def price(item, count=1): return f"{item}*{count}"
        """,
    )
    seen: list[Any] = []
    registry.register("shop.price", lambda item, count: seen.append((item, count)), HookType.BEFORE)
    registry.apply_hooks()
    assert shop.price(item="tea") == "TEA*1"
    assert seen == [("tea", 1)]


@pytest.mark.cell
def test_a_single_dispatch_function_keeps_dispatching(modules: Modules, registry: HookRegistry) -> None:
    shop = modules.load("shop", "import functools\n@functools.singledispatch\ndef price(item): return 'any'")
    hook(registry, "auto")
    shop.price.register(int)(lambda item: "int")
    assert (shop.price("tea"), shop.price(1)) == ("any!", "int!")


@pytest.mark.cell
def test_original_fn_that_a_hook_kept_works_after_the_hooks_changed(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    kept: list[Any] = []

    def around(original_fn: Any, *args: Any, **kwargs: Any) -> Any:
        kept.append(original_fn)
        return original_fn(*args, **kwargs)

    registry.register("shop.price", mark, HookType.AFTER)
    registry.register("shop.price", around, HookType.AROUND)
    registry.apply_hooks()
    assert shop.price("tea") == "tea*1!"
    registry.revert()
    assert kept[0]("tea") == "tea*1!"
    assert functools.partial(kept[0], count=2)("tea") == "tea*2!"


@pytest.mark.cell
@pytest.mark.parametrize("engine", FUNCTION_ENGINES)
def test_classes_of_every_make_stay_whole(modules: Modules, registry: HookRegistry, engine: str) -> None:
    shop = modules.load(
        "shop",
        """
        import abc, dataclasses
        class Shop(abc.ABC):
            @abc.abstractmethod
            def price(self, item): return item
            def quote(self, item): return item
        class Till(Shop):
            def price(self, item): return super().price(item) + "?"
        @dataclasses.dataclass
        class Sale:
            item: str
            def label(self): return self.item
        """,
    )
    hook(registry, engine, "shop.Shop.price", "shop.Till.price", "shop.Sale.label", "shop.Sale.__repr__")
    with pytest.raises(TypeError, match="abstract"):
        shop.Shop()
    assert shop.Till().price("tea") == "tea!?!"
    sale = shop.Sale("tea")
    assert (sale.label(), repr(sale)) == ("tea!", "Sale(item='tea')!")
    assert (sale, dataclasses.asdict(dataclasses.replace(sale))) == (shop.Sale("tea"), {"item": "tea"})
