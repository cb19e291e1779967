"""Every kind of target, and what a hook of every type has to do on it, whichever engine puts it in place.

A cell is checked by :func:`check`, which the tests call with every engine.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hookery import HookRegistry, HookType

GENERATED, WRAPT, IN_PLACE = "generated", "wrapt", "inplace"
FUNCTION_ENGINES = (GENERATED, WRAPT, IN_PLACE)
NOT_IN_PLACE = (GENERATED, WRAPT)

SHOP = '''
import functools, operator

def price(item, count=1):
    """What it costs."""
    return f"{item}*{count}"

def keyed(item, *, count=1): return f"{item}*{count}"
def positional(item, count=1, /): return f"{item}*{count}"
def anything(*args, **kwargs): return f"{args[0]}*{kwargs.get('count', 1)}"
def many(item, a=1, b=2, c=3, d=4, *rest, count=1, **more): return f"{item}*{count}"

def make(count):
    def closure(item, times=1): return f"{item}*{count * times}"
    return closure
closure = make(2)

async def fetch(item, count=1): return f"{item}*{count}"
def items(item, count=1):
    for _ in range(count): yield item
async def stream(item, count=1):
    for _ in range(count): yield item

class Meta(type):
    def describe(cls, item, count=1): return f"{cls.__name__}:{item}*{count}"

class Till(metaclass=Meta):
    sold = ""
    stored = "empty"
    def sell(self, item, count=1): return f"{item}*{count}"
    @classmethod
    def open(cls, item, count=1): return f"{cls.__name__}:{item}*{count}"
    @staticmethod
    def quote(item, count=1): return f"{item}*{count}"
    async def fetch(self, item, count=1): return f"{item}*{count}"
    @property
    def total(self): return f"total {self.stored}"
    @total.setter
    def total(self, value): self.stored = value
    @total.deleter
    def total(self): self.stored = "deleted"
    @functools.cached_property
    def kept(self): return "kept"
    def general(self, item, count=1): return f"{item}*{count}"
    special = functools.partialmethod(general, count=7)
    @functools.lru_cache
    def remembered(self, item, count=1): return f"{item}*{count}"
    def __call__(self, item, count=1): return f"{item}*{count}"
    def __add__(self, item): return f"added {item}"
    def __class_getitem__(cls, item): return f"{cls.__name__}[{item}]"
    def __init_subclass__(cls, item="none", **kwargs): cls.made_of = item
    class Drawer:
        def open(self, item, count=1): return f"{item}*{count}"

class SubTill(Till): pass

class Made:
    def __new__(cls, item, count=1):
        made = super().__new__(cls)
        made.made_of = f"{item}*{count}"
        return made

class Begun:
    def __init__(self, item, count=1): self.made_of = f"{item}*{count}"

class Slotted:
    __slots__ = ("name",)
    def sell(self, item, count=1): return f"{item}*{count}"

class Text(str): pass
class Book(dict): pass

till = Till()
sub_till = SubTill()
slotted = Slotted()
text = Text("text ")
cached = functools.lru_cache(price)
half = functools.partial(price, count=9)
concat = operator.concat
class Caller:
    def __call__(self, item, count=1): return f"{item}*{count}"
caller = Caller()
nothing = None
also_nothing = None
'''


@dataclass(frozen=True)
class Case:
    """A kind of target. ``call`` uses it once, with "tea" as an argument where it takes one, and returns what comes of
    it; ``leading`` is what hooks see before the arguments, ``args`` and ``kwargs`` what the call passes."""

    target: str
    call: Callable[[Any], Any]
    parameters: str | None  # of a typed hook; None where the target shows no parameters
    leading: Callable[[Any], tuple[Any, ...]] = lambda shop: ()
    args: tuple[Any, ...] = ("tea",)
    kwargs: tuple[tuple[str, Any], ...] = (("count", 2),)
    engines: tuple[str, ...] = FUNCTION_ENGINES
    answers: bool = True  # what a hook returns can be seen in what comes of the call
    marked: Callable[[Any], Any] = lambda result: result + "!"
    hook_types: tuple[HookType, ...] = tuple(HookType)

    def __str__(self) -> str:
        return self.target

    def raw(self, shop: types.ModuleType) -> Any:
        """What lies at the name, and the code of the function there, which in place changes."""
        owner: Any = shop
        path = self.target.replace(".fset", "").replace(".fdel", "").split(".")[1:]
        for part in path[:-1]:
            owner = vars(owner)[part]
        raw = vars(owner).get(path[-1], "inherited")
        inner = getattr(raw, "__func__", getattr(raw, "func", raw))
        codes = [getattr(each, "__code__", None) for each in (inner, *accessors(raw))]
        return raw, codes


def accessors(raw: Any) -> tuple[Any, ...]:
    return (raw.fget, raw.fset, raw.fdel) if isinstance(raw, property) else ()


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


async def collect(stream: Any) -> str:
    return "".join([item async for item in stream])


def mark_items(result: Iterator[str]) -> Iterator[str]:
    yield from result
    yield "!"


async def mark_stream(result: Any) -> Any:
    async for item in result:
        yield item
    yield "!"


async def replaced_stream() -> Any:
    yield "replaced"


def set_total(owner: Any) -> str:
    owner.stored = "before"
    owner.total = "tea"
    return str(owner.stored)


def delete_total(owner: Any) -> str:
    owner.stored = "before"
    del owner.total
    return str(owner.stored)


def kept(owner: Any) -> str:
    vars(owner).pop("kept", None)
    return str(owner.kept)


def make_class(shop: Any) -> str:
    return str(getattr(type("New", (shop.Till,), {}, item="tea"), "made_of", "replaced"))  # type: ignore[call-overload]


def till(shop: Any) -> tuple[Any, ...]:
    return (shop.till,)


ITEM = "item, count=1"
SELF = "self, item, count=1"
NO_KEYWORDS: tuple[tuple[str, Any], ...] = ()
CASES = [
    Case("shop.price", lambda s: s.price("tea", count=2), ITEM),
    Case("shop.keyed", lambda s: s.keyed("tea", count=2), "item, *, count=1"),
    Case("shop.positional", lambda s: s.positional("tea", 2), "item, count", args=("tea", 2), kwargs=NO_KEYWORDS),
    Case("shop.anything", lambda s: s.anything("tea", count=2), None),
    Case(
        "shop.many",
        lambda s: s.many("tea", 1, 2, 3, 4, 5, count=2, extra=3),
        "item, a, b, c, d, *rest, count, **more",
        args=("tea", 1, 2, 3, 4, 5),
        kwargs=(("count", 2), ("extra", 3)),
    ),
    Case("shop.closure", lambda s: s.closure("tea", times=2), "item, times", kwargs=(("times", 2),)),
    Case("shop.fetch", lambda s: run(s.fetch("tea", count=2)), ITEM),
    Case("shop.items", lambda s: "".join(s.items("tea", count=2)), ITEM, marked=mark_items),
    Case("shop.stream", lambda s: run(collect(s.stream("tea", count=2))), ITEM, marked=mark_stream),
    Case("shop.Till.sell", lambda s: s.till.sell("tea", count=2), SELF, till),
    Case("shop.Till.open", lambda s: s.Till.open("tea", count=2), "cls, item, count=1", lambda s: (s.Till,)),
    Case("shop.Till.quote", lambda s: s.till.quote("tea", count=2), ITEM),
    Case("shop.Till.fetch", lambda s: run(s.till.fetch("tea", count=2)), SELF, till),
    Case("shop.Meta.describe", lambda s: s.Till.describe("tea", count=2), "cls, item, count", lambda s: (s.Till,)),
    Case("shop.Till.Drawer.open", lambda s: s.DRAWER.open("tea", count=2), SELF, lambda s: (s.DRAWER,)),
    Case("shop.Slotted.sell", lambda s: s.slotted.sell("tea", count=2), SELF, lambda s: (s.slotted,)),
    Case("shop.Till.__call__", lambda s: s.till("tea", count=2), SELF, till),
    Case("shop.Till.__add__", lambda s: s.till + "tea", "self, item", till, kwargs=NO_KEYWORDS),
    Case("shop.Till.__class_getitem__", lambda s: s.Till["tea"], "cls, item", lambda s: (s.Till,), kwargs=NO_KEYWORDS),
    Case(
        "shop.Till.__init_subclass__",
        make_class,
        None,
        args=(),
        kwargs=(("item", "tea"),),
        answers=False,
        leading=lambda s: (AnyNew(),),
    ),
    Case(
        "shop.Made.__new__",
        lambda s: getattr(s.Made("tea", count=2), "made_of", "replaced"),
        None,
        lambda s: (s.Made,),
        answers=False,
    ),
    Case(
        "shop.Begun.__init__",
        lambda s: getattr(s.Begun("tea", count=2), "made_of", "replaced"),
        SELF,
        lambda s: (AnyNew(),),
        answers=False,
    ),
    Case("shop.Till.total", lambda s: s.till.total, "self", till, args=(), kwargs=NO_KEYWORDS),
    Case("shop.Till.total.fset", lambda s: set_total(s.till), "self, value", till, kwargs=NO_KEYWORDS, answers=False),
    Case("shop.Till.total.fdel", lambda s: delete_total(s.till), "self", till, (), NO_KEYWORDS, answers=False),
    Case("shop.Till.kept", lambda s: kept(s.till), "self", till, args=(), kwargs=NO_KEYWORDS),
    Case(
        "shop.SubTill.sell",
        lambda s: s.sub_till.sell("tea", count=2),
        SELF,
        lambda s: (s.sub_till,),
        engines=NOT_IN_PLACE,
    ),
    Case(
        "shop.SubTill.open",
        lambda s: s.SubTill.open("tea", count=2),
        "cls, item, count",
        lambda s: (s.SubTill,),
        engines=NOT_IN_PLACE,
    ),
    Case("shop.SubTill.quote", lambda s: s.SubTill.quote("tea", count=2), ITEM, engines=NOT_IN_PLACE),
    Case(
        "shop.SubTill.total", lambda s: s.sub_till.total, "self", lambda s: (s.sub_till,), (), NO_KEYWORDS, NOT_IN_PLACE
    ),
    Case(
        "shop.SubTill.total.fset",
        lambda s: set_total(s.sub_till),
        "self, value",
        lambda s: (s.sub_till,),
        ("tea",),
        NO_KEYWORDS,
        NOT_IN_PLACE,
        answers=False,
    ),
    Case(
        "shop.SubTill.total.fdel",
        lambda s: delete_total(s.sub_till),
        "self",
        lambda s: (s.sub_till,),
        (),
        NO_KEYWORDS,
        NOT_IN_PLACE,
        answers=False,
    ),
    Case(
        "shop.SubTill.kept", lambda s: kept(s.sub_till), "self", lambda s: (s.sub_till,), (), NO_KEYWORDS, NOT_IN_PLACE
    ),
    Case("shop.Till.special", lambda s: s.till.special("tea"), None, till, kwargs=NO_KEYWORDS, engines=(WRAPT,)),
    Case("shop.Till.remembered", lambda s: s.till.remembered("tea", count=2), SELF, till, engines=(WRAPT,)),
    Case("shop.cached", lambda s: s.cached("tea", count=2), ITEM, engines=(WRAPT,)),
    Case("shop.half", lambda s: s.half("tea"), None, kwargs=NO_KEYWORDS, engines=(WRAPT,)),
    Case("shop.caller", lambda s: s.caller("tea", count=2), ITEM, engines=(WRAPT,)),
    Case(
        "shop.concat", lambda s: s.concat("tea", "2"), "a, b", args=("tea", "2"), kwargs=NO_KEYWORDS, engines=(WRAPT,)
    ),
    Case(
        "shop.Text.__add__",
        lambda s: s.text + "tea",
        "self, value",
        lambda s: (s.text,),
        kwargs=NO_KEYWORDS,
        engines=(WRAPT,),
    ),
    Case(
        "shop.Book.fromkeys",
        lambda s: "".join(s.Book.fromkeys("tea")),
        None,
        lambda s: (s.Book,),
        kwargs=NO_KEYWORDS,
        engines=(WRAPT,),
        marked=lambda result: {**result, "!": None},
    ),
    Case(
        "shop.nothing",
        lambda s: s.nothing("tea", count=2) if s.nothing is not None else None,
        None,
        engines=(GENERATED,),
        hook_types=(HookType.REPLACE,),
    ),
]


class AnyNew:
    """Equal to whatever the call has just made."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def cells() -> list[tuple[Case, str, HookType, bool]]:
    return [
        (case, engine, hook_type, typed)
        for case in CASES
        for engine in case.engines
        for hook_type in case.hook_types
        for typed in ((False, True) if case.parameters is not None else (False,))
    ]


