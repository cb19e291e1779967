"""A forward that the platform's own package registers under a key of nobody's is said to never run; no other is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_mock import MockerFixture

from runtime import platforms
from runtime.config import ServerArgs
from runtime.model_executor.model_runner import ModelRunner
from runtime.platforms import PlatformEnum, SRTPlatform, unused_forwards
from runtime.platforms.cpu import CpuDeviceMixin, CpuSRTPlatform
from runtime.platforms.multi_platform import MultiPlatformOp

_numbers = itertools.count()


class SibylPlatform(CpuDeviceMixin, SRTPlatform):
    """The platform that is selected."""

    _enum = PlatformEnum.OOT
    device_name = "sibyl"


class OlderSibylPlatform(SibylPlatform):
    """Another one of the same maker."""

    device_name = "sibyl_older"


def sibyl_forward(self: Any, x: int) -> int:
    return x


def from_module(name: str) -> Callable[..., int]:
    """The forward as a module of that name would have it."""

    def forward(self: Any, x: int) -> int:
        return x

    forward.__module__, forward.__qualname__ = name, "forward"
    return forward


@pytest.fixture
def op(mocker: MockerFixture) -> type[MultiPlatformOp]:
    """An operation, on the selected platform."""
    mocker.patch.object(platforms, "current_platform", SibylPlatform())
    name = f"Fresh{next(_numbers)}"  # those of other tests may be there still
    return type(name, (MultiPlatformOp,), {"forward_native": lambda self, x: x, "forward_cuda": lambda self, x: x})


def warnings(op: type[MultiPlatformOp], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is said of the operation."""
    caplog.clear()
    unused_forwards.warn()
    return [record.getMessage() for record in caplog.records if f"{op.__qualname__} " in record.getMessage()]


def test_a_key_that_is_nobodys_is_named_with_the_platforms_and_the_operation(
    op: type[MultiPlatformOp], caplog: pytest.LogCaptureFixture
) -> None:
    op.register_oot_forward(sibyl_forward, "sybil")
    (said,) = warnings(op, caplog)
    assert said == (
        f"{__name__}.sibyl_forward, registered for {op.__module__}.{op.__qualname__} with the key 'sybil', never"
        " runs: the dispatch key of platform sibyl is 'sibyl', and no platform here is called 'sybil'; register it with"
        " get_dispatch_key()"
    )


def test_it_is_said_when_a_model_is_loaded(
    op: type[MultiPlatformOp], caplog: pytest.LogCaptureFixture, mocker: MockerFixture, llama_checkpoint: Path
) -> None:
    def register(platform: SibylPlatform, model: object) -> None:
        op.register_oot_forward(sibyl_forward, "sybil")

    mocker.patch.object(SibylPlatform, "post_load_model", register)
    ModelRunner(ServerArgs(str(llama_checkpoint), dtype="float32", max_running_requests=1, max_total_tokens=16))
    assert [f"{op.__qualname__} with the key 'sybil'" in text for text in caplog.messages].count(True) == 1


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["sibyl"], "it runs"),
        (["sybil", "sibyl"], "the package has forwards for several devices, this one among them"),
        (["sibyl_older"], "it is for another platform of the package"),
        ([], "forwards of the runtime's own are for the runtime's platforms"),
    ],
)
def test_what_is_as_it_should_be_is_not_named(
    op: type[MultiPlatformOp], caplog: pytest.LogCaptureFixture, keys: list[str], reason: str
) -> None:
    for key in keys:
        op.register_oot_forward(sibyl_forward, key)
    assert warnings(op, caplog) == [], reason


def test_a_forward_of_an_installed_platform_that_was_not_imported_is_not_named(
    op: type[MultiPlatformOp], caplog: pytest.LogCaptureFixture, mocker: MockerFixture
) -> None:
    op.register_oot_forward(sibyl_forward, "newer")
    assert len(warnings(op, caplog)) == 1
    mocker.patch.object(unused_forwards, "entry_points", return_value=[SimpleNamespace(name="newer")])
    assert warnings(op, caplog) == []


def test_a_forward_of_another_package_is_its_own_affair_and_one_of_the_same_distribution_is_not(
    op: type[MultiPlatformOp], caplog: pytest.LogCaptureFixture, mocker: MockerFixture
) -> None:
    op.register_oot_forward(from_module("other_maker.operations"), "sybil")
    assert warnings(op, caplog) == []
    shipped = {"tests": ["sibyl-accelerator"], "other_maker": ["sibyl-accelerator"]}
    mocker.patch.object(unused_forwards, "packages_distributions", return_value=shipped)
    assert len(warnings(op, caplog)) == 1


def test_nothing_is_said_on_a_platform_of_the_runtime(
    op: type[MultiPlatformOp], caplog: pytest.LogCaptureFixture, mocker: MockerFixture
) -> None:
    mocker.patch.object(platforms, "current_platform", CpuSRTPlatform())
    op.register_oot_forward(sibyl_forward, "sybil")
    assert warnings(op, caplog) == []
