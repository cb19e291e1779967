"""Registering, applying, importing and calling from several threads at once."""

from __future__ import annotations

import importlib
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from hookery import HookRegistry, HookSource, HookState, HookType, patch_table
from tests.hookery.support import Modules, run_python

THREADS = 4
ROUNDS = 12


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(*works: Callable[[], None]) -> None:
    """Run the works in threads that start at the same moment; raise what the first failing one raised."""
    barrier = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (raised again in the main thread)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread is stuck"
    if errors:
        raise errors[0]


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", "def price(item): return item\nclass Till:\n    def sell(self, item): return item")


def test_registries_come_and_go_while_the_target_is_called(shop: types.ModuleType) -> None:
    original = shop.price
    stop = threading.Event()

    def come_and_go(mark: str) -> Callable[[], None]:
        def work() -> None:
            registry = HookRegistry()
            for _ in range(ROUNDS):
                registry.register("shop.price", lambda result, item: result + mark, HookType.AFTER)
                registry.register("shop.Till.sell", lambda result, *args: result + mark, HookType.AFTER)
                registry.apply_hooks()
                assert mark in shop.price("tea")
                assert mark in shop.Till().sell("tea")
                registry.revert()
                assert mark not in shop.price("tea")

        return work

    def call() -> None:
        while not stop.is_set():
            assert shop.price("tea").startswith("tea")
            assert shop.Till().sell("tea").startswith("tea")

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    try:
        together(*(come_and_go(mark) for mark in "1234"))
    finally:
        stop.set()
        caller.join(60)
    assert not caller.is_alive()
    assert shop.price is original
    assert patch_table.all_patches() == []


def test_threads_that_register_with_one_registry_lose_no_hook(shop: types.ModuleType, registry: HookRegistry) -> None:
    def register(thread: int) -> Callable[[], None]:
        def work() -> None:
            for number in range(ROUNDS):
                registry.register(
                    "shop.price", lambda result, item: [*result, 1], HookType.AFTER, source=HookSource(f"{thread}")
                )
                if number % 7 == 0:
                    registry.apply_hooks()

        return work

    together(*(register(thread) for thread in range(THREADS)))
    registry.apply_hooks()
    assert len(shop.price([])) == THREADS * ROUNDS
    assert {record.state for record in registry.applied_hooks()} == {"applied"}
    orders = [record.order for record in registry.applied_hooks()]
    assert len(set(orders)) == len(orders)


def test_threads_that_apply_at_once_apply_each_hook_once(shop: types.ModuleType, registry: HookRegistry) -> None:
    for _ in range(ROUNDS):
        registry.register("shop.price", lambda result, item: [*result, 1], HookType.AFTER)
    together(*[registry.apply_hooks] * THREADS)
    assert len(shop.price([])) == ROUNDS


def test_importing_and_applying_at_once_hooks_every_module(modules: Modules, registry: HookRegistry) -> None:
    names = [f"shop{number}" for number in range(24)]
    modules.write(**dict.fromkeys(names, "def price(item): return item"))
    hooks = []
    for name in names:
        hooks.append(registry.register(f"{name}.price", lambda result, item: result + "!", HookType.AFTER))

    def import_all(step: int) -> Callable[[], None]:
        def work() -> None:
            for name in names[::step]:
                assert importlib.import_module(name).price("tea") in ("tea", "tea!")

        return work

    def apply() -> None:
        for _ in range(ROUNDS):
            registry.apply_hooks()

    together(import_all(1), import_all(-1), apply, apply)
    registry.apply_hooks()
    assert [sys.modules[name].price("tea") for name in names] == ["tea!"] * len(names)
    assert {hook.state for hook in hooks} == {HookState.APPLIED}