def cell_name(cell: tuple[Case, str, HookType, bool]) -> str:
    case, engine, hook_type, typed = cell
    return f"{case}-{engine}-{hook_type.name}-{'typed' if typed else 'generic'}"


Seen = list[tuple[tuple[Any, ...], dict[str, Any]]]


def make_hook(case: Case, hook_type: HookType, typed: bool, seen: Seen, results: list[Any]) -> Any:
    """A hook that notes what it sees, changes "tea" to "cake", marks the result or replaces it."""

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append((args, kwargs))
        return cake(args), cake(kwargs)

    def after(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append((args, kwargs))
        results.append(result)
        return case.marked(result) if case.answers else None

    def around(original_fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append((args, kwargs))
        result = original_fn(*args, **kwargs)
        if inspect.isawaitable(result):
            return settled(result)
        return case.marked(result) if case.answers else result

    async def settled(result: Any) -> Any:
        return case.marked(await result)

    def replace(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append((args, kwargs))
        if case.marked is mark_stream:
            return replaced_stream()
        return "replaced" if case.answers else None

    body = {HookType.BEFORE: before, HookType.AFTER: after, HookType.AROUND: around, HookType.REPLACE: replace}
    first = {HookType.AFTER: "result, ", HookType.AROUND: "original_fn, "}.get(hook_type, "")
    parameters = case.parameters if typed and case.parameters is not None else "*args, **kwargs"
    names = [name.split("=")[0].strip() for name in parameters.split(",")]
    positional = ", ".join(name for name in names if name not in ("*", "count") and not name.startswith("**"))
    keywords = ", ".join(
        [*(["count=count"] if "count" in names else []), *(name for name in names if name.startswith("**"))]
    )
    if case.target == "shop.positional":
        positional, keywords = "item, count", ""
    if typed:
        call = f"body({first}({positional},), dict({keywords}))"
    else:
        call = f"body({first}args, kwargs)"
    namespace: dict[str, Any] = {"body": body[hook_type], "HookType": HookType}
    exec(f"def hook({first}{parameters}): return {call}", namespace)
    return namespace["hook"]


def cake(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: "cake" if value == "tea" else value for name, value in values.items()}
    return tuple("cake" if type(value) is str and value == "tea" else value for value in values)


def as_text(result: Any) -> Any:
    """What came of a call, or what an AFTER hook saw, in one form."""
    if inspect.isgenerator(result):
        return "".join(result)
    return result


def check(cell: tuple[Case, str, HookType, bool], shop: types.ModuleType, registry: HookRegistry) -> None:
    """Hook the target, use it, take the hook back, use it again.

    Raises:
        AssertionError: something did not go as the contract says.
    """
    case, engine, hook_type, typed = cell
    shop.DRAWER = shop.Till.Drawer()  # type: ignore[attr-defined]
    raw = case.raw(shop)
    plain = case.call(shop)
    seen: Seen = []
    results: list[Any] = []
    hook = make_hook(case, hook_type, typed, seen, results)
    record = registry.register(case.target, hook, hook_type, engine=engine)
    registry.apply_hooks(strict=True)
    assert (record.engine, record.ran) == (engine, False)
    came = case.call(shop)
    leading = case.leading(shop)
    expected = ((*leading, *case.args), dict(case.kwargs))
    if typed and "times" in dict(case.kwargs):
        expected = ((*leading, *case.args, 2), {})
    assert seen == [expected]
    assert record.ran
    if hook_type is HookType.BEFORE:
        assert came == (plain.replace("tea", "cake") if isinstance(plain, str) else plain)
    elif hook_type is HookType.REPLACE:
        assert came == "replaced" if case.answers else came != plain
    else:
        assert came == (plain + "!" if case.answers else plain)
    registry.revert()
    assert case.raw(shop)[0] is raw[0] or raw[0] == "inherited" == case.raw(shop)[0]
    assert case.raw(shop)[1] == raw[1]
    assert case.call(shop) == plain
    assert len(seen) == 1
