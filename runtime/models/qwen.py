"""The Qwen architectures: Qwen2 (Yang et al. 2024, arXiv:2407.10671), which is Llama's with biases on q, k and v; Qwen3
(Yang et al. 2025, arXiv:2505.09388), which normalises queries and keys instead; and Qwen3-MoE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from runtime.layers.layernorm import HeadNorm
from runtime.layers.moe import Experts, SoftmaxRouter, SparseMLP
from runtime.models.decoder import DecoderLayer
from runtime.models.hf_config import JsonObject
from runtime.models.llama import LlamaAttention, LlamaForCausalLM
from runtime.models.model_config import LlamaConfig, window_of


class Qwen2Config(LlamaConfig):
    """A Qwen2 model; its sliding window, if it has one, begins at layer `max_window_layers`."""

    default_num_key_value_heads = 32
    default_max_position_embeddings = 32768

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """See `ModelConfig.fields_from_hf`."""
        config.expect("mlp_bias", False)
        return super().fields_from_hf(config) | cls.biases(config)

    @classmethod
    def biases(cls, config: JsonObject) -> dict[str, bool]:
        """The fields `qkv_bias` and `o_bias`."""
        config.expect("attention_bias", True)
        return {"qkv_bias": True, "o_bias": False}

    @classmethod
    def sliding_windows_from_hf(cls, config: JsonObject, num_layers: int) -> list[int | None]:
        """See `LlamaConfig.sliding_windows_from_hf`."""
        window = window_of(config, 4096) if config.boolean("use_sliding_window", False) else None
        types = config.values.get("layer_types")
        if types is None:
            first = config.integer("max_window_layers", 28, minimum=0)
            return [window if layer >= first else None for layer in range(num_layers)]
        if not isinstance(types, list) or len(types) != num_layers:
            raise config.error("layer_types", f"must be a list of {num_layers} kinds of attention, not {types!r}")
        return [window if kind == "sliding_attention" else None for kind in types]


class Qwen2ForCausalLM(LlamaForCausalLM):
    """Qwen2."""

    config_cls = Qwen2Config


class Qwen3Config(Qwen2Config):
    """A Qwen3 model."""

    default_head_dim: ClassVar[int | None] = 128

    @classmethod
    def biases(cls, config: JsonObject) -> dict[str, bool]:
        """See `Qwen2Config.biases`."""
        bias = config.boolean("attention_bias", False)
        return {"qkv_bias": bias, "o_bias": bias}


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Qwen3."""

    config_cls: ClassVar[type[LlamaConfig]] = Qwen3Config

    def make_attention(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> LlamaAttention:
        """The attention of a layer, with norms on queries and keys."""
        config = self.config
        attention = super().make_attention(layer_id, dtype, device)
        attention.head_norm = HeadNorm(
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps, dtype, device
        )
        return attention


@dataclass(frozen=True)
class Qwen3MoeConfig(Qwen3Config):
    """A Qwen3-MoE model.

    Attributes:
        num_experts: experts of a sparse layer.
        num_experts_per_tok: how many of them a token goes to.
        moe_intermediate_size: width of an expert.
        norm_topk_prob: whether the weights of a token's experts are made to sum to one.
        sparse_layers: which layers are sparse; the others are dense.
    """

    default_head_dim = None
    default_num_key_value_heads = 4

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    sparse_layers: frozenset[int]

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """See `ModelConfig.fields_from_hf`."""
        fields = super().fields_from_hf(config)
        dense = config.values.get("mlp_only_layers") or []
        if not isinstance(dense, list) or any(not isinstance(layer, int) for layer in dense):
            raise config.error("mlp_only_layers", f"must be a list of layer numbers, not {dense!r}")
        step = config.integer("decoder_sparse_step", 1)
        sparse = (layer for layer in range(fields["num_hidden_layers"]) if (layer + 1) % step == 0)
        num_experts = config.integer(config.spelling("num_experts", "num_local_experts"))
        return fields | {
            "num_experts": num_experts,
            "num_experts_per_tok": config.integer("num_experts_per_tok", maximum=num_experts),
            "moe_intermediate_size": config.integer("moe_intermediate_size"),
            "norm_topk_prob": config.boolean("norm_topk_prob", False),
            "sparse_layers": frozenset(sparse).difference(dense),
        }

    @classmethod
    def sliding_windows_from_hf(cls, config: JsonObject, num_layers: int) -> list[int | None]:
        """See `LlamaConfig.sliding_windows_from_hf`; here a window is for all layers."""
        window = window_of(config, 4096) if config.boolean("use_sliding_window", False) else None
        return [window] * num_layers


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """Qwen3-MoE."""

    config_cls = Qwen3MoeConfig
    config: Qwen3MoeConfig

    def make_layer(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> DecoderLayer:
        """See `CausalLM.make_layer`."""
        config = self.config
        if layer_id not in config.sparse_layers:
            return super().make_layer(layer_id, dtype, device)
        router = SoftmaxRouter(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            renormalize=config.norm_topk_prob,
            dtype=dtype,
            device=device,
        )
        experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size, dtype, device)
        mlp = SparseMLP(router, experts, ("gate_proj", "up_proj", "down_proj"))
        return DecoderLayer(config, self.make_attention(layer_id, dtype, device), mlp, dtype, device)
