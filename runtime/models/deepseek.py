"""The DeepSeek architectures: V2 (DeepSeek-AI 2024, arXiv:2405.04434) with multi-head latent attention and shared and
routed experts, V3 (arXiv:2412.19437) with another routing, and V3.2 (arXiv:2512.02556) with sparse attention."""

from __future__ import annotations

from typing import ClassVar

import torch

from runtime.layers.attention.base import AttentionBackend
from runtime.layers.attention.latent import IndexInputs, LatentProjection
from runtime.layers.layernorm import LayerNorm, RMSNorm
from runtime.layers.linear import Linear, MergedLinear
from runtime.layers.mlp import GatedMLP
from runtime.layers.moe import Experts, GroupLimitedRouter
from runtime.layers.rotary import Rotation
from runtime.models.decoder import CausalLM, DecoderLayer
from runtime.models.deepseek_config import DeepseekConfig, DeepseekV2Config, DeepseekV3Config, DeepseekV32Config

LATENT_NORM_EPS = 1e-6
"""Epsilon of the norms inside attention, whatever the configuration says of the others."""


class Indexer:
    """The lightning index of sparse attention: few, small heads that judge which tokens are worth attending to.

    As transformers does, it leaves out what the original adds for its 8-bit keys: a rotation (Hadamard) of queries and
    keys that leaves their products as they are.
    """

    def __init__(self, config: DeepseekV32Config, dtype: torch.dtype, device: torch.device) -> None:
        assert config.q_lora_rank is not None, "checked by the configuration"
        heads, dim, hidden = config.index_n_heads, config.index_head_dim, config.hidden_size
        self.num_heads = heads
        self.rope_sizes = (config.qk_rope_head_dim, dim - config.qk_rope_head_dim)
        self.wq_b = Linear(config.q_lora_rank, heads * dim, bias=False, dtype=dtype, device=device)
        self.wk = Linear(hidden, dim, bias=False, dtype=dtype, device=device)
        self.k_norm = LayerNorm(dim, 1e-6, dtype, device)
        self.weights_proj = Linear(hidden, heads, bias=False, dtype=torch.float32, device=device)
        self.scale = heads**-0.5 * dim**-0.5

    def forward(self, hidden_states: torch.Tensor, q_squeezed: torch.Tensor, rotation: Rotation) -> IndexInputs:
        """[T, hidden] and the squeezed queries, [T, q_lora_rank], to what the index brings of T tokens."""
        q = self.wq_b.forward(q_squeezed).view(q_squeezed.shape[0], self.num_heads, -1)
        k = self.k_norm.forward(self.wk.forward(hidden_states)).unsqueeze(1)
        # Other than attention itself, the index rotates the first part of its heads, and not neighbours together.
        first, rest = torch.cat((q, k), dim=1).split_with_sizes(self.rope_sizes, dim=-1)
        rotated = torch.cat((rotation.apply_halves(first), rest), dim=-1)
        q, k = rotated.split_with_sizes((self.num_heads, 1), dim=1)
        weights = self.weights_proj.forward(hidden_states.float()) * self.scale
        return IndexInputs(q, k.squeeze(1), weights)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        return {
            **self.wq_b.tensors(prefix + "wq_b"),
            **self.wk.tensors(prefix + "wk"),
            **self.k_norm.tensors(prefix + "k_norm"),
            **self.weights_proj.tensors(prefix + "weights_proj"),
        }


