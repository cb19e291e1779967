"""The Mixtral architecture (Jiang et al. 2024, arXiv:2401.04088): Mistral's attention with a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from runtime.layers.moe import Experts, SoftmaxRouter, SparseMLP
from runtime.models.decoder import DecoderLayer
from runtime.models.hf_config import JsonObject
from runtime.models.llama import LlamaForCausalLM
from runtime.models.model_config import LlamaConfig, window_of


@dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """A Mixtral model; `intermediate_size` is the width of an expert.

    Attributes:
        num_experts: experts of a layer.
        num_experts_per_tok: how many of them a token goes to.
    """

    default_num_key_value_heads = 8
    default_max_position_embeddings = 131072
    default_rms_norm_eps = 1e-5
    default_rope_theta = 1e6

    num_experts: int
    num_experts_per_tok: int

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """See `ModelConfig.fields_from_hf`."""
        config.expect("attention_bias", False)
        config.expect("mlp_bias", False)
        num_experts = config.integer(config.spelling("num_local_experts", "num_experts"), 8)
        return super().fields_from_hf(config) | {
            "num_experts": num_experts,
            "num_experts_per_tok": config.integer("num_experts_per_tok", 2, maximum=num_experts),
        }

    @classmethod
    def sliding_windows_from_hf(cls, config: JsonObject, num_layers: int) -> list[int | None]:
        """See `LlamaConfig.sliding_windows_from_hf`."""
        return [window_of(config, None)] * num_layers


class MixtralForCausalLM(LlamaForCausalLM):
    """Mixtral."""

    config_cls = MixtralConfig
    config: MixtralConfig

    def make_layer(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> DecoderLayer:
        """See `CausalLM.make_layer`."""
        config = self.config
        router = SoftmaxRouter(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            renormalize=True,
            dtype=dtype,
            device=device,
        )
        experts = Experts(config.num_experts, config.hidden_size, config.intermediate_size, dtype, device)
        mlp = SparseMLP(router, experts, ("w1", "w3", "w2"))
        attention = self.make_attention(layer_id, dtype, device)
        return DecoderLayer(config, attention, mlp, dtype, device, mlp_name="block_sparse_moe")
