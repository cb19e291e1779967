"""A pytest plugin: hooks that are gone after the test, and proof that they are.

::

    pytest_plugins = ["hookery.testing"]  # in the top conftest.py

    def test_price(hooks):
        hooks.register("shop.price", lambda result, item: 0, HookType.AFTER)
        hooks.apply_hooks()
        assert shop.price("tea") == 0

The hooks are taken back before any fixture of the test is torn down. When all of them are, so that what mocks and
monkeypatches have put back is in its place, every attribute and every holder that a hook was put on must hold the very
object that it held before; the test errs with the address of each that does not. A target may be patched by
``mocker.patch`` or ``monkeypatch`` before or after it is hooked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from hookery import held as held  # needed by the patches while the lock is held
from hookery import patch_table, raw
from hookery.hooks import HookWarning
from hookery.patch_table import Patch
from hookery.reach import Entry, Holder
from hookery.registry import HookRegistry

_MOCKS = ("unittest.mock", "mock.mock")
_ABSENT = object()


class _Watch:
    """One registry of a test, and every patch that was made in the meantime."""

    def __init__(self) -> None:
        self.registry = HookRegistry()
        self.made: list[Patch] = []
        self.left: dict[int, Any] = {}  # by patch or holder: what stood there when our hooks had been taken back
        patch_table.observers.append(self.made.append)

    def revert(self) -> None:
        """Take the hooks back. What others have put over them is theirs to take back, a moment later."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HookWarning)
            self.registry.reset()
        for patch in self._ended():
            self.left[id(patch)] = _now(patch)
            self.left.update((id(holder), _held(holder)) for holder in patch.holders)

    def leaks(self) -> Iterator[str]:
        """The addresses that hold what the test has put there, and that nobody has given back what they held before."""
        patch_table.observers.remove(self.made.append)
        for patch in self._ended():
            if _now(patch) is patch.stand_in:  # somebody had it and has put it back when we had left
                _put_back(patch)
            over_a_mock = raw.class_module(type(patch.original)) in _MOCKS
            if _now(patch) is not _before(patch) and _now(patch) is self.left[id(patch)] and not over_a_mock:
                yield patch.target.name.replace(":", ".")
            for holder in patch.holders:
                for original, stand_in in patch.held:
                    if stand_in is not None and holder.holds(stand_in) and not holder.exchange(stand_in, original):
                        yield holder.address
                held = _held(holder)
                if held is _ABSENT or held is not self.left[id(holder)] or over_a_mock:
                    continue  # gone with what held it, or put there by who had patched it
                if all(held is not original for original, _ in patch.held):
                    yield holder.address

    def _ended(self) -> list[Patch]:
        """The patches that no other registry keeps, each once; a reload has put something else at the name of some."""
        kept = patch_table.all_patches()
        return [patch for patch in self.made if patch not in kept and not patch.superseded]


def _before(patch: Patch) -> Any:
    return _ABSENT if patch.target.inherited else patch.original


def _now(patch: Patch) -> Any:
    owner = patch.target.owner
    namespace = raw.class_namespace(owner) if raw.is_class(owner) else raw.namespace(owner)
    return _ABSENT if namespace is None else namespace.get(patch.target.attribute, _ABSENT)


def _held(holder: Holder) -> Any:
    """What a module global holds; the other kinds of holder come and go with what they lie in."""
    return holder.namespace.get(holder.name, _ABSENT) if type(holder) is Entry else _ABSENT


def _put_back(patch: Patch) -> None:
    if patch.target.inherited:
        delattr(patch.target.owner, patch.target.attribute)
    else:
        setattr(patch.target.owner, patch.target.attribute, patch.original)


_watches = pytest.StashKey[list[_Watch]]()


@pytest.fixture
def hooks(request: pytest.FixtureRequest) -> HookRegistry:
    """A registry of the test's own. Its hooks are taken back after the test, which is checked."""
    watch = _Watch()
    request.node.stash.setdefault(_watches, []).append(watch)
    return watch.registry


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Revert before the fixtures of the test are torn down, and check after that."""
    watches = item.stash.get(_watches, [])
    for watch in watches:
        watch.revert()
    try:
        return (yield)
    finally:
        leaks = sorted({address for watch in watches for address in watch.leaks()})
        watches.clear()
        if leaks:
            pytest.fail(
                f"the test has left something else than the original at {', '.join(leaks)}; hooks are taken back by"
                " the fixture, what the test has put there itself it has to take away",
                pytrace=False,
            )
