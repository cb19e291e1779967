"""The runtime in one process on the device and on the CPU: the same tokens."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from acme_accelerator.platform import AcmePlatform
from pytest_mock import MockerFixture

from runtime import platforms
from runtime.config import ServerArgs
from runtime.core.errors import ConfigError
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.entrypoints.engine import EMBEDDED_MODEL
from runtime.layers.activation import SiluAndMul
from runtime.layers.layernorm import RMSNorm
from runtime.layers.rotary import RotaryEmbedding
from runtime.model_executor.model_runner import ModelRunner
from runtime.models.llama import LlamaForCausalLM
from runtime.platforms import SRTPlatform
from runtime.platforms.cpu import CpuSRTPlatform
from runtime.sampling.sampler import KeepTopP, SamplingBatch


class WithoutFloat64(AcmePlatform):
    """Draws on the host."""

    @property
    def capabilities(self) -> platforms.PlatformCapabilities:
        return replace(super().capabilities, float64=False)


GRAPHS: dict[str, Any] = {
    "decode_graph": "on",
    "prefill_graph": "breakable",
    "decode_graph_sizes": (2, 4),
    "prefill_graph_sizes": (16, 32),
}


def run_on(mocker: MockerFixture, platform: SRTPlatform) -> None:
    """Make `platform` the one of this process until the test ends."""
    mocker.patch.object(platforms, "current_platform", platform)
    for op in (RMSNorm, RotaryEmbedding, SiluAndMul, KeepTopP):
        op.resolve_forward()  # what it decided for another platform would stand: a process has one


def generate(
    mocker: MockerFixture, platform: SRTPlatform, model: str, args: dict[str, Any], params: dict[str, Any]
) -> list[list[int]]:
    """What four requests get, two of which join while the others decode."""
    run_on(mocker, platform)
    runner = ModelRunner(ServerArgs(model, max_running_requests=4, max_total_tokens=1024, random_seed=3, **args))
    rows = [
        Request(str(i), list(range(5, 8 + 3 * i)), SamplingParams(max_new_tokens=20, ignore_eos=True, **params))
        for i in range(4)
    ]

    def step(extends: list[Request], decodes: list[Request]) -> None:
        logits = runner.forward(runner.prepare_forward_batch(extends, decodes))
        assert logits.device.type == platform.device_type
        tokens = runner.sample(logits, SamplingBatch.from_requests(extends + decodes))
        for request, token in zip(extends + decodes, tokens, strict=True):
            request.append_token(token, frozenset(), runner.context_length)

    step(rows[:2], [])
    step(rows[2:], rows[:2])
    for _ in range(10):
        step([], rows)
    for request in rows:
        runner.release(request)
    none_held = torch.empty(0, dtype=torch.int64, device=runner.device)
    runner.token_to_kv_pool_allocator.check_integrity(none_held)
    return [request.output_ids for request in rows]


MODELS = list(filter(None, os.environ.get("ACME_TEST_MODELS", "").split(os.pathsep)))
"""Checkpoints with latent or sparse attention."""

SEEDED = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 4}


@pytest.mark.parametrize(
    ("platform_cls", "args", "params"),
    [
        pytest.param(AcmePlatform, {"dtype": "float32"}, {}, id="greedy"),
        pytest.param(AcmePlatform, {"dtype": "float32"}, SEEDED, id="seeded"),
        pytest.param(AcmePlatform, {"dtype": "float32"}, {"temperature": 0.7}, id="unseeded"),
        pytest.param(AcmePlatform, {"dtype": "float32", "page_size": 16, **GRAPHS}, {}, id="graphs-pages"),
        pytest.param(AcmePlatform, {"dtype": "float32", "kv_cache_dtype": "fp8_e4m3"}, {}, id="narrow-cache"),
        pytest.param(WithoutFloat64, {"dtype": "float32"}, SEEDED, id="seeded-without-float64"),
        pytest.param(WithoutFloat64, {"dtype": "float32"}, {"temperature": 0.7}, id="unseeded-without-float64"),
    ],
)
def test_prompts_decodes_and_draws_stay_on_the_device_and_equal_the_cpus(
    mocker: MockerFixture, platform_cls: type[AcmePlatform], args: dict[str, Any], params: dict[str, Any]
) -> None:
    plain = {name: value for name, value in args.items() if name not in GRAPHS}
    expected = generate(mocker, CpuSRTPlatform(), EMBEDDED_MODEL, plain, params)
    before = torch.acme.counters()
    assert generate(mocker, platform_cls(), EMBEDDED_MODEL, args, params) == expected
    used = {name: count - before[name] for name, count in torch.acme.counters().items()}
    assert used["rms_norm"] > 0
    assert used["store_kv"] > 0
    assert (used["captures"] > 0, used["replays"] > 0) == (args.keys() >= GRAPHS.keys(),) * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_in_sixteen_bits_are_the_cpus_but_for_rounding(mocker: MockerFixture, dtype: str) -> None:
    logits = []
    for platform in (CpuSRTPlatform(), AcmePlatform()):
        run_on(mocker, platform)
        runner = ModelRunner(ServerArgs(EMBEDDED_MODEL, dtype=dtype, max_running_requests=1, max_total_tokens=64))
        request = Request("0", list(range(5, 25)), SamplingParams())
        logits.append(runner.forward(runner.prepare_forward_batch([request], [])))
    assert [(each.dtype, each.device.type) for each in logits] == [
        (getattr(torch, dtype), "cpu"),
        (runner.dtype, "acme"),
    ]
    on_cpu, on_acme = (each.float().cpu() for each in logits)
    assert (on_acme - on_cpu).abs().max() < 8 * torch.finfo(runner.dtype).eps * on_cpu.abs().max()


def test_a_step_that_cannot_be_recorded_is_one_error_and_the_device_goes_on(mocker: MockerFixture) -> None:
    run_on(mocker, AcmePlatform())
    real = LlamaForCausalLM.compute_logits

    def ask(model: LlamaForCausalLM, hidden_states: torch.Tensor) -> torch.Tensor:
        assert hidden_states.sum().item() != 0
        return real(model, hidden_states)

    mocker.patch.object(LlamaForCausalLM, "compute_logits", ask)
    with pytest.raises(ConfigError, match=r"AcceleratorGraphBackend \(acme: reading a value is not possible while"):
        ModelRunner(ServerArgs(EMBEDDED_MODEL, max_running_requests=2, max_total_tokens=64, **GRAPHS))
    assert torch.acme.current_stream().stream_id == 0
    assert (torch.ones(2, device="acme") + 1).tolist() == [2, 2]


@pytest.mark.parametrize("args", [{}, GRAPHS], ids=["eager", "graphs"])
@pytest.mark.parametrize("model", MODELS)
def test_models_whose_pool_is_the_runtimes_own(mocker: MockerFixture, model: str, args: dict[str, Any]) -> None:
    expected = generate(mocker, CpuSRTPlatform(), model, {"dtype": "float32"}, {})
    before = torch.acme.counters()
    assert generate(mocker, AcmePlatform(), model, {"dtype": "float32", **args}, {}) == expected
    assert torch.acme.counters()["store_kv"] == before["store_kv"]
