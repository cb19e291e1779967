"""Hooks on coroutine functions, generators and asynchronous generators."""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import AsyncIterator
from typing import Any

import pytest

import hookery
from hookery import HookApplyError, HookRegistry, HookSource, HookType
from tests.hookery.support import Modules

SHOP = """
    import asyncio

    log = []

    async def fetch(item):
        await asyncio.sleep(0)
        return item

    class Till:
        async def fetch(self, item):
            return item

        @classmethod
        async def fetch_for_class(cls, item):
            return cls.__name__ + item

        @staticmethod
        async def fetch_static(item):
            return item

    class SubTill(Till):
        pass

    class Fetcher:
        async def __call__(self, item):
            return item

    fetcher = Fetcher()

    def items(count):
        log.append("started")
        received = []
        try:
            for number in range(count):
                try:
                    received.append((yield number))
                except KeyError:
                    received.append("KeyError")
        finally:
            log.append("closed")
        return received

    async def stream(count):
        log.append("started")
        try:
            for number in range(count):
                try:
                    log.append((yield number))
                except KeyError:
                    log.append("KeyError")
                    yield "handled"
        finally:
            log.append("closed")
"""


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", SHOP)


async def settle(value: Any) -> Any:
    return await value


ASYNC_CALLS = {
    "shop.fetch": lambda shop: shop.fetch,
    "shop.Till.fetch": lambda shop: shop.Till().fetch,
    "shop.Till.fetch_for_class": lambda shop: shop.Till.fetch_for_class,
    "shop.Till.fetch_static": lambda shop: shop.Till.fetch_static,
    "shop.SubTill.fetch": lambda shop: shop.SubTill().fetch,
    "shop.fetcher": lambda shop: shop.fetcher,
}


@pytest.mark.parametrize("target", ASYNC_CALLS)
class TestCoroutineFunctions:
    def call(self, shop: types.ModuleType, target: str, item: str = "tea") -> Any:
        return asyncio.run(settle(ASYNC_CALLS[target](shop)(item)))

    def test_after_sees_the_awaited_value(self, shop: types.ModuleType, registry: HookRegistry, target: str) -> None:
        registry.register(target, lambda result, *args: result.upper(), HookType.AFTER)
        registry.apply_hooks()
        assert self.call(shop, target).endswith("TEA")

    def test_after_makes_none_with_NONE(  # noqa: N802
        self, shop: types.ModuleType, registry: HookRegistry, target: str
    ) -> None:
        registry.register(target, lambda result, *args: hookery.NONE, HookType.AFTER)
        registry.apply_hooks()
        assert self.call(shop, target) is None

    def test_before_changes_the_arguments(self, shop: types.ModuleType, registry: HookRegistry, target: str) -> None:
        registry.register(target, lambda *args: ((*args[:-1], "cake"), {}), HookType.BEFORE)
        registry.apply_hooks()
        assert self.call(shop, target).endswith("cake")

    def test_what_a_synchronous_around_returns_is_awaited(
        self, shop: types.ModuleType, registry: HookRegistry, target: str
    ) -> None:
        registry.register(target, lambda original_fn, *args: original_fn(*args), HookType.AROUND)
        registry.apply_hooks()
        assert self.call(shop, target).endswith("tea")

    def test_a_synchronous_around_may_answer_by_itself(
        self, shop: types.ModuleType, registry: HookRegistry, target: str
    ) -> None:
        registry.register(target, lambda original_fn, *args: "none left", HookType.AROUND)
        registry.apply_hooks()
        assert self.call(shop, target) == "none left"

    def test_every_type_of_hook_may_be_a_coroutine_function(
        self, shop: types.ModuleType, registry: HookRegistry, target: str
    ) -> None:
        async def before(*args: Any) -> Any:
            await asyncio.sleep(0)
            return (*args[:-1], args[-1] + "+before"), {}

        async def after(result: str, *args: Any) -> str:
            await asyncio.sleep(0)
            return result + "+after"

        async def around(original_fn: Any, *args: Any) -> str:
            return str(await original_fn(*args)) + "+around"

        async def replace(*args: Any) -> str:
            await asyncio.sleep(0)
            return f"replaced {args[-1]}"

        for hook, hook_type in (
            (before, HookType.BEFORE),
            (after, HookType.AFTER),
            (around, HookType.AROUND),
            (replace, HookType.REPLACE),
        ):
            registry.register(target, hook, hook_type)
        registry.apply_hooks()
        assert self.call(shop, target) == "replaced tea+before+after+around"

    def test_hooks_run_when_it_is_awaited_not_when_it_is_called(
        self, shop: types.ModuleType, registry: HookRegistry, target: str
    ) -> None:
        seen: list[str] = []
        registry.register(target, lambda *args: seen.append("ran"), HookType.BEFORE)
        registry.apply_hooks()
        coroutine = ASYNC_CALLS[target](shop)("tea")
        assert seen == []
        asyncio.run(coroutine)
        assert seen == ["ran"]


