"""Finders that somebody puts before ours: what they find is hooked as soon as it can be seen, and named until then."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import pytest

from hookery import HookRegistry, HookState, HookType
from tests.hookery.support import Modules


def shout(result: Any, *args: Any) -> Any:
    return result.upper()


class Foreign:
    """Finds the shop, as an import hook that rewrites modules does, and asks nobody else."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: types.ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path, target) if name == "shop" else None


@pytest.fixture
def foreign() -> Iterator[Callable[[], None]]:
    yield lambda: sys.meta_path.insert(0, Foreign)
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not Foreign]


def test_what_it_found_is_hooked_with_the_next_import(
    modules: Modules, registry: HookRegistry, foreign: Callable[[], None]
) -> None:
    modules.write(shop="def price(item): return item", other="")
    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    foreign()
    shop = modules.load("shop")
    modules.load("other")
    assert shop.price("tea") == "TEA"


def test_what_it_is_still_importing_is_hooked_when_that_has_ended(
    modules: Modules, registry: HookRegistry, foreign: Callable[[], None]
) -> None:
    modules.write(shop="import other\ndef price(item): return item", other="")
    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    foreign()
    assert modules.load("shop").price("tea") == "TEA"


def test_until_then_the_hook_is_named_with_what_to_do(
    modules: Modules, registry: HookRegistry, foreign: Callable[[], None]
) -> None:
    modules.write(shop="def price(item): return item")
    hook = registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    (problem,) = registry.never_imported()
    assert (problem.detail, problem.waits_for) == ("shop is not imported yet", "shop")
    foreign()
    shop = modules.load("shop")
    assert hook.state is HookState.PENDING
    (problem,) = registry.never_imported()
    assert problem.detail == "shop was imported unseen; the next apply_hooks() hooks it"
    registry.apply_hooks()
    assert registry.never_imported() == []
    assert shop.price("tea") == "TEA"


def test_ours_comes_first_again(modules: Modules, registry: HookRegistry, foreign: Callable[[], None]) -> None:
    modules.write(shop="def price(item): return item", other="")
    registry.register("shop.price", shout, HookType.AFTER)
    registry.apply_hooks()
    foreign()
    modules.load("other")
    assert modules.load("shop").price("tea") == "TEA"
