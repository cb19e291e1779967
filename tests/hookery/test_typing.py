"""A hook that is wrong for its type is an error to a type checker, and a right one is none and keeps its type."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hookery.support import ROOT

pytest.importorskip("mypy")

# A line that is to be an error ends in "# WRONG"; mypy must find nothing wrong with any other.
HOOKS = """
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from hookery import Hook, HookRegistry, HookType, NONE, plugin_hook

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
registry = HookRegistry()
seen: list[Any] = []

class Shop:
    def __init__(self, item: str, count: int = 1) -> None: ...
class Bare: ...
class Logger:
    def __call__(self, result: str, *args: Any) -> None: ...
class Mute:
    def __call__(self) -> None: ...

@plugin_hook("shop.price")
def sign(result: str, item: str, count: int = 1, *, tax: int = 0) -> str: return result
@plugin_hook("shop.price", priority=3, engine="inplace", on_error="warn", reason="why", versions=">=1", count=True)
def watch(result: object, *args: Any, **kwargs: Any) -> None: ...
@plugin_hook("shop.price", HookType.AFTER, on_error="disable", subclasses=True)
async def fetched(result: str, item: str) -> object: return NONE
@plugin_hook("shop.price", HookType.AFTER)
def items(result: Iterator[str], *args: Any) -> Iterator[str]: yield from result
@plugin_hook("shop.price")  # WRONG
def takes_nothing() -> None: ...
@plugin_hook("shop.price", HookType.AFTER)  # WRONG
def takes_by_keyword(*, result: str) -> None: ...
@plugin_hook("shop.price", HookType.AFTER)
class BareAfter: ...  # WRONG

@plugin_hook("shop.price", HookType.BEFORE)
def bare() -> None: ...
@plugin_hook("shop.price", HookType.BEFORE, on_error="disable")
def change(item: str, count: int) -> tuple[tuple[str], dict[str, int]]: return (item,), {"count": count}
@plugin_hook("shop.price", HookType.BEFORE)
def perhaps(item: str) -> Arguments | None: return None
@plugin_hook("shop.price", HookType.BEFORE)
async def awaited(*args: Any, **kwargs: Any) -> Arguments | None: return args, kwargs
@plugin_hook("shop.price", HookType.BEFORE)  # WRONG
def text(item: str) -> str: return item
@plugin_hook("shop.price", HookType.BEFORE)  # WRONG
def only_arguments(item: str) -> tuple[str]: return (item,)
@plugin_hook("shop.price", HookType.BEFORE)  # WRONG
async def awaited_text(item: str) -> str: return item
@plugin_hook("shop.price", HookType.BEFORE)
class ClassBefore:  # WRONG
    def __init__(self, item: str) -> None: ...

