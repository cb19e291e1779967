"""Hooked callables as cargo: pickled, copied and sent to a child process, they arrive hooked, by every engine."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest

from hookery import HookRegistry, HookType
from tests.hookery.conformance.cells import FUNCTION_ENGINES, IN_PLACE
from tests.hookery.support import Modules, start_python

SHOP = """
import functools, operator

def price(item, count=1): return f"{item}*{count}"
def label(item): return f"label {item}"
cached = functools.lru_cache(label)
half = functools.partial(price, count=9)
concat = operator.concat
class Caller:
    def __call__(self, item): return item
caller = Caller()
class Till:
    drawer = "till"
    def sell(self, item): return f"{self.drawer} {item}"
    @classmethod
    def open(cls, item): return f"{cls.__name__} {item}"
    @staticmethod
    def quote(item): return item
    @functools.lru_cache
    def remembered(self, item): return item
    def __private(self, item): return item
    def private(self): return self.__private
class SubTill(Till): pass
till = Till()
sub_till = SubTill()
"""

# What is sent: the target, how it is looked up, and what it is called with.
Cargo = tuple[str, Callable[[Any], Any], tuple[Any, ...]]
PLAIN: list[Cargo] = [
    ("shop.price", lambda s: s.price, ("tea",)),
    ("shop.Till.sell", lambda s: s.till.sell, ("tea",)),
    ("shop.Till.sell", lambda s: s.Till.sell, ("self", "tea")),
    ("shop.Till.open", lambda s: s.Till.open, ("tea",)),
    ("shop.Till.open", lambda s: s.sub_till.open, ("tea",)),
    ("shop.Till.quote", lambda s: s.Till.quote, ("tea",)),
    ("shop.Till.quote", lambda s: s.till.quote, ("tea",)),
    ("shop.Till.sell", lambda s: [s.till][0].sell, ("tea",)),
    ("shop.Till._Till__private", lambda s: s.till.private(), ("tea",)),
]
INHERITED: list[Cargo] = [
    ("shop.SubTill.sell", lambda s: s.sub_till.sell, ("tea",)),
    ("shop.SubTill.sell", lambda s: s.SubTill.sell, ("self", "tea")),
    ("shop.SubTill.open", lambda s: s.SubTill.open, ("tea",)),
    ("shop.SubTill.quote", lambda s: s.SubTill.quote, ("tea",)),
]
OTHERS: list[Cargo] = [
    ("shop.cached", lambda s: s.cached, ("tea",)),
    ("shop.half", lambda s: s.half, ("tea",)),
    ("shop.concat", lambda s: s.concat, ("tea", "time")),
    ("shop.caller", lambda s: s.caller, ("tea",)),
    ("shop.Till.remembered", lambda s: s.till.remembered, ("tea",)),
    ("shop.Till.remembered", lambda s: s.Till.remembered, ("self", "tea")),
]
CELLS = [
    (engine, *cargo)
    for engine in FUNCTION_ENGINES
    for cargo in [*PLAIN, *([] if engine == IN_PLACE else INHERITED)]
    # A mangled name leads nowhere from the name that a function says it has: Python itself cannot pickle it by that.
    if engine == "wrapt" or "__private" not in cargo[0]
] + [("auto", *cargo) for cargo in OTHERS]


def unpickled(protocol: int) -> Callable[[Any], Any]:
    return lambda thing: pickle.loads(pickle.dumps(thing, protocol))


def cloudpickled(thing: Any) -> Any:
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(thing))


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": unpickled(pickle.HIGHEST_PROTOCOL),
    "pickle 2": unpickled(2),
    "pickle in Python": lambda thing: pickle._loads(pickle._dumps(thing)),  # type: ignore[attr-defined]
    "deepcopy": copy.deepcopy,
    "deepcopy in a list": lambda thing: copy.deepcopy([thing])[0],
    "copy": copy.copy,
    "cloudpickle": cloudpickled,
}


def mark(result: Any, *args: Any, **kwargs: Any) -> Any:
    return f"{result}!"


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell[0]}-{cell[1]}-{len(cell[3])}")
def test_it_arrives_hooked(
    cell: tuple[str, str, Callable[[Any], Any], tuple[Any, ...]],
    way: str,
    shop: types.ModuleType,
    registry: HookRegistry,
) -> None:
    engine, target, find, arguments = cell
    arguments = tuple(shop.till if each == "self" else each for each in arguments)  # type: ignore[attr-defined]
    registry.register(target, mark, HookType.AFTER, engine=engine)
    registry.apply_hooks()
    expected = find(shop)(*arguments)
    assert expected.endswith("!")
    arrived = WAYS[way](find(shop))
    assert arrived(*arguments) == expected
    registry.revert()
    assert not find(shop)(*arguments).endswith("!")


@pytest.mark.parametrize("engine", FUNCTION_ENGINES)
def test_a_bound_method_keeps_the_state_of_its_object(
    engine: str, shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.Till.sell", mark, HookType.AFTER, engine=engine)
    registry.apply_hooks()
    till = shop.Till()  # type: ignore[attr-defined]
    till.drawer = "own"
    for way in ("pickle", "deepcopy", "cloudpickle"):
        sell = WAYS[way](till.sell)
        till.drawer = "changed"
        assert sell("tea") == "own tea!", way
        till.drawer = "own"


def test_a_stand_in_whose_hook_was_taken_back_pickles_as_what_stands_there(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.price", mark, HookType.AFTER, engine="wrapt")
    registry.apply_hooks()
    kept = [shop.price]  # type: ignore[attr-defined]
    registry.revert()
    assert pickle.loads(pickle.dumps(kept))[0] is shop.price  # type: ignore[attr-defined]


def test_whoever_unpickles_by_name_needs_no_hookery(modules: Modules, registry: HookRegistry) -> None:
    shop = modules.load("shop", SHOP)
    registry.register("shop.cached", mark, HookType.AFTER)
    registry.apply_hooks()
    data = pickle.dumps([shop.cached, shop.till.remembered])
    done = start_python(
        ["-c", f"import pickle, sys; a, b = pickle.loads({data!r}); print(a('tea'), 'hookery' in sys.modules)"],
        path=[modules.folder],
    )
    assert done.stdout == "label tea False\n", done.stderr


def test_it_arrives_hooked_in_a_child(modules: Modules) -> None:
    modules.write(shop=SHOP, shop_hooks="def mark(result, *args, **kwargs): return f'{result}!'")
    targets = [target for target, _, _ in [*PLAIN, *INHERITED, *OTHERS] if "private" not in target]
    (modules.folder / "program.py").write_text(
        f"""
