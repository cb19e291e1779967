"""The backends that let a device record: which calls they make, on stand-ins for the device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from runtime.core.errors import PlatformError
from runtime.platforms.cuda import CudaSRTPlatform
from runtime.platforms.graph_backend import (
    AcceleratorGraphBackend,
    CompiledGraphBackend,
    CudaGraphBackend,
    DeviceGraphBackend,
    PlainGraphBackend,
)
from runtime.platforms.interface import SRTPlatform
from runtime.platforms.rocm import RocmSRTPlatform


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.log.append(f"enter {self.name}")

    def __exit__(self, *exc: object) -> None:
        self.log.append(f"leave {self.name}")


class FakeGraph:
    """A graph that says what is done with it; `fail` makes the end of the capture an error."""

    log: list[str]
    fail = False
    made = 0

    def __init__(self, pool: Any = None, capture_error_mode: str | None = None) -> None:
        type(self).made += 1
        self.number = type(self).made
        if capture_error_mode is not None:  # as torch.accelerator.Graph takes them
            self.options = {"pool": pool, "capture_error_mode": capture_error_mode}

    def capture_begin(self, **options: Any) -> None:
        self.options = options or self.options
        self.log.append(f"begin {self.number} pool={self.options['pool']} {self.options['capture_error_mode']}")

    def capture_end(self) -> None:
        self.log.append(f"end {self.number}")
        if self.fail:
            raise RuntimeError("capture was invalidated")

    def pool(self) -> str:
        return "the pool"

    def replay(self) -> None:
        self.log.append(f"replay {self.number}")


@contextmanager
def as_cuda(mocker: MockerFixture, log: list[str]) -> Iterator[DeviceGraphBackend]:
    stream = FakeStream(log, "side")

    @contextmanager
    def use(used: FakeStream) -> Iterator[None]:
        with used:
            yield

    mocker.patch.object(torch.cuda, "CUDAGraph", FakeGraph)
    mocker.patch.object(torch.cuda, "current_stream", return_value=FakeStream(log, "main"))
    mocker.patch.object(torch.cuda, "Stream", return_value=stream)
    mocker.patch.object(torch.cuda, "stream", use)
    mocker.patch.object(torch.cuda, "synchronize", side_effect=lambda device: log.append("synchronize"))
    yield CudaGraphBackend(torch.device("cuda", 0))


@contextmanager
def as_accelerator(mocker: MockerFixture, log: list[str]) -> Iterator[DeviceGraphBackend]:
    mocker.patch.object(torch.accelerator, "Graph", FakeGraph)
    mocker.patch.object(torch.accelerator, "current_stream", return_value=FakeStream(log, "main"))
    mocker.patch.object(torch, "Stream", return_value=FakeStream(log, "side"))
    mocker.patch.object(torch.accelerator, "synchronize", side_effect=lambda device: log.append("synchronize"))
    yield AcceleratorGraphBackend(torch.device("cpu"))


@pytest.fixture
def log(mocker: MockerFixture) -> list[str]:
    FakeGraph.log = log = []
    FakeGraph.made, FakeGraph.fail = 0, False
    for cls in (CudaGraphBackend, AcceleratorGraphBackend):
        mocker.patch.object(cls, "_graphs", weakref.WeakSet())
    return log


@pytest.mark.parametrize("device", [as_cuda, as_accelerator])
class TestDeviceGraphs:
    def test_recordings_are_made_on_a_stream_of_their_own_from_one_pool(
        self, mocker: MockerFixture, log: list[str], device: Any
    ) -> None:
        with device(mocker, log) as backend:
            with backend.capture_session():
                replays = []
                for _ in range(2):
                    backend.begin()
                    replays.append(backend.end())
            replays[1]()
            replays[0]()
        assert log == [
            "synchronize",
            "side waits for main",
            "enter side",
            "begin 1 pool=None thread_local",
            "end 1",
            "begin 2 pool=the pool thread_local",
            "end 2",
            "leave side",
            "main waits for side",
            "synchronize",
            "replay 2",
            "replay 1",
        ]

    def test_another_runner_takes_from_the_same_pool(self, mocker: MockerFixture, log: list[str], device: Any) -> None:
        replays = []
        for _ in range(2):
            with device(mocker, log) as backend, backend.capture_session():
                backend.begin()
                replays.append(backend.end())
        assert [line for line in log if line.startswith("begin")] == [
            "begin 1 pool=None thread_local",
            "begin 2 pool=the pool thread_local",
        ]

    def test_a_pool_that_nobody_uses_any_more_is_not_taken_up_again(
        self, mocker: MockerFixture, log: list[str], device: Any
    ) -> None:
        # Torch fails an internal assertion there: the pool has ended with its last graph.
        for _ in range(2):
            with device(mocker, log) as backend, backend.capture_session():
                backend.begin()
                backend.end()
        assert [line for line in log if line.startswith("begin")] == [
            "begin 1 pool=None thread_local",
            "begin 2 pool=None thread_local",
        ]

    @pytest.mark.parametrize("invalid", [False, True])
    def test_an_abort_ends_the_capture_and_keeps_nothing(
        self, mocker: MockerFixture, log: list[str], device: Any, invalid: bool
    ) -> None:
        FakeGraph.fail = invalid
        with device(mocker, log) as backend:
            backend.begin()
            backend.abort()
            backend.abort()
            assert backend._graph is None
            assert not backend._graphs
        assert log == ["begin 1 pool=None thread_local", "end 1"]

    def test_an_error_that_ends_a_capture_is_raised_once(
        self, mocker: MockerFixture, log: list[str], device: Any
    ) -> None:
        FakeGraph.fail = True
        with device(mocker, log) as backend:
            backend.begin()
            with pytest.raises(RuntimeError, match="invalidated"):
                backend.end()
            backend.abort()
        assert log == ["begin 1 pool=None thread_local", "end 1"]


def test_a_torch_without_graphs_for_accelerators_is_named(mocker: MockerFixture) -> None:
    mocker.patch.object(torch, "accelerator", object())
    with pytest.raises(PlatformError, match=r"torch\.accelerator\.Graph"):
        AcceleratorGraphBackend(torch.device("cpu"))


def test_which_backends_a_platform_has() -> None:
    assert list(CudaSRTPlatform().get_graph_backends()) == ["device", "accelerator", "plain", "compiled"]
    assert list(RocmSRTPlatform().get_graph_backends()) == ["device", "accelerator", "plain", "compiled"]
    from runtime.platforms.cpu import CpuSRTPlatform

    assert list(CpuSRTPlatform().get_graph_backends()) == ["plain", "compiled"]
    assert CpuSRTPlatform.get_graph_backends is SRTPlatform.get_graph_backends


@pytest.mark.parametrize("cls", [PlainGraphBackend, CompiledGraphBackend])
def test_backends_that_do_not_record_say_so(cls: type[PlainGraphBackend]) -> None:
    backend = cls(torch.device("cpu"))
    assert not backend.records
    for call in (backend.begin, backend.end):
        with pytest.raises(PlatformError, match=f"{cls.__name__} does not record"):
            call()
    backend.abort()
