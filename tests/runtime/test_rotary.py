"""Rotary embedding against transformers."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from runtime.layers.rotary import RopeConfig, RotaryEmbedding, inverse_frequencies

HEAD_DIM = 64
CASES = [
    RopeConfig(rope_theta=10000.0),
    RopeConfig(rope_theta=500000.0),
    RopeConfig(rope_type="linear", rope_theta=10000.0, factor=4.0),
    RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 8192),
    RopeConfig("llama3", 10000.0, 32.0, 1.0, 4.0, 64),
]


def reference(config: RopeConfig) -> LlamaRotaryEmbedding:
    keys = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }[config.rope_type]
    parameters = {"rope_type": config.rope_type, "rope_theta": config.rope_theta}
    parameters |= {key: getattr(config, key) for key in keys}
    return LlamaRotaryEmbedding(
        transformers.LlamaConfig(
            hidden_size=4 * HEAD_DIM, num_attention_heads=4, max_position_embeddings=16384, rope_parameters=parameters
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


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="yarn"):
        inverse_frequencies(RopeConfig(rope_type="yarn"), HEAD_DIM)
