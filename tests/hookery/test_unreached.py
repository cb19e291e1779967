"""Who else than module globals holds an original: found on demand, rebound where asked for, restored by identity."""

from __future__ import annotations

import asyncio
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hookery import HookApplyError, HookError, HookRegistry, HookType, load_plugins
from tests.hookery.support import Modules, run_python

SHOP = """
def price(item, n=1): return item
class Till:
    def sell(self, item): return item
    def __add__(self, other): return other
    __radd__ = __add__
    @staticmethod
    def cost(item): return item
    @classmethod
    def brand(cls, item): return item
"""

CLIENT = """
import enum, functools
from collections import OrderedDict, defaultdict, deque
from shop import price, Till
class Kind(enum.Enum):
    ONE = 1
"""


def shout(result: Any, *args: Any) -> Any:
    return result.upper()


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


# What the client does, the address of the holder, how to call what is held.
REBOUND = [
    ("T = {'k': price}", "client.T['k']", "T['k']('a')"),
    ("T = {Kind.ONE: price}", "client.T[Kind.ONE]", "T[Kind.ONE]('a')"),
    ("T = {(1, 'x', Kind): price}", "client.T[(1, 'x', client.Kind)]", "T[1, 'x', Kind]('a')"),
    ("class K: pass\nk = K()\nT = {k: price}", "client.T[<K>]", "T[k]('a')"),
    ("T = OrderedDict(k=price)", "client.T['k']", "T['k']('a')"),
    ("T = defaultdict(list, k=price)", "client.T['k']", "T['k']('a')"),
    ("T = [1, price]", "client.T[1]", "T[1]('a')"),
    ("T = deque([1, price])", "client.T[1]", "T[1]('a')"),
    ("T = ({'k': [price]},)", "client.T[0]['k'][0]", "T[0]['k'][0]('a')"),
    ("def g(x, f=price): return f(x)", "client.g.__defaults__[0]", "g('a')"),
    ("def g(x, *, f=price): return f(x)", "client.g.__kwdefaults__['f']", "g('a')"),
    ("class A:\n    def g(self, f=price): return f('a')", "client.A.g.__defaults__[0]", "A().g()"),
    (
        "def make(f):\n    def inner(x): return f(x)\n    return inner\ng = make(price)",
        "client.g.__closure__[0]",
        "g('a')",
    ),
    (
        "def wrap(f):\n    @functools.wraps(f)\n    def inner(x): return f(x)\n    return inner\ng = wrap(price)",
        "client.g.__closure__[0]",
        "g('a')",
    ),
    ("class A:\n    alias = price", "client.A.alias", "A.alias('a')"),
    ("class A:\n    class B:\n        alias = price", "client.A.B.alias", "A.B.alias('a')"),
    ("class A:\n    def __init__(self): self.f = price\na = A()", "client.a.f", "a.f('a')"),
    ("class A:\n    def __init__(self): self.t = {'f': price}\na = A()", "client.a.t['f']", "a.t['f']('a')"),
    ("class A: pass\nclass B:\n    a = A()\nB.a.f = price", "client.B.a.f", "B.a.f('a')"),
    ("def g(): pass\ng.f = price", "client.g.f", "g.f('a')"),
    ("P = functools.partial(dict, f=price)", "client.P.keywords['f']", "P()['f']('a')"),
]
NAMED = [
    ("T = (price,)", "client.T[0]", "T[0]('a')"),
    ("T = {price}", "client.T{...}", "min(T)('a')"),
    ("T = frozenset([price])", "client.T{...}", "min(T)('a')"),
    ("T = {price: 1}", "client.T.keys()", "min(T)('a')"),
    ("P = functools.partial(price, 'a')", "client.P.func", "P()"),
    ("P = functools.partial(map, price)", "client.P.args[0]", "next(P('a'))"),
    ("m = price.__get__('a')", "client.m.__func__", "m()"),
    ("class A:\n    f = staticmethod(price)", "client.A.f.__func__", "A.f('a')"),
    ("class A:\n    p = property(price)", "client.A.p.fget", "A.p.fget('a')"),
    ("class A:\n    __slots__ = ('f',)\na = A()\na.f = price", "client.a.f", "a.f('a')"),
    ("g = functools.lru_cache(price)", "client.g.__wrapped__", "g('a')"),
    ("import operator\nT = map(price, ['a'])", "client.T (inside this map)", "next(T)"),
    (
        "def serve():\n    step = price\n    yield\n    yield step('a')\nrun = serve()\nnext(run)",
        "client.serve (suspended, local variable 'step')",
        "next(run)",
    ),
    (
        "from unittest.mock import Mock\nM = Mock(wraps=price)",
        "client.M._mock_wraps",
        "M('a')",
    ),
]


