"""What a platform declares is tried on its device before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

import hookery
from hookery import HookRegistry, HookType
from runtime import platforms
from runtime.config import ServerArgs
from runtime.core.errors import ConfigError, EngineError, PlatformError
from runtime.core.forward_batch import ForwardBatch
from runtime.layers.attention.base import AttentionBackend
from runtime.layers.attention.torch_backend import TorchAttentionBackend
from runtime.mem_cache import allocator, memory_pool, pool_selection
from runtime.mem_cache.allocator import PagedTokenToKVPoolAllocator
from runtime.mem_cache.memory_pool import MHATokenToKVPool
from runtime.model_executor.graph_runner import GraphRunner
from runtime.model_executor.model_runner import ModelRunner
from runtime.models import loader
from runtime.platforms import PlatformCapabilities, probe, report
from runtime.platforms.cpu import CpuSRTPlatform
from runtime.platforms.graph_backend import AcceleratorGraphBackend, PlainGraphBackend
from tests.runtime.tape_backend import TapeGraphBackend

CPU = torch.device("cpu")
NO_DTYPE = (
    "platform cpu declares '{}' in its dtypes, which is no dtype of torch: use the names that torch prints, such as"
    " float32, float16 or bfloat16"
)


class UnfinishedAttention(AttentionBackend):
    """Lacks a method."""

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Nothing."""


class AttentionWithoutDtype(TorchAttentionBackend):
    """Is made with less."""

    def __init__(self, pool: Any, kv_pool: Any, config: Any) -> None:
        super().__init__(pool, kv_pool, config, torch.float32)


class AllocatorOfBytes(PagedTokenToKVPoolAllocator):
    """Is made with more."""

    def __init__(self, size: int, device: torch.device, page_size: int, num_bytes: int) -> None:
        super().__init__(size, device, page_size)


class BackendWithoutDevice(PlainGraphBackend):
    """Is made with nothing."""

    def __init__(self) -> None:
        super().__init__(CPU)


class RunnerOfNothing(GraphRunner):
    """Is made with nothing."""

    def __init__(self) -> None:
        """Nothing."""

    def can_run(self, batch: ForwardBatch) -> bool:
        return False

    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        raise AssertionError


class PoolOfPages(MHATokenToKVPool):
    """Is made with less."""

    def __init__(self, pages: int) -> None:
        """Nothing."""