def test_an_import_finds_its_module_while_the_finder_comes_and_goes(modules: Modules) -> None:
    names = [f"shop{number}" for number in range(60)]
    modules.write(**dict.fromkeys(names, ""))

    def come_and_go() -> None:
        registry = HookRegistry()
        for _ in range(ROUNDS * 5):
            registry.register("not_imported_yet_anywhere:f", lambda *args: None, HookType.BEFORE)
            registry.register("wsgiref.util.guess_scheme", lambda *args: None, HookType.BEFORE)
            registry.apply_pending()
            registry.reset()

    def import_all() -> None:
        for name in names:
            importlib.import_module(name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together(come_and_go, import_all)


def test_a_target_that_is_called_while_its_module_is_applied_in_another_thread_does_not_block() -> None:
    out = run_python(
        """
        import threading, types, sys, hookery
        from hookery import HookType, patch_table, patches

        shop = types.ModuleType("shop")
        exec("def price(item): return item", vars(shop))
        sys.modules["shop"] = shop
        hookery.registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
        hookery.registry.apply_hooks()
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with patches.lock:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        print(shop.price("tea"))
        done.set()
        thread.join()
        """
    )
    assert out == "tea!\n"


def test_no_import_happens_while_the_lock_is_held(modules: Modules) -> None:
    modules.write(
        shop="""
        class Till:
            def sell(self, item): return item
        """,
        later="def price(item): return item",
    )
    out = run_python(
        """
        import builtins, importlib, sys
        import hookery
        from hookery import HookType, patch_table, patches

        guilty = []

        class Guard:
            def find_spec(self, name, path=None, target=None):
                if patches.lock._is_owned():
                    guilty.append(name)

        sys.meta_path.insert(0, Guard())

        class NewTill:
            def sell(self, item): return "new"

        hookery.registry.register("shop.Till.sell", lambda *args: None, HookType.BEFORE)
        hookery.registry.register("shop.Till", NewTill, HookType.REPLACE)
        hookery.registry.register("later.price", lambda *args: None, HookType.BEFORE)
        hookery.registry.apply_hooks(eager=True)
        hookery.registry.revert("shop.Till")
        importlib.reload(sys.modules["later"])
        import shop
        hookery.registry.reset()
        print(guilty)
        """,
        path=[modules.folder],
    )
    assert out == "[]\n"


class TestInterleavings:
    """What another thread may do at one certain moment, done at that moment."""

    @pytest.fixture
    def between(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
        """Have something happen once, after a target has been resolved and before the outcome is used."""

        def arrange(happening: Callable[[], object]) -> None:
            pending = [happening]

            def resolve(*args: object, **kwargs: object) -> object:
                outcome = real_resolve(*args, **kwargs)
                while pending:
                    pending.pop()()
                return outcome

            monkeypatch.setattr(registry_module, "resolve", resolve)

        registry_module = sys.modules["hookery.registry"]  # the package's attribute of that name is the registry
        real_resolve = vars(registry_module)["resolve"]
        return arrange

    def test_hooks_taken_back_while_they_are_being_applied_stay_away(
        self, shop: types.ModuleType, registry: HookRegistry, between: Callable[[Callable[[], object]], None]
    ) -> None:
        original = shop.price
        hook = registry.register("shop.price", lambda item: None, HookType.BEFORE)
        between(registry.revert)
        registry.apply_hooks()
        assert shop.price is original
        assert hook.state is HookState.REVERTED

    def test_a_hook_that_an_import_applied_meanwhile_is_not_set_back_to_pending(
        self, modules: Modules, registry: HookRegistry, between: Callable[[Callable[[], object]], None]
    ) -> None:
        modules.write(shop="def price(item): return item")
        hook = registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)

        def import_and_apply() -> None:
            modules.load("shop")
            registry.apply_hooks()

        between(import_and_apply)
        registry.apply_hooks()
        assert sys.modules["shop"].price("tea") == "tea!"
        assert hook.state is HookState.APPLIED

    def test_a_target_that_lost_its_other_hooks_meanwhile_is_hooked_as_it_stands(
        self, shop: types.ModuleType, registry: HookRegistry, between: Callable[[Callable[[], object]], None]
    ) -> None:
        original = shop.price
        other = HookRegistry()
        other.register("shop.price", lambda item: None, HookType.BEFORE)
        other.apply_hooks()
        registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
        between(other.revert)
        registry.apply_hooks()
        assert shop.price("tea") == "tea!"
        registry.revert()
        assert shop.price is original

    def test_an_import_under_way_when_the_finder_leaves_skips_no_other_finder(
        self, modules: Modules, registry: HookRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modules.write(found_by_the_next="", shop="")

        class Leaves:
            def find_spec(self, name: str, path: object = None, target: object = None) -> None:
                if name == "found_by_the_next":
                    registry.revert()

        class Next:
            asked: ClassVar[list[str]] = []

            def find_spec(self, name: str, path: object = None, target: object = None) -> None:
                self.asked.append(name)

        registry.register("shop.price", lambda item: None, HookType.BEFORE)
        monkeypatch.setattr(sys, "meta_path", [Leaves(), Next(), *sys.meta_path])
        registry.apply_hooks()
        modules.load("found_by_the_next")
        assert "found_by_the_next" in Next.asked
