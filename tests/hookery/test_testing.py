"""The pytest plugin: what a test hooks is gone after it, beside pytest-mock and monkeypatch too."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import pytest

from hookery import patch_table

pytest_plugins = ["pytester"]

SHOP = """
def price(item): return item
class Till:
    def sell(self, item): return item
class Heir(Till): pass
TABLE = {"price": price}
"""
HEAD = """
import pytest
import shop, client
from hookery import HookRegistry, HookType
originals = shop.price, shop.Till.sell
def shout(result, *args): return result.upper()
def clean():
    return (
        (shop.price, shop.Till.sell, client.price) == (*originals, originals[0])
        and shop.TABLE["price"] is originals[0]
        and "sell" not in vars(shop.Heir)
    )
@pytest.fixture
def hooked(hooks):
    hooks.register("shop.price", shout, HookType.AFTER)
    hooks.apply_hooks()
    return hooks
"""


@pytest.fixture(autouse=True)
def _project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    pytester.makeconftest('pytest_plugins = ["hookery.testing"]')
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.makepyfile(shop=SHOP, client="from shop import price")
    pytester.syspathinsert()
    observers = list(patch_table.observers)
    yield
    assert patch_table.all_patches() == []
    assert patch_table.observers == observers


def run(pytester: pytest.Pytester, tests: str, **outcomes: int) -> pytest.RunResult:
    pytester.makepyfile(test_it=HEAD + tests)
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist")
    result.assert_outcomes(**outcomes)
    return result


def test_hooks_are_gone_after_the_test(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
def test_hooks(hooks):
    hooks.register("shop.price", shout, HookType.AFTER)
    hooks.register("shop.Till.sell", shout, HookType.AFTER)
    hooks.register("shop.Heir.sell", shout, HookType.AFTER)
    hooks.apply_hooks(reach="deep")
    assert client.price("tea") == shop.TABLE["price"]("tea") == "TEA"
    assert not clean()

def test_they_are_gone():
    assert clean()

def test_two_tests_have_two_registries(hooks):
    assert hooks.applied_hooks() == []

@pytest.mark.parametrize("number", [1, 2])
def test_one_that_is_reverted_by_the_test_itself(hooked, number):
    hooked.revert()
    assert clean()

def test_one_that_fails(hooked):
    raise ValueError("on purpose")

def test_that_one_is_gone_too():
    assert clean()
        """,
        passed=6,
        failed=1,
    )


def test_a_test_without_the_fixture_is_not_touched(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
def test_plain():
    shop.price = len
        """,
        passed=1,
    )


@pytest.mark.parametrize(
    ("what", "address"),
    [
        ("shop.price = len", "shop.price"),
        ("client.price = len", "client.price"),
        ("del shop.price", "shop.price"),
        ("shop.Heir.sell = len", "shop.Heir.sell"),
        (
            "stand_in = shop.Heir.__dict__['sell']; hooks.revert('shop.Heir.sell'); shop.Heir.sell = len",
            "shop.Heir.sell",
        ),
    ],
)
def test_what_the_test_left_there_itself_is_an_error_with_the_address(
    pytester: pytest.Pytester, what: str, address: str
) -> None:
    result = run(
        pytester,
        f"""
def test_leaks(hooked, hooks):
    hooks.register("shop.Heir.sell", shout, HookType.AFTER)
    hooks.apply_hooks()
    {what}

def test_another(hooks): ...
        """,
        passed=2,
        errors=1,
    )
    result.stdout.fnmatch_lines([f"*left something else than the original at {address};*"])


@pytest.mark.parametrize(
    "what",
    ["shop.price = saved", "hooked.revert(); shop.price = saved", "client.price = saved"],
)
def test_a_stand_in_that_was_put_back_by_hand_is_taken_away(pytester: pytest.Pytester, what: str) -> None:
    run(
        pytester,
        f"""
def test_puts_back(hooked):
    saved = shop.price
    {what}

def test_clean():
    assert clean()
        """,
        passed=2,
    )


def test_another_registry_may_keep_its_hooks(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
other = HookRegistry()

def test_both(hooked):
    other.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
    other.register("shop.Till.sell", shout, HookType.AFTER)
    other.apply_hooks()
    assert shop.price("tea") == "TEA!"

def test_the_other():
    assert shop.price("tea") == "tea!"
    other.reset()
    assert clean()
        """,
        passed=2,
    )


