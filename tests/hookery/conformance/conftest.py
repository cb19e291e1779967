"""Every cell is run twice: as it is, and with an engine that puts nothing in place, where it has to fail."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from hookery import engines
from hookery.targets import Target, TargetKind


class NoOp:
    """An engine that puts nothing in place."""

    free_variables = ()

    def __init__(self, target: Target, engine: str, first: Any) -> None:
        self.callee = engines._callee(target, like=first if target.kind is TargetKind.ABSENT else None)
        self.value = target.inner if target.kind is TargetKind.PROPERTY else target.raw

    def use(self, fused: Any) -> None: ...

    def retire(self) -> None: ...


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cell: shows what hooks do, so it has to fail where nothing is put in place")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("cell"):
        metafunc.parametrize("does_nothing", [False, True], ids=["hooked", "no-op"], indirect=True)


@pytest.fixture(autouse=True)
def does_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this run of a cell is the one that has to fail."""
    chosen = bool(getattr(request, "param", False))
    if chosen:
        monkeypatch.setattr(engines, "make_stand_in", NoOp)
    return chosen


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    callspec = getattr(pyfuncitem, "callspec", None)
    if callspec is None or not callspec.params.get("does_nothing"):
        return (yield)
    try:
        yield
    except (AssertionError, pytest.fail.Exception):
        return True
    return pytest.fail("the cell passes although nothing was put in place")