import multiprocessing, shop, shop_hooks, sys
import hookery

def call(cargo): return [function("tea") for function in cargo]

if __name__ == "__main__":
    for target in dict.fromkeys({targets}):
        hookery.registry.register(target, shop_hooks.mark, hookery.HookType.AFTER, engine=sys.argv[1])
    hookery.registry.apply_hooks()
    cargo = [shop.price, shop.till.sell, shop.SubTill.open, shop.till.quote, shop.cached, shop.half, shop.caller,
             shop.till.remembered, shop.sub_till.sell]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(call(cargo) == pool.apply(call, [cargo]), {{answer[-1] for answer in call(cargo)}})
"""
    )
    for engine in ("auto", "wrapt"):
        done = start_python(["-W", "error", str(modules.folder / "program.py"), engine])
        assert done.stdout == "True {'!'}\n", done.stderr


@pytest.mark.parametrize("engine", FUNCTION_ENGINES)
def test_cloudpickle_sends_the_hooks_of_the_main_module_as_code(modules: Modules, engine: str) -> None:
    pytest.importorskip("cloudpickle")
    (modules.folder / "sender.py").write_text(
        """
import cloudpickle, sys
import hookery

def label(item): return item
class Till:
    def sell(self, item): return item
    @staticmethod
    def quote(item): return item
    @classmethod
    def open(cls, item): return item
def mark(result, *args, **kwargs): return result + "!"

for target in ("label", "Till.sell", "Till.quote", "Till.open"):
    hookery.registry.register(f"__main__.{target}", mark, hookery.HookType.AFTER, engine=sys.argv[1])
hookery.registry.apply_hooks()
till = Till()
print(cloudpickle.dumps([label, Till.quote, Till.open, till.sell, till.quote, till.open]))
"""
    )
    sent = start_python(["-W", "error", str(modules.folder / "sender.py"), engine])
    assert sent.returncode == 0, sent.stderr
    done = start_python(["-c", f"import pickle; print({{f('tea') for f in pickle.loads({sent.stdout})}})"])
    assert done.stdout == "{'tea!'}\n", done.stderr