def test_a_module_that_is_reloaded_in_the_test(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
def test_reload(hooked):
    import importlib
    importlib.reload(shop)
    assert shop.price("tea") == "TEA"

def test_after():
    assert shop.price("tea") == "tea"
        """,
        passed=2,
    )


def test_a_fixture_that_fails_in_its_teardown_does_not_hide_the_leak(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
def breaks():
    yield
    raise ValueError("broken fixture")

def test_both(hooked, breaks):
    shop.price = len
        """,
        passed=1,
        errors=1,
    )
    result.stdout.fnmatch_lines(["*left something else than the original at shop.price;*"])


FIXTURES = ["hooks, mocker", "mocker, hooks", "hooks, monkeypatch", "monkeypatch, hooks"]
PATCHES = {
    "mocker": 'mocker.patch("shop.price", {new})',
    "monkeypatch": 'monkeypatch.setattr(shop, "price", {new})',
}


ORDERS = ["hook, patch", "patch, hook", "patch, hook, patch", "hook, patch, hook"]
NEW = {"mocker": ["lambda item: item + '?'", ""], "monkeypatch": ["lambda item: item + '?'"]}
STOPS = ["mocker.stopall()", "hooks.revert()", "mocker.stopall(); hooks.revert()"]


class TestBesideOtherPatchers:
    @pytest.fixture(autouse=True)
    def _pytest_mock(self) -> None:
        pytest.importorskip("pytest_mock")

    @pytest.mark.parametrize("fixtures", FIXTURES)
    def test_in_every_order(self, pytester: pytest.Pytester, fixtures: str) -> None:
        patcher = "mocker" if "mocker" in fixtures else "monkeypatch"
        tests = ""
        for number, (order, new) in enumerate(itertools.product(ORDERS, NEW[patcher])):
            steps = {
                "hook": "hooks.register('shop.price', lambda r, *a, **k: r, HookType.AFTER); hooks.apply_hooks()",
                "patch": PATCHES[patcher].format(new=new),
            }
            body = "\n".join(f"    {steps[step]}\n    shop.price('tea')" for step in order.split(", "))
            tests += f"def test_{number}({fixtures}):\n{body}\n\ndef test_{number}_clean():\n    assert clean()\n\n"
        run(pytester, tests, passed=2 * len(ORDERS) * len(NEW[patcher]))

    def test_where_the_test_itself_stops_one_of_them(self, pytester: pytest.Pytester) -> None:
        tests = "import warnings\n"
        for number, (order, stop) in enumerate(itertools.product(ORDERS, STOPS)):
            steps = {
                "hook": "hooks.register('shop.price', shout, HookType.AFTER); hooks.apply_hooks()",
                "patch": "mocker.patch('shop.price', return_value='mock')",
            }
            body = "\n".join(f"    {steps[step]}" for step in order.split(", "))
            tests += f"""
def test_{number}(hooks, mocker):
{body}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        {stop}

def test_{number}_clean():
    assert clean()
"""
        run(pytester, tests, passed=2 * len(ORDERS) * len(STOPS))

    def test_a_spy_on_a_hooked_target_and_a_hook_on_a_spy(self, pytester: pytest.Pytester) -> None:
        run(
            pytester,
            """
def test_spy_outside(hooked, mocker):
    spy = mocker.spy(shop, "price")
    assert shop.price("tea") == "TEA"
    spy.assert_called_once_with("tea")

def test_spy_inside(mocker, hooks):
    spy = mocker.spy(shop, "price")
    hooks.register("shop.price", shout, HookType.AFTER)
    hooks.apply_hooks()
    assert shop.price("tea") == "TEA"
    spy.assert_called_once_with("tea")

def test_clean():
    assert clean()
            """,
            passed=3,
        )