class LatentAttention:
    """Multi-head latent attention: keys and values of all heads come from one short vector per token.

    Attributes:
        q_a_layernorm: normalises the squeezed queries; None where queries are not squeezed.
        indexer: chooses the tokens that are attended to; None for all.
    """

    def __init__(self, config: DeepseekConfig, layer_id: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layer_id = layer_id
        self.num_heads = heads = config.num_attention_heads
        self.q_sizes = (config.qk_nope_head_dim, config.qk_rope_head_dim)
        self.kv_sizes = (config.kv_lora_rank, config.qk_rope_head_dim)
        hidden, q_size, bias = config.hidden_size, heads * config.qk_head_dim, config.attention_bias
        self.q_a_layernorm: RMSNorm | None = None
        if config.q_lora_rank is None:
            self.kv_a_proj = Linear(hidden, sum(self.kv_sizes), bias=bias, dtype=dtype, device=device)
            self.q_proj = Linear(hidden, q_size, bias=False, dtype=dtype, device=device)
        else:
            self.down_proj = MergedLinear(
                hidden, [config.q_lora_rank, sum(self.kv_sizes)], bias=bias, dtype=dtype, device=device
            )
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS, dtype, device)
            self.q_proj = Linear(config.q_lora_rank, q_size, bias=False, dtype=dtype, device=device)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS, dtype, device)
        self.kv_b_proj = LatentProjection(
            heads, config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank, dtype, device
        )
        self.o_proj = Linear(heads * config.v_head_dim, hidden, bias=bias, dtype=dtype, device=device)
        self.indexer: Indexer | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        rotation: Rotation,
        attention_backend: AttentionBackend,
    ) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""
        if self.q_a_layernorm is None:
            q_input, kv = hidden_states, self.kv_a_proj.forward(hidden_states)
        else:
            squeezed, kv = self.down_proj.forward(hidden_states).split_with_sizes(self.down_proj.out_features, dim=-1)
            q_input = self.q_a_layernorm.forward(squeezed)
        q = self.q_proj.forward(q_input).view(q_input.shape[0], self.num_heads, -1)
        q_nope, q_rope = q.split_with_sizes(self.q_sizes, dim=-1)
        latent, k_rope = kv.split_with_sizes(self.kv_sizes, dim=-1)
        rotated = rotation.apply(torch.cat((q_rope, k_rope.unsqueeze(1)), dim=1))
        q_rope, k_rope = rotated.split_with_sizes((self.num_heads, 1), dim=1)
        index = None if self.indexer is None else self.indexer.forward(hidden_states, q_input, rotation)
        attended = attention_backend.forward_mla(
            q_nope,
            q_rope,
            self.kv_a_layernorm.forward(latent),
            k_rope.squeeze(1),
            self.kv_b_proj,
            self.layer_id,
            index,
        )
        return self.o_proj.forward_add(attended, residual)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        tensors = {
            prefix + "kv_a_layernorm.weight": self.kv_a_layernorm.weight,
            prefix + "kv_b_proj.weight": self.kv_b_proj.weight,
            **self.o_proj.tensors(prefix + "o_proj"),
        }
        if self.q_a_layernorm is None:
            tensors |= self.q_proj.tensors(prefix + "q_proj") | self.kv_a_proj.tensors(prefix + "kv_a_proj_with_mqa")
        else:
            tensors |= self.down_proj.merged_tensors(prefix + "q_a_proj", prefix + "kv_a_proj_with_mqa")
            tensors |= self.q_proj.tensors(prefix + "q_b_proj")
            tensors[prefix + "q_a_layernorm.weight"] = self.q_a_layernorm.weight
        if self.indexer is not None:
            tensors |= self.indexer.tensors(prefix + "indexer.")
        return tensors


class DeepseekMoE:
    """Routed experts, and shared ones, which are one wider feed-forward layer."""

    def __init__(self, config: DeepseekConfig, dtype: torch.dtype, device: torch.device) -> None:
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.gate = GroupLimitedRouter(
            hidden,
            config.num_experts,
            config.num_experts_per_tok,
            num_groups=config.num_groups,
            top_groups=config.top_groups,
            corrected=config.corrected_routing,
            renormalize=config.norm_topk_prob,
            scale=config.routed_scaling_factor,
            dtype=dtype,
            device=device,
        )
        self.experts = Experts(config.num_experts, hidden, width, dtype, device)
        shared_width = config.num_shared_experts * width
        self.shared_experts = GatedMLP(hidden, shared_width, bias=config.mlp_bias, dtype=dtype, device=device)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""
        routed = self.experts.forward(hidden_states, *self.gate.forward(hidden_states))
        return self.shared_experts.forward(hidden_states, routed.add_(residual))

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        names = ("gate_proj", "up_proj", "down_proj")
        return {
            **self.gate.tensors(prefix + "gate."),
            **self.experts.tensors(prefix + "experts.{}", *names),
            **self.shared_experts.tensors(prefix + "shared_experts."),
        }


class DeepseekForCausalLM(CausalLM):
    """What the three have in common."""

    config: DeepseekConfig

    def __init__(self, config: DeepseekConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.interleaved_rotary = config.rope_interleave
        super().__init__(config, dtype, device)

    def make_attention(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> LatentAttention:
        """The attention of a layer."""
        return LatentAttention(self.config, layer_id, dtype, device)

    def make_layer(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> DecoderLayer:
        """See `CausalLM.make_layer`."""
        config = self.config
        attention = self.make_attention(layer_id, dtype, device)
        if layer_id in config.sparse_layers:
            return DecoderLayer(config, attention, DeepseekMoE(config, dtype, device), dtype, device)
        mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias, dtype=dtype, device=device)
        return DecoderLayer(config, attention, mlp, dtype, device)

    def ignorable_tensor(self, name: str) -> bool:
        """See `CausalLM.ignorable_tensor`; the layers that predict further tokens are of no use here."""
        first = self.config.num_hidden_layers
        extra = range(first, first + self.config.num_extra_layers)
        return super().ignorable_tensor(name) or any(name.startswith(f"model.layers.{layer}.") for layer in extra)


class DeepseekV2ForCausalLM(DeepseekForCausalLM):
    """DeepSeek-V2."""

    config_cls = DeepseekV2Config


class DeepseekV3ForCausalLM(DeepseekForCausalLM):
    """DeepSeek-V3."""

    config_cls: ClassVar[type[DeepseekConfig]] = DeepseekV3Config


class DeepseekV32ForCausalLM(DeepseekV3ForCausalLM):
    """DeepSeek-V3.2."""

    config_cls = DeepseekV32Config
    config: DeepseekV32Config

    def make_attention(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> LatentAttention:
        """The attention of a layer, with an index."""
        attention = super().make_attention(layer_id, dtype, device)
        attention.indexer = Indexer(self.config, dtype, device)
        return attention
