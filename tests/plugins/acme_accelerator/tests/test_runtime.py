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
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.entrypoints.engine import EMBEDDED_MODEL
from runtime.layers.activation import SiluAndMul
from runtime.layers.layernorm import RMSNorm
from runtime.layers.rotary import RotaryEmbedding
from runtime.model_executor.model_runner import ModelRunner
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


def generate(
    mocker: MockerFixture, platform: SRTPlatform, model: str, args: dict[str, Any], params: dict[str, Any]
) -> list[list[int]]:
    """What four requests get, two of which join while the others decode."""
    mocker.patch.object(platforms, "current_platform", platform)
    for op in (RMSNorm, RotaryEmbedding, SiluAndMul, KeepTopP):
        op.resolve_forward()  # what it decided for the other platform would stand: a process has one
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


SEEDED = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 4}


@pytest.mark.parametrize(
    ("platform_cls", "args", "params"),
    [
        pytest.param(AcmePlatform, {"dtype": "float32"}, {}, id="greedy"),
        pytest.param(AcmePlatform, {"dtype": "float32"}, SEEDED, id="seeded"),
        pytest.param(AcmePlatform, {"dtype": "float32"}, {"temperature": 0.7}, id="unseeded"),
        pytest.param(AcmePlatform, {"dtype": "bfloat16"}, {}, id="bfloat16"),
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


@pytest.mark.parametrize("args", [{}, GRAPHS], ids=["eager", "graphs"])
@pytest.mark.parametrize("model", os.environ["ACME_TEST_MODELS"].split(os.pathsep))
def test_models_whose_pool_is_the_runtimes_own(mocker: MockerFixture, model: str, args: dict[str, Any]) -> None:
    expected = generate(mocker, CpuSRTPlatform(), model, {"dtype": "float32"}, {})
    before = torch.acme.counters()
    assert generate(mocker, AcmePlatform(), model, {"dtype": "float32", **args}, {}) == expected
    assert torch.acme.counters()["store_kv"] == before["store_kv"]
