"""What the listing says: where each hook stands, whether it ran and, where asked for, how often."""

from __future__ import annotations

import dataclasses
import json
import types
from typing import Any

import pytest

import hookery
from hookery import HookRegistry, HookSource, HookType, HookWarning, format_table
from tests.hookery.support import Modules, run_python


@pytest.fixture
def shop(modules: Modules) -> types.ModuleType:
    return modules.load(
        "shop",
        """
        def price(item): return item
        async def fetch(item): return item
        def items(n): yield from range(n)
        class Till:
            def sell(self, item): return item
        """,
    )


def note(*args: Any) -> None: ...


def ran(registry: HookRegistry) -> list[bool]:
    return [record.ran for record in registry.applied_hooks()]


@pytest.mark.parametrize("hook_type", HookType)
def test_a_hook_has_run_once_its_target_was_called(
    shop: types.ModuleType, registry: HookRegistry, hook_type: HookType
) -> None:
    registry.register("shop.price", lambda *args: None, hook_type)
    registry.apply_hooks()
    assert ran(registry) == [False]
    shop.price("tea")
    assert ran(registry) == [True]


def test_a_hook_that_an_outer_one_keeps_from_running_has_not_run(
    shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.price", lambda *args: None, HookType.BEFORE)
    registry.register("shop.price", lambda original_fn, *args: "mine", HookType.AROUND)
    registry.apply_hooks()
    assert shop.price("tea") == "mine"
    assert ran(registry) == [False, True]


def test_a_hook_that_raised_has_run(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.price", lambda item: 1 / 0, HookType.BEFORE)
    registry.apply_hooks()
    with pytest.raises(ZeroDivisionError):
        shop.price("tea")
    assert ran(registry) == [True]


def test_a_hook_on_a_generator_runs_with_the_first_next(shop: types.ModuleType, registry: HookRegistry) -> None:
    registry.register("shop.items", note, HookType.BEFORE)
    registry.apply_hooks()
    generator = shop.items(1)
    assert ran(registry) == [False]
    next(generator)
    assert ran(registry) == [True]


class TestCounting:
    @pytest.mark.parametrize("hook_type", HookType)
    def test_a_registry_that_counts_counts_every_call(self, shop: types.ModuleType, hook_type: HookType) -> None:
        registry = HookRegistry(counting=True)
        registry.register("shop.price", lambda *args: None, hook_type)
        registry.apply_hooks()
        try:
            for _ in range(3):
                shop.price("tea")
            assert [record.calls for record in registry.applied_hooks()] == [3]
        finally:
            registry.reset()

    def test_it_does_not_count_unless_asked(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        shop.price("tea")
        assert [record.calls for record in registry.applied_hooks()] == [None]

    def test_one_hook_may_be_counted_or_left_out(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", lambda *args: None, HookType.BEFORE, count=True)
        registry.counting = True
        registry.register("shop.price", lambda *args: None, HookType.BEFORE, count=False)
        registry.register("shop.price", lambda *args: None, HookType.BEFORE)
        registry.apply_hooks()
        shop.price("tea")
        shop.price("tea")
        assert [record.calls for record in registry.applied_hooks()] == [2, None, 2]

    @pytest.mark.parametrize(("setting", "calls"), [("1", "2"), ("0", "None"), ("", "None")])
    def test_the_variable_switches_it_on_for_the_process(self, setting: str, calls: str) -> None:
        out = run_python(
            """
            import hookery, json
            hookery.registry.register("json.dumps", lambda *args: None, hookery.HookType.BEFORE)
            hookery.registry.apply_hooks()
            json.dumps(1), json.dumps(2)
            print(hookery.applied_hooks()[0].calls)
            """,
            environment={"HOOKERY_COUNT": setting},
        )
        assert out.strip() == calls

    def test_coroutine_functions_are_counted_too(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        import asyncio

        async def after(result: str, item: str) -> None: ...

        registry.register("shop.fetch", after, HookType.AFTER, count=True)
        registry.apply_hooks()
        asyncio.run(shop.fetch("tea"))
        assert [record.calls for record in registry.applied_hooks()] == [1]

    def test_is_switched_while_a_hook_stands(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        hook = registry.register("shop.price", note, HookType.BEFORE, count=True)
        registry.apply_hooks()
        stand_in = shop.price
        seen = []
        for counted in (True, False, False, True):
            hookery.set_counted(hook, counted)
            shop.price("tea")
            seen.append((registry.applied_hooks()[0].calls, hook.calls))
        assert seen == [(1, 1), (None, 1), (None, 1), (2, 2)]
        assert shop.price is stand_in
        gone = registry.register("shop.fetch", note, HookType.BEFORE)
        registry.reset()
        with pytest.raises(hookery.HookError, match="is not registered"):
            hookery.set_counted(gone, True)

    def test_counting_a_coroutine_hook_does_not_hide_that_it_is_one(
        self, shop: types.ModuleType, registry: HookRegistry
    ) -> None:
        async def before(item: str) -> None: ...

        registry.register("shop.price", before, HookType.BEFORE, count=True)
        with pytest.raises(hookery.HookApplyError, match="coroutine function"):
            registry.apply_hooks()


class TestRecords:
    def test_every_field_is_plain_data(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        source = HookSource("plug", "plug-dist", "1.2.3")
        registry.register("shop.Till.sell", note, HookType.BEFORE, priority=4, reason="because", source=source)
        registry.apply_hooks()
        (record,) = registry.applied_hooks()
        order = record.order
        expected = {
            "target": "shop.Till.sell",
            "hook": f"{__name__}:note",
            "type": "before",
            "source": "plug",
            "distribution": "plug-dist",
            "state": "applied",
            "detail": "",
            "engine": "generated",
            "engine_reason": "a plain Python function: what stands for it is one too",
            "on_error": "raise",
            "last_error": None,
            "versions": None,
            "priority": 4,
            "order": order,
            "reason": "because",
            "ran": False,
            "calls": None,
            "notes": [],
        }
        assert expected.items() <= record.to_dict().items()
        assert list(record.to_dict()) == [field.name for field in dataclasses.fields(record)]
        assert json.loads(json.dumps(record.to_dict())) == record.to_dict()
        assert hookery.HookRecord(**record.to_dict()) == record

    def test_a_program_can_say_something_of_a_hook(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        hook = registry.register("shop.price", note, HookType.BEFORE)
        registry.apply_hooks()
        for _ in range(2):
            hookery.add_note(hook, "runs at noon only")
        hookery.add_note(hook, "is slow")
        (record,) = registry.applied_hooks()
        assert record.notes == ("runs at noon only", "is slow")
        assert hookery.HookRecord(**json.loads(json.dumps(record.to_dict()))) == record
        table = hookery.format_table({"main": [record]}).splitlines()
        assert table[-2:] == ["main: note runs at noon only", "main: note is slow"]
        assert "; runs at noon only; is slow" in str(registry.explain("shop.price"))
        gone = hook
        registry.reset()
        with pytest.raises(hookery.HookError, match=r"BEFORE .*note on shop\.price is not registered"):
            hookery.add_note(gone, "unknown")

    def test_they_come_in_the_order_of_registration(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        for target in ("shop.price", "elsewhere.price", "shop.Till.sell"):
            registry.register(target, note, HookType.BEFORE)
        with pytest.warns(HookWarning, match="there is no module 'elsewhere'"):
            registry.apply_hooks()
        targets = [record.target for record in registry.applied_hooks()]
        orders = [record.order for record in registry.applied_hooks()]
        assert targets == ["shop.price", "elsewhere.price", "shop.Till.sell"]
        assert orders == sorted(orders)

    def test_a_record_is_a_picture_of_its_moment(self, shop: types.ModuleType, registry: HookRegistry) -> None:
        registry.register("shop.price", note, HookType.BEFORE)
        (before,) = registry.applied_hooks()
        registry.apply_hooks()
        assert before.state == "pending"

    @pytest.mark.parametrize(
        ("hook", "name"),
        [
            (note, f"{__name__}:note"),
            (lambda *args: None, f"{__name__}:TestRecords.<lambda>"),
            ([].append, "builtins:list.append"),
        ],
    )
    def test_a_hook_is_named_by_module_and_qualified_name(self, registry: HookRegistry, hook: Any, name: str) -> None:
        registry.register("shop.price", hook, HookType.BEFORE)
        assert [record.hook for record in registry.applied_hooks()] == [name]


def test_the_table_lines_up_and_says_why_a_hook_does_not_run(
    modules: Modules, shop: types.ModuleType, registry: HookRegistry
) -> None:
    registry.register("shop.price", note, HookType.BEFORE, source=HookSource("plug", "plug-dist"), count=True)
    registry.register("shop.prise", note, HookType.AFTER, source=HookSource("code"))
    registry.register("later.f", note, HookType.AROUND, source=HookSource("code"))
    modules.write(later="")
    with pytest.warns(HookWarning):
        registry.apply_hooks()
    shop.price("tea")
    lines = format_table({"main": registry.applied_hooks(), "worker": []}).splitlines()
    name = f"{__name__}:note"
    assert [line.split() for line in lines[:1]] == [
        ["process", "target", "type", "hook", "source", "state", "ran", "calls"]
    ]
    assert lines[2].split() == ["main", "shop.price", "BEFORE", name, "plug", "(plug-dist)", "applied", "yes", "1"]
    assert lines[3].split() == ["main", "shop.prise", "AFTER", name, "code", "missed", "no", "-"]
    assert lines[4].split() == ["main", "later.f", "AROUND", name, "code", "pending", "no", "-"]
    assert lines[2].index("BEFORE") == lines[3].index("AFTER") == lines[4].index("AROUND") == lines[0].index("type")
    assert set(lines[1]) == {"-", " "}
    assert f"main: {name} is missed: hook target 'shop.prise' does not exist" in lines[5]
    assert f"main: {name} is pending: later is not imported yet" in lines[6]
    assert len(lines) == 7


def test_the_table_of_nothing_is_its_heading() -> None:
    assert len(format_table({}).splitlines()) == 2