def refused(mocker: MockerFixture, model: Path, what: str, value: object, **args: Any) -> str:
    """The error of a platform that brings `value`; asserts that no model was loaded."""
    if what == "capabilities":
        mocker.patch.object(CpuSRTPlatform, what, mocker.PropertyMock(return_value=value))
    else:
        mocker.patch.object(CpuSRTPlatform, what, return_value=value)
    load = mocker.patch.object(loader, "load_model")
    with pytest.raises(EngineError) as caught:
        ModelRunner(ServerArgs(str(model), dtype="float32", **args))
    load.assert_not_called()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("what", "value", "args", "message"),
    [
        ("capabilities", None, {}, "platform cpu: capabilities has to be PlatformCapabilities, not None"),
        (
            "capabilities",
            PlatformCapabilities(graph_capture=True),
            {"decode_graph": "on"},
            "platform cpu declares graph_capture, but AcceleratorGraphBackend cannot record on cpu: Accelerator"
            " expected; correct its capabilities, or let get_graph_backends return one that can",
        ),
        ("capabilities", PlatformCapabilities(dtypes=("float32", "fp16")), {}, NO_DTYPE.format("fp16")),
        ("capabilities", PlatformCapabilities(dtypes=("half", "float32")), {}, NO_DTYPE.format("half")),
        (
            "get_default_attention_backend",
            None,
            {},
            "attention backend from get_default_attention_backend: it returned None, and there is no in-tree class in"
            " its place; return a subclass of runtime.layers.attention.base.AttentionBackend",
        ),
        (
            "get_default_attention_backend",
            "tests.runtime.test_probe:UnfinishedAttention",
            {},
            "attention backend from get_default_attention_backend: tests.runtime.test_probe.UnfinishedAttention lacks"
            " forward",
        ),
        (
            "get_default_attention_backend",
            "tests.runtime.test_probe:AttentionWithoutDtype",
            {},
            "attention backend from get_default_attention_backend: tests.runtime.test_probe.AttentionWithoutDtype(pool:"
            " 'Any', kv_pool: 'Any', config: 'Any') does not take what the runtime passes, (req_to_token_pool, kv_pool,"
            " config, dtype): too many positional arguments",
        ),
        (
            "get_paged_allocator_cls",
            dict,
            {},
            "allocator of 1-slot pages from get_paged_allocator_cls: builtins.dict must be a subclass of"
            " runtime.mem_cache.allocator.TokenToKVPoolAllocator",
        ),
        (
            "get_paged_allocator_cls",
            "tests.runtime.test_probe:AllocatorOfBytes",
            {"page_size": 4},
            "allocator of 4-slot pages from get_paged_allocator_cls: tests.runtime.test_probe.AllocatorOfBytes(size:"
            " 'int', device: 'torch.device', page_size: 'int', num_bytes: 'int') does not take what the runtime passes,"
            " (size=..., page_size=..., device=...): missing a required argument: 'num_bytes'",
        ),
        ("get_device", "cpu", {}, "platform cpu: get_device has to return a torch.device, not 'cpu'"),
        *(
            (
                "get_dispatch_key",
                key,
                {},
                "platform cpu: get_dispatch_key has to return a name that can be part of an identifier, not "
                + repr(key),
            )
            for key in (None, "", "my-device", 3)
        ),
        *(
            (
                "get_available_memory",
                sizes,
                {},
                "platform cpu: get_available_memory has to return a tuple of two sizes in bytes, free and total, not "
                + repr(sizes),
            )
            for sizes in (None, 2**30, (2**30,), (None, 2**30), (-1, 2**30), (0.5, 2**30))
        ),
        (
            "get_device_total_memory",
            None,
            {},
            "platform cpu: get_device_total_memory has to return a size in bytes, not None",
        ),
        (
            "get_current_memory_usage",
            -1,
            {},
            "platform cpu: get_current_memory_usage has to return a size in bytes, not -1",
        ),
        (
            "get_graph_backends",
            {"own": "tests.runtime.test_probe:BackendWithoutDevice"},
            {"decode_graph": "on"},
            "graph backend 'own' from get_graph_backends: tests.runtime.test_probe.BackendWithoutDevice() does not take"
            " what the runtime passes, (device): too many positional arguments",
        ),
        (
            "get_graph_backends",
            None,
            {"decode_graph": "on"},
            "platform cpu: get_graph_backends has to return one class or more by name, not None; without an override it"
            " returns those of the runtime",
        ),
        (
            "get_graph_backends",
            {},
            {"prefill_graph": "breakable"},
            "platform cpu: get_graph_backends has to return one class or more by name, not {}; without an override it"
            " returns those of the runtime",
        ),
        (
            "get_graph_backends",
            {"own": None},
            {"decode_graph": "on"},
            "graph backend 'own' from get_graph_backends: it returned None, and there is no in-tree class in its place;"
            " return a subclass of runtime.platforms.graph_backend.GraphBackend",
        ),
        (
            "get_compile_backend",
            None,
            {"prefill_graph": "piecewise"},
            "platform cpu has no compiler: get_compile_backend returned None, which is no name and no function; choose"
            " a graph runner and a graph_backend that do without one",
        ),
        (
            "get_compile_backend",
            "no-such-compiler",
            {"decode_graph": "on", "graph_backend": "compiled"},
            "platform cpu has 'no-such-compiler' as its get_compile_backend, but that cannot compile for cpu: Invalid"
            " backend: 'no-such-compiler', see `torch._dynamo.list_backends()` for available backends.; return another"
            " one, or choose a graph runner and a graph_backend that do without",
        ),
    ],
)
def test_what_does_not_hold_is_said_before_a_model_is_loaded(
    mocker: MockerFixture, llama_checkpoint: Path, what: str, value: object, args: dict[str, Any], message: str
) -> None:
    assert refused(mocker, llama_checkpoint, what, value, **args) == message


def test_a_graph_runner_that_is_made_otherwise_is_said_before_a_model_is_loaded(
    mocker: MockerFixture, llama_checkpoint: Path
) -> None:
    recording = mocker.PropertyMock(return_value=PlatformCapabilities(graph_capture=True))
    mocker.patch.object(CpuSRTPlatform, "capabilities", recording)
    assert refused(mocker, llama_checkpoint, "get_graph_runner_cls", RunnerOfNothing, decode_graph="on") == (
        "graph runner from get_graph_runner_cls: tests.runtime.test_probe.RunnerOfNothing() does not take what the"
        " runtime passes, (model_runner): too many positional arguments"
    )


@pytest.mark.parametrize(
    ("module", "name", "replacement", "message"),
    [
        (
            memory_pool,
            "MHATokenToKVPool",
            PoolOfPages,
            "KV pool of runtime.mem_cache.memory_pool: tests.runtime.test_probe.PoolOfPages(pages: 'int') does not",
        ),
        (
            allocator,
            "TokenToKVPoolAllocator",
            AllocatorOfBytes,
            "allocator of 1-slot pages of runtime.mem_cache.allocator: tests.runtime.test_probe.AllocatorOfBytes(size:",
        ),
    ],
)
def test_a_class_that_a_hook_puts_in_the_place_of_the_runtimes_is_held_to_the_same(
    mocker: MockerFixture, llama_checkpoint: Path, module: ModuleType, name: str, replacement: type, message: str
) -> None:
    registry = HookRegistry()
    registry.register(f"{module.__name__}.{name}", replacement, HookType.REPLACE)
    registry.apply_hooks(strict=True)
    try:
        said = refused(mocker, llama_checkpoint, "get_mha_kv_pool_cls", None)
    finally:
        registry.revert()
    assert said.startswith(message)


