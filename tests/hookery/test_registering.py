"""Registering: the decorator, what is one hook and what are two, and what is refused."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest

import hookery
from hookery import HookRegistry, HookSource, HookState, HookType, plugin_hook
from tests.hookery.support import Modules, run_python


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load("shop", "def price(item): return item\nclass Till: pass")


def note(*args: object) -> None: ...


def test_the_decorator_returns_the_very_object_and_registers_it_with_the_process() -> None:
    out = run_python(
        """
        import hookery
        from hookery import HookType, plugin_hook

        def sign(result, *args, **kwargs):
            return result + " signed"

        assert plugin_hook("json.dumps", HookType.AFTER, priority=3, reason="why not")(sign) is sign
        import json
        assert json.dumps(1) == "1"
        hookery.load_plugins()
        print(json.dumps(1))
        (record,) = hookery.applied_hooks()
        print(record.target, record.hook, record.type, record.source, record.priority, record.reason, record.state)
        """,
        environment={"HOOKERY_PLUGINS": ""},
    )
    assert out.splitlines() == ["1 signed", "json.dumps __main__:sign after __main__ 3 why not applied"]


def test_a_hook_is_an_after_hook_unless_it_says_otherwise() -> None:
    out = run_python(
        """
        import hookery
        @hookery.plugin_hook("json.dumps")
        def sign(result, *args, **kwargs): return result + "!"
        hookery.registry.apply_hooks()
        import json
        print(json.dumps(1))
        """
    )
    assert out == "1!\n"


def test_nothing_happens_before_hooks_are_applied(shop: types.ModuleType, registry: HookRegistry) -> None:
    original = shop.price
    hook = registry.register("shop.price", note, HookType.BEFORE)
    assert shop.price is original
    assert hook.state is HookState.PENDING


@pytest.mark.parametrize(
    ("hook", "hook_type", "options", "message"),
    [
        ("not callable", HookType.BEFORE, {}, "is not callable"),
        (None, HookType.REPLACE, {}, "is not callable"),
        (note, "before", {}, "is not a HookType"),
        (note, None, {}, "is not a HookType"),
        (dict, HookType.BEFORE, {}, "can only REPLACE, not BEFORE"),
        (dict, HookType.AFTER, {}, "can only REPLACE, not AFTER"),
        (dict, HookType.AROUND, {}, "can only REPLACE, not AROUND"),
        (note, HookType.BEFORE, {"priority": "high"}, "must be an int"),
        (note, HookType.BEFORE, {"priority": 1.0}, "must be an int"),
        (note, HookType.BEFORE, {"priority": True}, "must be an int"),
    ],
)
def test_a_mistake_is_a_type_error_at_registration_and_registers_nothing(
    registry: HookRegistry, hook: Any, hook_type: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        registry.register("shop.price", hook, hook_type, **options)
    assert registry.applied_hooks() == []


class TestOneHookOrTwo:
    def test_the_same_object_registered_twice_runs_once(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        seen: list[str] = []
        hook = seen.append
        assert registry.register("shop.price", hook, HookType.BEFORE) is registry.register(
            "shop.price", hook, HookType.BEFORE
        )
        registry.apply_hooks()
        registry.register("shop.price", hook, HookType.BEFORE)
        registry.apply_hooks()
        shop.price("tea")
        assert seen == ["tea"]

    def test_counting_is_one_of_the_options_where_it_was_asked_for(self, registry: HookRegistry) -> None:
        hook = registry.register("shop.price", note, HookType.BEFORE, count=True)
        assert registry.register("shop.price", note, HookType.BEFORE) is hook
        assert hook.counted
        with pytest.raises(ValueError, match=r"registered already, with .* count True"):
            registry.register("shop.price", note, HookType.BEFORE, count=False)
        other = registry.register("shop.cost", note, HookType.BEFORE)
        with pytest.raises(ValueError, match=r"registered already, with .* count False"):
            registry.register("shop.cost", note, HookType.BEFORE, count=True)
        assert not other.counted

    def test_the_same_object_with_other_options_is_an_error_that_says_what_to_do(self, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE, priority=1)
        with pytest.raises(ValueError, match=r"registered already, with priority 1 and .* revert it first"):
            registry.register("shop.price", note, HookType.BEFORE, priority=2)

    def test_the_same_object_as_two_types_is_two_hooks(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        seen: list[tuple[object, ...]] = []

        def see(*args: object) -> None:
            seen.append(args)

        registry.register("shop.price", see, HookType.BEFORE)
        registry.register("shop.price", see, HookType.AFTER)
        registry.apply_hooks()
        shop.price("tea")
        assert seen == [("tea",), ("tea", "tea")]

    def test_two_lambdas_are_two_hooks(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        for _ in range(2):
            registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "tea!!"

    def test_two_closures_of_one_function_are_two_hooks(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        def make(mark: str) -> Any:
            def sign(result: str, item: str) -> str:
                return result + mark

            return sign

        for mark in "?!":
            registry.register("shop.price", make(mark), HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "tea?!"

    def test_two_bound_methods_of_two_objects_are_two_hooks(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        first: list[str] = []
        second: list[str] = []
        registry.register("shop.price", first.append, HookType.BEFORE)
        registry.register("shop.price", second.append, HookType.BEFORE)
        registry.apply_hooks()
        shop.price("tea")
        assert (first, second) == (["tea"], ["tea"])


class TestReloadOfAHook:
    """An importable function that a reload made again is the hook it was, in its place and in its new version."""

    HOOKS = """
        import hookery

        MARK = {mark!r}
        target_registry = __import__("sys").modules["registry_of_the_test"].registry

        def sign(result, item):
            return result + MARK

        target_registry.register("shop.price", sign, hookery.HookType.AFTER, priority={priority})
    """

    @pytest.fixture(autouse=True)
    def _shared(self, registry: HookRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        holder = types.ModuleType("registry_of_the_test")
        holder.registry = registry  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "registry_of_the_test", holder)

    def test_the_new_version_runs_at_once_and_the_old_one_no_more(
        self, shop: types.ModuleType, modules: Modules, registry: HookRegistry
    ) -> None:
        plug = modules.load("plug", self.HOOKS.format(mark="1", priority=0))
        registry.register("shop.price", lambda result, item: result + "other", HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "tea1other"
        stand_in = shop.price
        modules.write(plug=self.HOOKS.format(mark="2", priority=0))
        importlib.reload(plug)
        assert shop.price("tea") == "tea2other"
        assert shop.price is stand_in
        assert len(registry.applied_hooks()) == 2

    def test_before_anything_is_applied_the_new_version_takes_its_place(
        self, shop: types.ModuleType, modules: Modules, registry: HookRegistry
    ) -> None:
        plug = modules.load("plug", self.HOOKS.format(mark="1", priority=0))
        modules.write(plug=self.HOOKS.format(mark="2", priority=0))
        importlib.reload(plug)
        registry.apply_hooks()
        assert shop.price("tea") == "tea2"

    def test_a_new_priority_moves_it(self, shop: types.ModuleType, modules: Modules, registry: HookRegistry) -> None:
        plug = modules.load("plug", self.HOOKS.format(mark="1", priority=0))
        registry.register("shop.price", lambda result, item: result + "other", HookType.AFTER)
        registry.apply_hooks()
        modules.write(plug=self.HOOKS.format(mark="2", priority=5))
        importlib.reload(plug)
        assert shop.price("tea") == "teaother2"

    def test_what_it_has_become_may_no_longer_fit(
        self, shop: types.ModuleType, modules: Modules, registry: HookRegistry
    ) -> None:
        original = shop.price
        plug = modules.load("plug", self.HOOKS.format(mark="1", priority=0))
        registry.apply_hooks()
        modules.write(plug=self.HOOKS.format(mark="2", priority=0).replace("def sign", "async def sign"))
        importlib.reload(plug)
        assert shop.price is original
        with pytest.raises(hookery.HookApplyError, match="coroutine function"):
            registry.apply_hooks()

    def test_its_name_in_main_and_in_a_child_of_main_is_one(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        def made_in(module: str) -> Any:
            namespace: dict[str, Any] = {"__name__": module}
            exec("def sign(result, item): return result + '!'", namespace)
            return namespace["sign"]

        registry.register("shop.price", made_in("__main__"), HookType.AFTER)
        registry.register("shop.price", made_in("__mp_main__"), HookType.AFTER)
        registry.apply_hooks()
        assert shop.price("tea") == "tea!"


def test_a_hook_that_was_reverted_may_be_registered_again(shop: types.ModuleType, registry: HookRegistry) -> None:
    seen: list[object] = []
    for priority in (1, 2):
        registry.register("shop.price", seen.append, HookType.BEFORE, priority=priority)
        registry.apply_hooks()
        shop.price("tea")
        registry.revert()
        shop.price("cake")
    assert seen == ["tea", "tea"]


def test_without_more_said_the_source_is_the_hooks_own_module(registry: HookRegistry) -> None:
    assert registry.register("shop.price", note, HookType.BEFORE).source == HookSource(__name__)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (HookSource("plug"), "plug"),
        (HookSource("plug", "plug-dist"), "plug (plug-dist)"),
        (HookSource("plug", "plug-dist", "1.2"), "plug (plug-dist 1.2)"),
    ],
)
def test_a_source_reads_as_name_distribution_and_version(source: HookSource, text: str) -> None:
    assert str(source) == text


def test_registering_again_after_the_other_hooks_source_failed_is_possible(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.price", note, HookType.BEFORE)
    registry.register("shop.missing", note, HookType.BEFORE)
    with pytest.raises(hookery.HookApplyError):
        registry.apply_hooks(strict=True)
    hook = registry.register("shop.price", note, HookType.BEFORE)
    registry.apply_hooks(strict=True)
    assert hook.state is HookState.APPLIED


def test_plugin_hook_is_exported_where_the_readme_says() -> None:
    assert plugin_hook is hookery.plugin_hook
    assert set(hookery.__all__) <= set(dir(hookery))


def test_none_is_one_object_that_says_what_it_is() -> None:
    import copy
    import pickle

    assert repr(hookery.NONE) == "hookery.NONE"
    assert pickle.loads(pickle.dumps(hookery.NONE)) is copy.deepcopy(hookery.NONE) is hookery.NONE
