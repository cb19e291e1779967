"""What another thread imports after a hook was found to wait, and before its module is watched."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

from pytest_mock import MockerFixture

from hookery import HookRegistry, HookState, HookType, watching
from tests.hookery.support import Modules


def test_an_import_then_is_not_missed(modules: Modules, registry: HookRegistry, mocker: MockerFixture) -> None:
    modules.write(shop="def price(item): return item\ndef cost(item): return item")
    watch = watching.watch_imports

    def watch_too_late() -> None:
        importlib.import_module("shop")
        watch()

    mocker.patch.object(watching, "watch_imports", watch_too_late)
    for name in ("price", "cost"):
        registry.register(f"shop.{name}", lambda result, item: f"dear {result}", HookType.AFTER)
    registry.apply_hooks()
    assert [hook.state for hook in registry.hooks()] == [HookState.APPLIED] * 2
    assert modules.load("shop").cost("tea") == "dear tea"


def test_what_is_found_out_then_is_not_forgotten(
    modules: Modules, registry: HookRegistry, mocker: MockerFixture
) -> None:
    modules.write(
        lazy="""
        def early(item): return item
        def __getattr__(name):
            if name != "late": raise AttributeError(name)
            def late(item): return item
            globals()["late"] = late
            return late
        """
    )
    for name in ("early", "late"):
        registry.register(f"lazy.{name}", lambda result, item: f"dear {result}", HookType.AFTER)
    registry.apply_hooks()  # its import is watched from here on
    write_down = HookRegistry._still_wait

    def import_first(waits: Any) -> None:
        late = [hook for hook, _ in waits if hook.target == "lazy.late"]
        if late and threading.current_thread() is threading.main_thread() and "lazy" not in sys.modules:
            thread = threading.Thread(target=importlib.import_module, args=("lazy",))
            thread.start()
            thread.join()
        write_down(waits)

    mocker.patch.object(HookRegistry, "_still_wait", staticmethod(import_first))
    registry.apply_hooks()
    mocker.stopall()
    assert modules.load("lazy").late("tea") == "dear tea"