def test_a_hook_on_a_method_of_the_platform_is_held_to_the_same(mocker: MockerFixture, llama_checkpoint: Path) -> None:
    registry = HookRegistry()
    target = "runtime.platforms.current_platform.get_dispatch_key"
    registry.register(target, lambda platform: hookery.NONE, HookType.REPLACE)
    registry.apply_hooks(strict=True)
    try:
        said = refused(mocker, llama_checkpoint, "get_mha_kv_pool_cls", None)
    finally:
        registry.revert()
    assert said.startswith("platform cpu: get_dispatch_key has to return a name")


def test_the_report_of_a_platform_says_the_same_of_what_it_returns(mocker: MockerFixture) -> None:
    mocker.patch.object(CpuSRTPlatform, "get_available_memory", return_value=None)
    with pytest.raises(ConfigError, match="get_available_memory has to return a tuple of two sizes"):
        report.describe()
    mocker.patch.object(CpuSRTPlatform, "get_device", return_value="cpu")
    for ask in (report.describe, report.check):
        with pytest.raises(ConfigError, match=r"get_device has to return a torch\.device, not 'cpu'"):
            ask()


@pytest.mark.parametrize("dtypes", ["float32", ["float32"], (torch.float32,)])
def test_dtypes_are_a_tuple_of_names(dtypes: Any) -> None:
    with pytest.raises(ConfigError, match="of PlatformCapabilities has to be a tuple of names"):
        PlatformCapabilities(dtypes=dtypes)


def test_the_check_of_a_platform_says_the_same_of_its_dtypes(mocker: MockerFixture) -> None:
    declared = PlatformCapabilities(dtypes=("float32", "fp16"))
    mocker.patch.object(CpuSRTPlatform, "capabilities", mocker.PropertyMock(return_value=declared))
    with pytest.raises(PlatformError) as caught:
        report.check()
    assert str(caught.value) == NO_DTYPE.format("fp16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpu_keeps_what_it_promises(dtype: torch.dtype) -> None:
    probe.check_dtype(dtype, CPU)
    probe.check_float64(CPU)


def test_a_device_that_computes_something_else_is_told_from_one_that_cannot(mocker: MockerFixture) -> None:
    mocker.patch.object(torch.Tensor, "__matmul__", lambda a, b: a * b)
    with pytest.raises(PlatformError, match=r"float16 in its dtypes, but cpu cannot compute in it: it gave \[\[1.0, 4"):
        probe.check_dtype(torch.float16, CPU)
    mocker.patch.object(torch.Tensor, "double", torch.Tensor.float)
    with pytest.raises(PlatformError, match=r"declares float64, but cpu cannot compute in it: it gave \[1.0, 1.0\]"):
        probe.check_float64(CPU)


class Forgetful(TapeGraphBackend):
    """Records nothing and does not say so."""

    def end(self) -> Callable[[], None]:
        super().end()
        return lambda: None


def test_a_backend_is_judged_by_what_a_replay_gives() -> None:
    probe.check_graph_capture(TapeGraphBackend, CPU)
    with pytest.raises(PlatformError, match=r"Forgetful cannot record on cpu: it gave \[1.0, 1.0\] for \[7.0, 7.0\]"):
        probe.check_graph_capture(Forgetful, CPU)


def test_a_backend_that_says_what_it_lacks_is_quoted_as_it_is(mocker: MockerFixture) -> None:
    mocker.patch.object(torch, "accelerator", SimpleNamespace())
    with pytest.raises(PlatformError, match=r"^torch \S+ has no torch.accelerator.Graph: install .* graph backend$"):
        probe.check_graph_capture(AcceleratorGraphBackend, CPU)


def test_a_compiler_is_judged_by_what_it_gives(mocker: MockerFixture) -> None:
    mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value="eager")
    probe.check_compiler(CPU)
    mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value=lambda graph, inputs: lambda x: (x,))
    with pytest.raises(PlatformError, match=r"cannot compile for cpu: it gave \[3.0, 3.0\] for \[7.0, 7.0\]"):
        probe.check_compiler(CPU)


class TestThePoolOfTheRuntime:
    SIZES: Mapping[str, int] = {"head_num": 2, "head_dim": 4, "layer_num": 3, "v_head_dim": 6}

    def check(self, dtype: torch.dtype) -> None:
        pool_selection.check_in_tree_pool(
            "mha", dtype=dtype, model_dtype=torch.float32, page_size=4, kv_pool_args=self.SIZES, device=CPU
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
    def test_it_serves_on_the_cpu(self, dtype: torch.dtype) -> None:
        self.check(dtype)

    def test_one_that_loses_what_it_is_given_is_found_out(self, mocker: MockerFixture) -> None:
        mocker.patch.object(MHATokenToKVPool, "_put")
        with pytest.raises(
            PlatformError, match=r"returned None, and MHATokenToKVPool, .*other numbers than were stored"
        ):
            self.check(torch.float32)

    def test_it_is_not_tried_where_the_platform_brings_its_own(self, mocker: MockerFixture) -> None:
        mocker.patch.object(MHATokenToKVPool, "_put")
        mocker.patch.object(type(platforms.current_platform), "get_mha_kv_pool_cls", return_value=MHATokenToKVPool)
        self.check(torch.float32)
