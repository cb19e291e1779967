"""Hooks on graph runners: one chooses sizes, and one that was recorded is told about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

import hookery
from hookery import HookRegistry, HookType
from runtime.config import ServerArgs
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.model_executor import input_buffers
from runtime.model_executor.model_runner import ModelRunner
from runtime.platforms.cpu import CpuSRTPlatform
from runtime.plugins import recorded_hooks
from tests.runtime.tape_backend import TapeGraphBackend

MODEL_FORWARD = "runtime.models.decoder.CausalLM.forward"
ATTENTION = "runtime.layers.attention.torch_backend.TorchAttentionBackend.forward"
FILTER = "runtime.model_executor.capture_sizes.filter_for_gather"
REPLAY = "runtime.model_executor.cuda_graph_runner.CudaGraphRunner.replay"


@pytest.fixture(autouse=True)
def surroundings(mocker: MockerFixture) -> Iterator[None]:
    backends = {"tape": TapeGraphBackend, **CpuSRTPlatform().get_graph_backends()}
    mocker.patch.object(CpuSRTPlatform, "get_graph_backends", return_value=backends)
    mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value="eager")
    mocker.patch.dict(recorded_hooks._recorded, clear=True)
    mocker.patch.object(hookery.registry, "counting", True)
    input_buffers.forget_shared_buffers()
    torch.compiler.reset()
    yield
    hookery.registry.revert()
    input_buffers.forget_shared_buffers()


def passing(*args: Any, **kwargs: Any) -> None:
    """A hook that changes nothing."""


def make_runner(model: Path, **args: Any) -> ModelRunner:
    args = {"decode_graph_sizes": (2,), "prefill_graph_sizes": (8,), "max_running_requests": 4} | args
    return ModelRunner(ServerArgs(str(model), **args))


def run(runner: ModelRunner) -> None:
    """A prompt of 8 tokens and a decode."""
    request = Request("r", list(range(3, 11)), SamplingParams(max_new_tokens=4))
    runner.forward(runner.prepare_forward_batch([request], []))
    request.output_ids.append(5)
    runner.forward(runner.prepare_forward_batch([], [request]))
    runner.release(request)


def hook(*targets: str) -> None:
    for target in targets:
        hookery.registry.register(target, passing, HookType.BEFORE)
    hookery.registry.apply_hooks(strict=True)


def calls() -> dict[str, int]:
    return {record.target: record.calls or 0 for record in hookery.applied_hooks()}


def test_a_hook_chooses_the_sizes(llama_checkpoint: Path) -> None:
    registry = HookRegistry()
    registry.register(FILTER, three_more, HookType.AFTER)
    registry.apply_hooks(strict=True)
    try:
        runner = make_runner(llama_checkpoint, decode_graph="on")
    finally:
        registry.revert()
    assert runner.graph_runner is not None
    assert runner.graph_runner.capture_sizes == [2, 3]  # type: ignore[attr-defined]


def three_more(result: list[int], *args: Any, **kwargs: Any) -> list[int]:
    return [*result, 3]


class TestRecordedHooks:
    def test_a_hook_in_what_is_recorded_is_warned_about_and_listed(self, llama_checkpoint: Path) -> None:
        hook(MODEL_FORWARD, FILTER, REPLAY)
        with pytest.warns(
            recorded_hooks.RecordedHookWarning, match=rf"passing on {MODEL_FORWARD} is in a step"
        ) as seen:
            runner = make_runner(llama_checkpoint, decode_graph="on")
        assert len([w for w in seen if issubclass(w.category, recorded_hooks.RecordedHookWarning)]) == 1
        before = calls()
        run(runner)
        after = calls()
        assert after[MODEL_FORWARD] == before[MODEL_FORWARD] + 1, "the prompt; the decode was a replay"
        assert after[REPLAY] == before[REPLAY] + 1
        details = {r.target: r.detail for r in recorded_hooks.annotated(hookery.applied_hooks())}
        assert "CudaGraphRunner has recorded" in details[MODEL_FORWARD]
        assert details[FILTER] == details[REPLAY] == ""
        table = hookery.format_table({"scheduler": recorded_hooks.annotated(hookery.applied_hooks())})
        assert "does not run at replay" in table

    def test_a_hook_where_the_recording_is_left_is_not(self, llama_checkpoint: Path) -> None:
        hook(ATTENTION)
        with warnings.catch_warnings():
            warnings.simplefilter("error", recorded_hooks.RecordedHookWarning)
            runner = make_runner(llama_checkpoint, prefill_graph="breakable")
        before = calls()[ATTENTION]
        run(runner)
        assert calls()[ATTENTION] == before + 3 + 3, "three layers, for the prompt and for the decode"

    def test_a_hook_on_a_piece_between_is(self, llama_checkpoint: Path) -> None:
        hook(ATTENTION, "runtime.layers.linear.Linear.forward_add")
        with pytest.warns(recorded_hooks.RecordedHookWarning, match="forward_add is in a step that Breakable"):
            make_runner(llama_checkpoint, prefill_graph="breakable")
        assert {target for target, _ in recorded_hooks._recorded} == {"runtime.layers.linear.Linear.forward_add"}

    def test_nothing_is_recorded_where_steps_run_again(self, llama_checkpoint: Path) -> None:
        hook(MODEL_FORWARD)
        with warnings.catch_warnings():
            warnings.simplefilter("error", recorded_hooks.RecordedHookWarning)
            runner = make_runner(llama_checkpoint, decode_graph="on", graph_backend="plain")
        before = calls()[MODEL_FORWARD]
        run(runner)
        assert calls()[MODEL_FORWARD] == before + 2
        assert not recorded_hooks._recorded
        assert all(not record.detail for record in recorded_hooks.annotated(hookery.applied_hooks()))
