"""Rotary embedding against transformers."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from runtime.layers.rotary import RopeConfig, RotaryEmbedding, inverse_frequencies
from runtime.models.deepseek_config import DeepseekV3Config
from tests.runtime.families import BASE, FAMILIES

HEAD_DIM = 64
CASES = [
    RopeConfig(rope_theta=10000.0),
    RopeConfig(rope_theta=500000.0),
    RopeConfig(rope_type="linear", rope_theta=10000.0, factor=4.0),
    RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 8192),
    RopeConfig("llama3", 10000.0, 32.0, 1.0, 4.0, 64),
    RopeConfig("dynamic", 10000.0, 2.0, original_max_position_embeddings=16384),
    RopeConfig("yarn", 10000.0, 40.0, original_max_position_embeddings=4096, attention_factor=0.7),
    RopeConfig("yarn", 1000000.0, 4.0, beta_fast=16.0, beta_slow=2.0, truncate=False, attention_factor=1.3),
    RopeConfig("yarn", 100.0, 8.0, original_max_position_embeddings=8, attention_factor=1.0),
]


def reference(config: RopeConfig, max_position_embeddings: int = 16384) -> LlamaRotaryEmbedding:
    keys = {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": (
            *("factor", "beta_fast", "beta_slow", "truncate", "attention_factor"),
            "original_max_position_embeddings",
        ),
    }[config.rope_type]
    parameters = {"rope_type": config.rope_type, "rope_theta": config.rope_theta}
    parameters |= {key: getattr(config, key) for key in keys}
    return LlamaRotaryEmbedding(
        transformers.LlamaConfig(
            hidden_size=4 * HEAD_DIM,
            num_attention_heads=4,
            max_position_embeddings=max_position_embeddings,
            rope_parameters=parameters,
        )
    )


@pytest.mark.parametrize("config", CASES, ids=lambda c: f"{c.rope_type}-{c.rope_theta:g}-{c.factor:g}")
def test_frequencies_and_rotations_are_those_of_transformers(config: RopeConfig) -> None:
    expected = reference(config)
    torch.testing.assert_close(inverse_frequencies(config, HEAD_DIM), expected.inv_freq, atol=0, rtol=1e-6)
    positions = torch.tensor([0, 1, 2, 77, 4000, 9999])
    q, k = torch.randn(6, 3, HEAD_DIM), torch.randn(6, 2, HEAD_DIM)
    cos, sin = expected(q, positions.unsqueeze(0))
    expected_q, expected_k = apply_rotary_pos_emb(q, k, cos[0], sin[0], unsqueeze_dim=1)
    rotary = RotaryEmbedding(config, HEAD_DIM, 10000, torch.float32, torch.device("cpu"))
    got = rotary.forward(torch.cat((q, k), dim=1), *rotary.gather(positions))
    # Angles grow with the position, and so does what the last bit of a frequency is worth.
    torch.testing.assert_close(got, torch.cat((expected_q, expected_k), dim=1), atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(got[:4], torch.cat((expected_q, expected_k), dim=1)[:4], atol=2e-5, rtol=1e-5)


def test_neighbours_are_rotated_together_where_they_are_interleaved() -> None:
    config = RopeConfig("yarn", 10000.0, 4.0, attention_factor=0.9)
    positions = torch.tensor([0, 1, 5, 300])
    x = torch.randn(4, 3, HEAD_DIM)
    halves = RotaryEmbedding(config, HEAD_DIM, 512, torch.float32, torch.device("cpu"))
    pairs = RotaryEmbedding(config, HEAD_DIM, 512, torch.float32, torch.device("cpu"), interleaved=True)

    def apart(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)

    torch.testing.assert_close(apart(pairs.at(positions).apply(x)), halves.at(positions).apply(apart(x)))
    torch.testing.assert_close(pairs.at(positions).apply_halves(x), halves.at(positions).apply(x))


def test_dynamic_frequencies_beyond_the_context_are_those_of_a_sequence_that_ends_there() -> None:
    config = RopeConfig("dynamic", 10000.0, 2.0, original_max_position_embeddings=128)
    rotary = RotaryEmbedding(config, HEAD_DIM, 256, torch.float32, torch.device("cpu"))
    q, k = torch.randn(1, 1, HEAD_DIM), torch.randn(1, 1, HEAD_DIM)
    for position in (127, 128, 129, 255):
        expected = reference(config, max_position_embeddings=128)
        positions = torch.tensor([position])
        cos, sin = expected(q, positions.unsqueeze(0))
        expected_q, _ = apply_rotary_pos_emb(q, k, cos[0], sin[0], unsqueeze_dim=1)
        torch.testing.assert_close(rotary.at(positions).apply(q), expected_q, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("mscale", "mscale_all_dim"), [(0, 0), (1.0, 0), (0.707, 0.707), (1.0, 0.8)])
def test_the_scale_of_latent_attention_makes_up_for_stretching(mscale: float, mscale_all_dim: float) -> None:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 64,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
    }
    fields = BASE | FAMILIES["deepseek-v3"][1] | {"rope_parameters": rope}
    config = DeepseekV3Config.from_hf(fields)
    expected = DeepseekV3Attention(transformers.DeepseekV3Config(**fields), 0)
    assert config.attention_config().scale == pytest.approx(expected.scaling)
    _, factor = ROPE_INIT_FUNCTIONS["yarn"](transformers.DeepseekV3Config(**fields))
    assert config.rope.attention_factor == pytest.approx(factor)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="longrope"):
        inverse_frequencies(RopeConfig(rope_type="longrope"), HEAD_DIM)
