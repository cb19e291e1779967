"""The Llama architecture (Touvron et al. 2023, arXiv:2302.13971), and Mistral's (Jiang et al. 2023, arXiv:2310.06825),
which is Llama's with a sliding window."""

from __future__ import annotations

from typing import ClassVar

import torch

from runtime.layers.attention.base import AttentionBackend
from runtime.layers.layernorm import HeadNorm
from runtime.layers.linear import Linear, MergedLinear
from runtime.layers.mlp import GatedMLP
from runtime.layers.rotary import Rotation
from runtime.models.decoder import CausalLM, DecoderLayer
from runtime.models.hf_config import JsonObject
from runtime.models.model_config import LlamaConfig, window_of


class LlamaAttention:
    """Grouped-query attention with rotary positions; q, k and v come out of one matrix product.

    Attributes:
        head_norm: normalises queries and keys before they are rotated; None where the architecture does not.
    """

    def __init__(self, config: LlamaConfig, layer_id: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layer_id = layer_id
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.qkv_proj = MergedLinear(
            config.hidden_size, [q_size, kv_size, kv_size], bias=config.qkv_bias, dtype=dtype, device=device
        )
        self.o_proj = Linear(q_size, config.hidden_size, bias=config.o_bias, dtype=dtype, device=device)
        self.head_norm: HeadNorm | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        rotation: Rotation,
        attention_backend: AttentionBackend,
    ) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qkv = self.qkv_proj.forward(hidden_states).view(-1, heads + 2 * kv_heads, self.head_dim)
        qk, v = qkv.split_with_sizes((heads + kv_heads, kv_heads), dim=1)
        if self.head_norm is not None:
            qk = self.head_norm.forward(qk)
        q, k = rotation.apply(qk).split_with_sizes((heads, kv_heads), dim=1)
        return self.o_proj.forward_add(attention_backend.forward(q, k, v, self.layer_id), residual)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        tensors = self.qkv_proj.merged_tensors(*(f"{prefix}{name}_proj" for name in "qkv"))
        if self.head_norm is not None:
            tensors |= self.head_norm.tensors(prefix)
        return tensors | self.o_proj.tensors(prefix + "o_proj")


class LlamaForCausalLM(CausalLM):
    """Llama."""

    config_cls: ClassVar[type[LlamaConfig]] = LlamaConfig
    config: LlamaConfig

    def make_attention(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> LlamaAttention:
        """The attention of a layer."""
        return LlamaAttention(self.config, layer_id, dtype, device)

    def make_layer(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> DecoderLayer:
        """See `CausalLM.make_layer`."""
        config = self.config
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias, dtype=dtype, device=device)
        return DecoderLayer(config, self.make_attention(layer_id, dtype, device), mlp, dtype, device)


class MistralConfig(LlamaConfig):
    """A Mistral model: no biases, and one sliding window for all layers."""

    default_num_key_value_heads = 8
    default_max_position_embeddings = 131072

    @classmethod
    def sliding_windows_from_hf(cls, config: JsonObject, num_layers: int) -> list[int | None]:
        """See `LlamaConfig.sliding_windows_from_hf`."""
        config.expect("attention_bias", False)
        config.expect("mlp_bias", False)
        return [window_of(config, 4096)] * num_layers


class MistralForCausalLM(LlamaForCausalLM):
    """Mistral."""

    config_cls = MistralConfig