class TestUnreached:
    @pytest.mark.parametrize(("code", "address", "call"), [*REBOUND, *NAMED])
    def test_a_holder_is_named_by_where_a_person_finds_it(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry, code: str, address: str, call: str
    ) -> None:
        client = modules.load("client", CLIENT + code)
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert registry.unreached() == {"shop.price": [address]}
        (record,) = registry.applied_hooks(unreached=True)
        assert record.unreached == (address,)
        assert eval(call, vars(client)) == "a"

    @pytest.mark.parametrize(("code", "address", "call"), REBOUND)
    def test_asked_for_it_is_rebound_and_restored_by_identity(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry, code: str, address: str, call: str
    ) -> None:
        client = modules.load("client", CLIENT + code)
        assert eval(call, vars(client)) == "a"
        original = shop.price
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        assert registry.unreached() == {}
        assert eval(call, vars(client)) == "A"
        registry.revert()
        assert shop.price is original
        assert eval(call, vars(client)) == "a"
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert registry.unreached() == {"shop.price": [address]}  # the original itself is there again

    @pytest.mark.parametrize(("code", "address", "call"), NAMED)
    def test_what_cannot_be_rebound_stays_named(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry, code: str, address: str, call: str
    ) -> None:
        client = modules.load("client", CLIENT + code)
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        assert registry.unreached() == {"shop.price": [address]}
        assert eval(call, vars(client)) == "a"

    @pytest.mark.parametrize(
        ("target", "code", "address"),
        [
            ("shop.Till.__add__", "", "shop.Till.__radd__"),
            ("shop.Till.sell", "class Sub(Till):\n    buy = Till.sell", "client.Sub.buy"),
            ("shop.Till.sell", "m = Till().sell", "client.m.__func__"),
            ("shop.Till.cost", "f = Till.cost", "client.f"),
            ("shop.Till.brand", "m = Till.brand", "client.m.__func__"),
            ("shop.Till.brand", "class Other:\n    brand = vars(Till)['brand']", "client.Other.brand"),
        ],
    )
    def test_holders_of_members_are_named_too(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry, target: str, code: str, address: str
    ) -> None:
        modules.load("client", CLIENT + code)
        registry.register(target, shout, HookType.AFTER)
        registry.apply_hooks()
        assert registry.unreached() == {target: [address]}

    def test_an_alias_in_the_class_is_rebound_when_asked_for(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        original = vars(shop.Till)["__radd__"]
        registry.register("shop.Till.__add__", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        assert "a" + shop.Till() == "A"
        registry.revert()
        assert vars(shop.Till)["__radd__"] is vars(shop.Till)["__add__"] is original

    def test_a_class_is_followed_where_it_is_used_and_not_where_it_is_named(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        modules.load(
            "client",
            CLIENT
            + """
            from typing import Optional
            class Sub(Till):
                def sell(self, item): return super().sell(item)
            tills = [Till(), Till()]
            def annotated(till: Till) -> Optional[Till]: ...
            MAKE = {'till': Till}
            def g(cls=Till): return cls()
            """.replace("\n            ", "\n"),
        )

        class NewTill: ...

        registry.register("shop.Till", NewTill, HookType.REPLACE)
        registry.apply_hooks()
        assert registry.unreached() == {
            "shop.Till": ["client.MAKE['till']", "client.Sub.__bases__[0]", "client.g.__defaults__[0]"]
        }
        registry.apply_hooks(reach="deep")
        assert registry.unreached() == {"shop.Till": ["client.Sub.__bases__[0]"]}
        assert type(sys.modules["client"].g()) is NewTill
        registry.revert()
        assert type(sys.modules["client"].g()) is shop.Till is sys.modules["client"].MAKE["till"]

    def test_an_inherited_target_has_no_holders(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        client = modules.load("client", CLIENT + "class Sub(Till): pass\nT = [Till.sell]")
        original = client.T[0]
        registry.register("client.Sub.sell", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        assert registry.unreached() == {}
        assert client.T[0] is original

    def test_a_hooks_own_module_is_neither_listed_nor_touched(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        plug = modules.load(
            "plug",
            """
            from shop import price
            ORIGINALS = {'price': price}
            def louder(item, n=1, f=price): return f(item).upper()
            class Keeper:
                kept = staticmethod(price)
            """,
        )
        registry.register("shop.price", plug.louder, HookType.REPLACE)
        registry.apply_hooks(reach="deep")
        assert registry.unreached() == {}
        assert shop.price("a") == "A"
        assert plug.ORIGINALS["price"]("a") == "a"

    def test_one_cell_two_functions_one_holder(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        modules.load(
            "client",
            CLIENT + "def make(f):\n    def a(): return f\n    def b(): return f\n    return a, b\na, b = make(price)",
        )
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert registry.unreached() == {"shop.price": ["client.a.__closure__[0]"]}

    def test_what_only_local_variables_hold_is_not_listed(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        mine = [shop.price, {"k": shop.price}]
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert registry.unreached() == {}
        assert mine[0]("a") == "a"

    def test_nothing_is_left_of_hooks_that_came_and_went(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        for _ in range(3):
            other = HookRegistry()
            other.register("shop.price", shout, HookType.AFTER)
            other.register("shop.Till.sell", shout, HookType.AROUND)
            other.apply_hooks(reach="deep")
            other.reset()
        registry.register("shop.price", shout, HookType.AFTER)
        registry.register("shop.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        shop.price("a")
        assert registry.unreached() == {}

    def test_one_target_can_be_asked_for_in_either_spelling(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        modules.load("client", CLIENT + "T = [price, Till.sell]")
        registry.register("shop.price", shout, HookType.AFTER)
        registry.register("shop.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks()
        assert registry.unreached("shop:Till.sell") == {"shop.Till.sell": ["client.T[1]"]}
        with pytest.raises(HookError, match=r"no hook is registered for shop\.cost"):
            registry.unreached("shop.cost")

    def test_many_targets_are_looked_for_together(self, modules: Modules, registry: HookRegistry) -> None:
        many = modules.load("many", "\n".join(f"def f{number}(x): return x" for number in range(320)))
        modules.load("client", "import many\nT = {n: f for n, f in vars(many).items() if n[0] == 'f'}")
        for number in range(320):
            registry.register(f"many.f{number}", shout, HookType.AFTER)
        registry.apply_hooks()
        assert registry.unreached()["many.f319"] == ["client.T['f319']"]
        registry.apply_hooks(reach="deep")
        assert registry.unreached() == {}
        assert sys.modules["client"].T["f7"]("a") == many.f7("a") == "A"

    def test_many_targets_are_looked_for_where_asyncio_has_run(self, modules: Modules) -> None:
        # CPython 3.12 keeps freed objects of asyncio where the garbage collector shows them to whoever asks.
        modules.write(
            many="\n".join(f"def f{number}(x): return x" for number in range(320)),
            client="import many\nT = dict(vars(many))",
        )
        out = run_python(
            """
            import asyncio, resource, client, hookery
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY))

            async def wait():
                futures = [asyncio.get_running_loop().create_future() for _ in range(50)]
                waiting = [asyncio.ensure_future(take(future)) for future in futures]
                await asyncio.sleep(0)
                for future in futures:
                    future.set_result(None)
                await asyncio.gather(*waiting)

            async def take(future):
                await future

            asyncio.run(wait())
            for number in range(320):
                hookery.registry.register(f"many.f{number}", lambda result, x: None, hookery.HookType.AFTER)
            hookery.registry.apply_hooks()
            for _ in range(3):
                print(hookery.registry.unreached("many.f319"), len(hookery.registry.unreached()))
            """,
            path=[modules.folder, Path(__file__).parents[2]],
        )
        assert out == "{'many.f319': [\"client.T['f319']\"]} 320\n" * 3

    def test_nobodys_code_runs(self, modules: Modules, shop: types.ModuleType, registry: HookRegistry) -> None:
        client = modules.load(
            "client",
            CLIENT
            + """
            def fail(*args): raise AssertionError("looked at")
            class Meta(type):
                __instancecheck__ = __subclasscheck__ = __hash__ = __getattribute__ = fail
            class Touchy:
                __getattribute__ = __getattr__ = __eq__ = __hash__ = __repr__ = __iter__ = __len__ = fail
                __class__ = property(fail)
            class Made(metaclass=Meta): pass
            touchy, made = Touchy(), Made
            object.__setattr__(touchy, 'f', price)
            class Lazy(dict):
                __getitem__ = items = keys = values = get = fail
            lazy = Lazy(k=price)
            """.replace("\n            ", "\n"),
        )
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        assert registry.unreached() == {"shop.price": ["client.lazy (inside this Lazy)"]}
        assert object.__getattribute__(client.touchy, "f")("a") == "A"

    @pytest.mark.parametrize("how", ["call", "load_plugins"])
    def test_a_target_that_is_imported_later_is_reached_as_deeply(
        self, modules: Modules, registry: HookRegistry, how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modules.write(shop=SHOP + "T = {'k': price}")
        registry.register("shop.price", shout, HookType.AFTER)
        if how == "call":
            registry.apply_hooks(reach="deep")
        else:
            monkeypatch.setenv("HOOKERY_PLUGINS", "")
            load_plugins(registry=registry, reach="deep")
        assert modules.load("shop").T["k"]("a") == "A"

    def test_who_took_the_stand_in_from_a_deeply_reached_target_gets_the_original(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        original = shop.price
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        client = modules.load("client", CLIENT + "T = {'k': price}\ndef g(f=price): return f('a')")
        assert client.g() == "A"
        registry.revert()
        assert client.T["k"] is client.g.__defaults__[0] is original

    def test_defaults_that_hold_two_targets_are_the_same_tuple_again(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        client = modules.load("client", CLIENT + "def g(f=price, h=Till.sell): return f('a') + h(None, 'b')")
        before = client.g.__defaults__
        registry.register("shop.price", shout, HookType.AFTER)
        registry.register("shop.Till.sell", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        assert client.g() == "AB"
        registry.revert("shop.Till.sell")
        assert client.g() == "Ab"
        registry.revert()
        assert client.g.__defaults__ is before

    def test_a_class_that_refuses_stays_named(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        modules.load(
            "client",
            CLIENT
            + "class Meta(type):\n    def __setattr__(cls, n, v): raise TypeError('no')\n"
            + "class A(metaclass=Meta):\n    f = price",
        )
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        assert registry.unreached() == {"shop.price": ["client.A.f"]}

    def test_the_holder_that_has_let_go_meanwhile_is_left_alone(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        client = modules.load("client", CLIENT + "T = {'k': price, 'l': price}\nL = [price]\ndef g(f=price): ...")
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks(reach="deep")
        del client.T["k"]
        client.T["l"] = 1
        client.L.clear()
        client.g.__defaults__ = None
        registry.revert()
        assert (client.T, client.L, client.g.__defaults__) == ({"l": 1}, [], None)

    def test_another_way_of_reaching_is_an_error(self, registry: HookRegistry) -> None:
        with pytest.raises(ValueError, match="'everything'; it must be 'globals' or 'deep'"):
            registry.apply_hooks(reach="everything")  # type: ignore[arg-type]

    def test_a_source_that_is_undone_leaves_no_holder_rebound(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        client = modules.load("client", CLIENT + "T = [price]")
        original = shop.price
        registry.register("shop.price", shout, HookType.AFTER)
        registry.register("shop.prise", shout, HookType.AFTER)
        with pytest.raises(HookApplyError):
            registry.apply_hooks(reach="deep", strict=True)
        assert client.T[0] is shop.price is original

    def test_a_suspended_coroutine_is_named(
        self, modules: Modules, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        client = modules.load(
            "client",
            CLIENT
            + """
            import types
            @types.coroutine
            def pause(): yield
            async def serve():
                step = price
                await pause()
                return step('a')
            async def produce():
                step = price
                yield
            running, producing = serve(), produce()
            """.replace("\n            ", "\n"),
        )
        client.running.send(None)
        with pytest.raises(StopIteration):
            client.producing.asend(None).send(None)
        registry.register("shop.price", shout, HookType.AFTER)
        registry.apply_hooks()
        assert registry.unreached() == {
            "shop.price": [
                "client.produce (suspended, local variable 'step')",
                "client.serve (suspended, local variable 'step')",
            ]
        }
        client.running.close()
        asyncio.run(client.producing.aclose())


class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        pytest.importorskip("torch")

    def test_what_was_compiled_or_scripted_before_is_named(self, modules: Modules) -> None:
        modules.write(
            shop="import torch\ndef price(x: torch.Tensor) -> torch.Tensor:\n    return x + 1\n",
            client="import torch\nfrom shop import price\nfast = torch.compile(price)\n",
            scripted="import torch\nfrom shop import price\nfast = torch.jit.script(price)\n",
        )
        out = run_python(
            """
            import hookery, client, scripted
            hookery.registry.register("shop.price", lambda result, x: result, hookery.HookType.AFTER)
            hookery.registry.apply_hooks()
            for address in hookery.registry.unreached()["shop.price"]:
                print(address)
            """,
            path=[modules.folder],
            options=["-W", "ignore"],
        )
        assert "client.fast" in out
        assert "scripted.fast" in out


def test_looking_for_holders_does_not_import_torch() -> None:
    out = run_python(
        """
        import sys, hookery
        hookery.registry.register("json.dumps", lambda *args: None, hookery.HookType.BEFORE)
        hookery.registry.apply_hooks(reach="deep")
        hookery.applied_hooks(unreached=True)
        print("torch" in sys.modules)
        """
    )
    assert out == "False\n"