@pytest.mark.parametrize("name", ["fetch", "items", "stream"])
def test_a_hooked_function_is_still_recognised_as_what_it_is(
    shop: types.ModuleType, registry: HookRegistry, name: str
) -> None:
    def kinds() -> list[bool]:
        function = getattr(shop, name)
        tests = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        return [test(function) for test in tests]

    before = kinds()
    assert sum(before) == 1
    registry.register(f"shop.{name}", lambda *args: None, HookType.BEFORE)
    registry.apply_hooks()
    assert kinds() == before


@pytest.mark.parametrize("hook_type", HookType)
@pytest.mark.parametrize("target", ["shop.items", "shop.stream", "shop.Till.__init__"])
def test_a_coroutine_hook_on_a_target_that_nobody_awaits_is_an_error_and_changes_nothing(
    shop: types.ModuleType, registry: HookRegistry, hook_type: HookType, target: str
) -> None:
    async def hook(*args: Any) -> None: ...

    before = dict(vars(shop)), dict(vars(shop.Till))
    registry.register(target, hook, hook_type)
    with pytest.raises(HookApplyError, match="coroutine function but its target is not"):
        registry.apply_hooks()
    assert (dict(vars(shop)), dict(vars(shop.Till))) == before


def test_a_coroutine_hook_that_does_not_fit_leaves_the_hooks_of_others_running(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    async def hook(*args: Any) -> None: ...

    seen: list[str] = []
    registry.register("shop.items", lambda *args: seen.append("ran"), HookType.BEFORE, source=HookSource("good"))
    registry.apply_hooks()
    registry.register("shop.items", hook, HookType.BEFORE, source=HookSource("bad"))
    with pytest.raises(HookApplyError):
        registry.apply_hooks()
    assert list(shop.items(2)) == [0, 1]
    assert seen == ["ran"]


class TestGenerators:
    def test_hooks_run_at_the_first_next(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        seen: list[str] = []
        registry.register("shop.items", lambda *args: seen.append("before"), HookType.BEFORE)
        registry.apply_hooks()
        generator = shop.items(2)
        assert (seen, shop.log) == ([], [])
        next(generator)
        assert (seen, shop.log) == (["before"], ["started"])

    def test_send_throw_and_the_return_value_pass_through(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.items", lambda original_fn, *args: original_fn(*args), HookType.AROUND)
        registry.apply_hooks()
        generator = shop.items(3)
        assert next(generator) == 0
        assert generator.send("hello") == 1
        assert generator.throw(KeyError("x")) == 2
        with pytest.raises(StopIteration) as stopped:
            next(generator)
        assert stopped.value.value == ["hello", "KeyError", None]

    def test_close_reaches_the_original(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.items", lambda *args: None, HookType.BEFORE)
        registry.apply_hooks()
        generator = shop.items(3)
        next(generator)
        generator.close()
        assert shop.log == ["started", "closed"]

    def test_before_changes_the_arguments(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.items", lambda count: ((count + 1,), {}), HookType.BEFORE)
        registry.apply_hooks()
        assert list(shop.items(1)) == [0, 1]

    def test_after_sees_the_generator_and_may_wrap_it(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.items", lambda result, count: (item * 10 for item in result), HookType.AFTER)
        registry.apply_hooks()
        assert list(shop.items(3)) == [0, 10, 20]

    def test_a_generator_function_may_go_around_it(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        def around(original_fn: Any, count: int) -> Any:
            yield "first"
            yield from original_fn(count)
            yield "last"

        registry.register("shop.items", around, HookType.AROUND)
        registry.apply_hooks()
        assert list(shop.items(1)) == ["first", 0, "last"]

    def test_a_replacement_may_return_any_iterable(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.items", lambda count: [7] * count, HookType.REPLACE)
        registry.apply_hooks()
        assert list(shop.items(2)) == [7, 7]


class TestAsynchronousGenerators:
    def test_hooks_run_at_the_first_step(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        seen: list[str] = []
        registry.register("shop.stream", lambda *args: seen.append("before"), HookType.BEFORE)
        registry.apply_hooks()

        async def scenario() -> None:
            stream = shop.stream(2)
            assert seen == []
            assert await anext(stream) == 0
            assert seen == ["before"]
            assert [item async for item in stream] == [1]

        asyncio.run(scenario())

    def test_asend_and_athrow_reach_the_original(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.stream", lambda original_fn, *args: original_fn(*args), HookType.AROUND)
        registry.apply_hooks()

        async def scenario() -> None:
            stream = shop.stream(3)
            assert await anext(stream) == 0
            assert await stream.asend("hello") == 1
            assert await stream.athrow(KeyError("x")) == "handled"
            assert await anext(stream) == 2
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

        asyncio.run(scenario())
        assert shop.log == ["started", "hello", "KeyError", None, "closed"]

    def test_an_exception_that_the_original_does_not_handle_comes_out(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.stream", lambda *args: None, HookType.BEFORE)
        registry.apply_hooks()

        async def scenario() -> None:
            stream = shop.stream(3)
            await anext(stream)
            with pytest.raises(ZeroDivisionError):
                await stream.athrow(ZeroDivisionError())
            assert [item async for item in stream] == []

        asyncio.run(scenario())
        assert shop.log == ["started", "closed"]

    def test_aclose_reaches_the_original_before_it_returns(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        registry.register("shop.stream", lambda *args: None, HookType.BEFORE)
        registry.apply_hooks()

        async def scenario() -> None:
            stream = shop.stream(3)
            await anext(stream)
            await stream.aclose()
            assert shop.log == ["started", "closed"]

        asyncio.run(scenario())

    def test_cancellation_while_it_waits_closes_the_original(self, modules: Modules, registry: HookRegistry) -> None:
        shop = modules.load(
            "shop",
            """
            log = []

            async def stream(event):
                try:
                    yield 0
                    await event.wait()
                    yield 1
                finally:
                    log.append("closed")
            """,
        )
        registry.register("shop.stream", lambda *args: None, HookType.BEFORE)
        registry.apply_hooks()

        async def scenario() -> None:
            reached = asyncio.Event()

            async def consume() -> None:
                async for _ in shop.stream(asyncio.Event()):
                    reached.set()

            task = asyncio.create_task(consume())
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert shop.log == ["closed"]

        asyncio.run(scenario())

    def test_an_asynchronous_generator_may_go_around_it(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        async def around(original_fn: Any, count: int) -> AsyncIterator[Any]:
            yield "first"
            async for item in original_fn(count):
                yield item * 10

        registry.register("shop.stream", around, HookType.AROUND)
        registry.apply_hooks()

        async def scenario() -> list[Any]:
            return [item async for item in shop.stream(3)]

        assert asyncio.run(scenario()) == ["first", 0, 10, 20]

    def test_a_replacement_may_return_a_bare_asynchronous_iterator(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        class Countdown:
            def __init__(self, count: int) -> None:
                self.count = count

            def __aiter__(self) -> Countdown:
                return self

            async def __anext__(self) -> int:
                self.count -= 1
                if self.count < 0:
                    raise StopAsyncIteration
                return self.count

        registry.register("shop.stream", lambda count: Countdown(count), HookType.REPLACE)
        registry.apply_hooks()

        async def scenario() -> None:
            assert [item async for item in shop.stream(2)] == [1, 0]
            stream = shop.stream(2)
            await anext(stream)
            with pytest.raises(KeyError):
                await stream.athrow(KeyError("nobody handles it"))
            stream = shop.stream(2)
            await anext(stream)
            await stream.aclose()

        asyncio.run(scenario())