@plugin_hook("shop.price", HookType.AROUND, priority=2)
def around(original_fn: Callable[[str], str], item: str) -> str: return original_fn(item)
@plugin_hook("shop.price", HookType.AROUND)
async def around_async(original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any: return await original(*args)
@plugin_hook("shop.price", HookType.AROUND)  # WRONG
def around_nothing() -> str: return ""
@plugin_hook("shop.price", HookType.AROUND)  # WRONG
def forgotten(item: str, count: int = 1) -> str: return item
@plugin_hook("shop.price", HookType.AROUND)
class ClassAround:  # WRONG
    def __init__(self, item: str) -> None: ...
@plugin_hook("shop.price", HookType.AROUND, on_error="warn")  # WRONG
def lenient(original_fn: Callable[..., Any], *args: Any) -> Any: return original_fn(*args)

@plugin_hook("shop.Shop", HookType.REPLACE)
class BetterShop(Shop): ...
@plugin_hook("shop.price", HookType.REPLACE, on_error="raise")
def instead() -> str: return ""
@plugin_hook("shop.price", HookType.REPLACE, on_error="disable")  # WRONG
def lenient_instead() -> str: return ""

@plugin_hook("shop.price", "after")  # WRONG
def stringly(result: str) -> None: ...
@plugin_hook("shop.price", engine="magic")  # WRONG
def magic(result: str) -> None: ...
@plugin_hook("shop.price", on_error="ignore")  # WRONG
def ignoring(result: str) -> None: ...
@plugin_hook("shop.price", prioritty=3)  # WRONG
def misspelt(result: str) -> None: ...
@plugin_hook("shop.price", priority="high")  # WRONG
def high(result: str) -> None: ...

# What is decorated keeps its type.
right_sign: Callable[[str, str], str] = sign
wrong_sign: Callable[[str, str], int] = sign  # WRONG
right_shop: type[BetterShop] = BetterShop
sign("a", "b", 1, tax=2)
sign("a", "b", tax="c")  # WRONG
around("a", "b")  # WRONG

record: Hook = registry.register("shop.price", sign, HookType.AFTER, priority=1)
registry.register("shop.price", lambda result, *args, **kwargs: result, HookType.AFTER)
registry.register("shop.price", lambda result, item: seen.append(item), HookType.AFTER, on_error="warn")
registry.register("shop.price", lambda: 0, HookType.AFTER)  # WRONG
registry.register("shop.price", Logger(), HookType.AFTER)
registry.register("shop.price", Logger().__call__, HookType.AFTER)
registry.register("shop.price", Mute(), HookType.AFTER)  # WRONG
registry.register("shop.price", functools.partial(sign, count=2), HookType.AFTER, source=None)
registry.register("shop.price", Bare, HookType.AFTER)  # WRONG
registry.register("shop.price", lambda item: ((item,), {}), HookType.BEFORE)
registry.register("shop.price", lambda *args, **kwargs: None, HookType.BEFORE)
registry.register("shop.price", lambda item: "tea", HookType.BEFORE)  # WRONG
registry.register("shop.price", Shop, HookType.BEFORE)  # WRONG
registry.register("shop.price", lambda original_fn, *args: original_fn(*args), HookType.AROUND)
registry.register("shop.price", lambda: None, HookType.AROUND)  # WRONG
registry.register("shop.price", sign, HookType.AROUND)  # WRONG
registry.register("shop.price", around, HookType.AROUND, on_error="disable")  # WRONG
registry.register("shop.price", Shop, HookType.REPLACE)
registry.register("shop.price", "price", HookType.REPLACE)  # WRONG
registry.register("shop.price", sign, HookType.REPLACE, on_error="warn")  # WRONG
registry.register("shop.price", sign, "after")  # WRONG
registry.register("shop.price", sign)  # WRONG
registry.register("shop.price", sign, HookType.AFTER, engine="magic")  # WRONG
registry.register("shop.price", sign, HookType.AFTER, on_error="ignore")  # WRONG

# A type that is known only when the program runs takes what every type takes.
for hook_type in HookType:
    registry.register("shop.price", lambda *args, **kwargs: None, hook_type)
    registry.register("shop.price", text, hook_type)  # WRONG
untyped: Any = text
registry.register("shop.price", untyped, HookType.BEFORE)
plugin_hook("shop.price", HookType.AROUND)(untyped)
"""


def test_a_checker_finds_every_wrong_hook_and_no_right_one(tmp_path: Path) -> None:
    source = tmp_path / "hooks_to_check.py"
    source.write_text(HOOKS)
    options = "--strict --no-pretty --hide-error-context --no-error-summary --config-file= --follow-imports=silent"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options.split(), f"--cache-dir={tmp_path / 'cache'}", str(source)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stderr == ""
    lines = dict(enumerate(HOOKS.splitlines(), start=1))
    found = {int(number) for number in re.findall(r"hooks_to_check\.py:(\d+): error:", done.stdout)}
    expected = {number for number, line in lines.items() if line.endswith("# WRONG")}
    report = "\n".join(f"{number}: {lines[number]}" for number in sorted(found ^ expected))
    assert found == expected, report
    assert len(expected) > 30


def test_the_annotations_are_shipped() -> None:
    assert (ROOT / "hookery" / "py.typed").exists()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()
