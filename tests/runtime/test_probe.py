"""What a platform declares is tried on its device before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from runtime import platforms
from runtime.config import ServerArgs
from runtime.core.errors import ConfigError, EngineError, PlatformError
from runtime.mem_cache import pool_selection
from runtime.mem_cache.memory_pool import MHATokenToKVPool
from runtime.model_executor.model_runner import ModelRunner
from runtime.models import loader
from runtime.platforms import PlatformCapabilities, probe, report
from runtime.platforms.cpu import CpuSRTPlatform
from runtime.platforms.graph_backend import AcceleratorGraphBackend
from tests.runtime.tape_backend import TapeGraphBackend

CPU = torch.device("cpu")
NO_DTYPE = (
    "platform cpu declares '{}' in its dtypes, which is no dtype of torch: use the names that torch prints, such as"
    " float32, float16 or bfloat16"
)


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
