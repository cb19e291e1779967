"""What tests of graph runners have in common: small runners, what they generate, and poison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from runtime.config import GRAPH_CHECK_ENV, ServerArgs
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.mem_cache.memory_pool import AttentionKind
from runtime.model_executor import input_buffers
from runtime.model_executor.breakable_cuda_graph_runner import BreakableCudaGraphRunner
from runtime.model_executor.bucketed_graph_runner import BucketedGraphRunner, ShapeKey
from runtime.model_executor.cuda_graph_runner import CudaGraphRunner
from runtime.model_executor.model_runner import ModelRunner
from runtime.platforms import probe
from runtime.platforms.cpu import CpuSRTPlatform
from runtime.sampling.sampler import SamplingBatch
from tests.runtime.tape_backend import TapeGraphBackend

FAMILIES = {AttentionKind.MHA: "llama", AttentionKind.MLA: "deepseek-v2", AttentionKind.NSA: "deepseek-v32"}
DECODE_SIZES, PREFILL_SIZES = (2, 4), (8, 16)
NEW_TOKENS = 4
# Around the edges of the buckets, one below, on and above; 3 is too few for the smallest, 40 too many for the largest.
LENGTHS = (3, 4, 7, 8, 9, 15, 16, 17, 40)
POISON = 2**40


@pytest.fixture
def surroundings(mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    backends = {**CpuSRTPlatform().get_graph_backends(), "tape": TapeGraphBackend}
    mocker.patch.object(CpuSRTPlatform, "get_graph_backends", return_value=backends)
    # Compiling is tested by itself: here it is enough that pieces are taken apart and put together.
    mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value="eager")
    # What is logged and compiled is then the runner's; whether a device can record is asked in test_probe.
    mocker.patch.object(probe, "check_graph_capture")
    mocker.patch.object(probe, "check_compiler")
    monkeypatch.setenv(GRAPH_CHECK_ENV, "1")
    input_buffers.forget_shared_buffers()
    TapeGraphBackend.log.clear()
    torch.compiler.reset()
    yield
    input_buffers.forget_shared_buffers()


def make_runner(directory: Path, **args: Any) -> ModelRunner:
    args = {
        "max_running_requests": 8,
        "max_total_tokens": 2048,
        "disable_radix_cache": True,
        "decode_graph_sizes": DECODE_SIZES,
        "prefill_graph_sizes": PREFILL_SIZES,
        "graph_backend": "tape",
    } | args
    return ModelRunner(ServerArgs(str(directory), dtype="float32", **args))


def generate(runner: ModelRunner, arrivals: list[list[list[int]]], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """What the runner says after each prompt; the prompts of `arrivals[i]` join at step i."""
    requests: list[list[Request]] = [
        [Request(f"{i}-{j}", prompt, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)) for j, prompt in each]
        for i, each in enumerate(enumerate(prompts) for prompts in arrivals)
    ]
    running: list[Request] = []
    for joining in [*requests, *([[]] * (new_tokens + 1))]:
        rows = [*joining, *running]
        if rows:
            logits = runner.forward(runner.prepare_forward_batch(joining, running))
            assert logits.isfinite().all()
            tokens = runner.sample(logits, SamplingBatch.from_requests(rows))
            for request, token in zip(rows, tokens, strict=True):
                request.append_token(token, (), runner.context_length)
        for request in rows:
            if request.finished:
                runner.release(request)
        running = [request for request in rows if not request.finished]
    assert not running
    return [request.output_ids for each in requests for request in each]


def poison(mocker: MockerFixture) -> None:
    """Before each fill, put large finite values into every buffer there is, and into the sink."""
    for cls in (CudaGraphRunner, BreakableCudaGraphRunner):
        real = cls.fill

        def fill(self: Any, batch: Any, key: Any, real: Any = real) -> None:
            for buffer in self.registry.buffers().values():
                buffer.fill_(POISON)
            for tensor in self.attention_backend.reserved_tensors():
                tensor.fill_(1e30 if tensor.is_floating_point() else 2**30)
            pool = self.model_runner.token_to_kv_pool
            for tensor in pool.storage():
                tensor[: pool.page_size].fill_(1e30)
            real(self, batch, key)

        mocker.patch.object(cls, "fill", fill)


def counted(mocker: MockerFixture) -> Counter[tuple[type, ShapeKey]]:
    """How often each shape of each runner was replayed."""
    seen: Counter[tuple[type, ShapeKey]] = Counter()
    real = BucketedGraphRunner.replay

    def replay(self: Any, batch: Any) -> Any:
        seen[type(self), self.key_for(batch)] += 1
        return real(self, batch)

    mocker.patch.object(BucketedGraphRunner, "replay", replay)
    return seen
