"""The Llama architecture (Touvron et al. 2023, arXiv:2302.13971), as `LlamaForCausalLM` checkpoints have it."""

from __future__ import annotations

import torch

from runtime.layers.activation import SiluAndMul
from runtime.layers.attention.base import AttentionBackend
from runtime.layers.layernorm import RMSNorm
from runtime.layers.linear import Linear, MergedLinear
from runtime.layers.rotary import RotaryEmbedding
from runtime.layers.vocab_embedding import VocabEmbedding
from runtime.models.hf_config import LlamaConfig


class LlamaAttention:
    """Grouped-query attention with rotary positions; q, k and v come out of one matrix product."""

    def __init__(self, config: LlamaConfig, layer_id: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layer_id = layer_id
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        bias = config.attention_bias
        self.qkv_proj = MergedLinear(
            config.hidden_size, [q_size, kv_size, kv_size], bias=bias, dtype=dtype, device=device
        )
        self.o_proj = Linear(q_size, config.hidden_size, bias=bias, dtype=dtype, device=device)

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        rotary: RotaryEmbedding,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention_backend: AttentionBackend,
    ) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qkv = self.qkv_proj.forward(hidden_states).view(-1, heads + 2 * kv_heads, self.head_dim)
        qk, v = qkv.split_with_sizes((heads + kv_heads, kv_heads), dim=1)
        q, k = rotary.forward(qk, cos, sin).split_with_sizes((heads, kv_heads), dim=1)
        return self.o_proj.forward_add(attention_backend.forward(q, k, v, self.layer_id), residual)


class LlamaMLP:
    """SwiGLU feed-forward; gate and up come out of one matrix product."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> None:
        hidden, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = MergedLinear(hidden, [width, width], bias=bias, dtype=dtype, device=device)
        self.act_fn = SiluAndMul()
        self.down_proj = Linear(width, hidden, bias=bias, dtype=dtype, device=device)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""
        gate_up = self.gate_up_proj.forward(hidden_states)
        return self.down_proj.forward_add(self.act_fn.forward(gate_up), residual)


class LlamaDecoderLayer:
    """Attention and feed-forward, each normalised before and added to the residual stream after."""

    def __init__(self, config: LlamaConfig, layer_id: int, dtype: torch.dtype, device: torch.device) -> None:
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.self_attn = LlamaAttention(config, layer_id, dtype, device)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.mlp = LlamaMLP(config, dtype, device)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: RotaryEmbedding,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention_backend: AttentionBackend,
    ) -> torch.Tensor:
        """[T, hidden] to [T, hidden]."""
        normed = self.input_layernorm.forward(hidden_states)
        hidden_states = self.self_attn.forward(normed, hidden_states, rotary, cos, sin, attention_backend)
        normed = self.post_attention_layernorm.forward(hidden_states)
        return self.mlp.forward(normed, hidden_states)


class LlamaForCausalLM:
    """The whole model. Weights are uninitialised until the tensors of `checkpoint_tensors()` are filled."""

    config_cls = LlamaConfig

    def __init__(self, config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size, dtype, device)
        self.rotary = RotaryEmbedding(config.rope, config.head_dim, config.max_position_embeddings, dtype, device)
        self.layers = [LlamaDecoderLayer(config, i, dtype, device) for i in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.lm_head = (
            self.embed_tokens
            if config.tie_word_embeddings
            else VocabEmbedding(config.vocab_size, config.hidden_size, dtype, device)
        )

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, attention_backend: AttentionBackend
    ) -> torch.Tensor:
        """Run all layers over T new tokens.

        Args:
            input_ids: [T] int64 token ids.
            positions: [T] int64 positions.
            attention_backend: has had `init_forward_metadata` called for this batch.

        Returns:
            [T, hidden] normalised hidden states.
        """
        hidden_states = self.embed_tokens.forward(input_ids)
        cos, sin = self.rotary.gather(positions)
        for layer in self.layers:
            hidden_states = layer.forward(hidden_states, self.rotary, cos, sin, attention_backend)
        return self.norm.forward(hidden_states)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, hidden] to [B, vocab]."""
        return self.lm_head.logits(hidden_states)

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        """For each tensor of a checkpoint, by its name there, the part of a weight that it fills."""
        tensors = {"model.embed_tokens.weight": self.embed_tokens.weight, "model.norm.weight": self.norm.weight}
        if not self.config.tie_word_embeddings:
            tensors["lm_head.weight"] = self.lm_head.weight
        for i, layer in enumerate(self.layers):
            prefix = f"model.layers.{i}."
            tensors[prefix + "input_layernorm.weight"] = layer.input_layernorm.weight
            tensors[prefix + "post_attention_layernorm.weight"] = layer.post_attention_layernorm.weight
            merged = (
                (layer.self_attn.qkv_proj, "self_attn", ("q_proj", "k_proj", "v_proj")),
                (layer.mlp.gate_up_proj, "mlp", ("gate_proj", "up_proj")),
            )
            for merged_linear, owner, names in merged:
                tensors |= {
                    f"{prefix}{owner}.{n}.weight": w for n, w in zip(names, merged_linear.split_weight(), strict=True)
                }
                if merged_linear.bias is not None:
                    tensors |= {
                        f"{prefix}{owner}.{n}.bias": b for n, b in zip(names, merged_linear.split_bias(), strict=True)
                    }
            for linear, name in ((layer.self_attn.o_proj, "self_attn.o_proj"), (layer.mlp.down_proj, "mlp.down_proj")):
                tensors[f"{prefix}{name}.weight"] = linear.weight
                if linear.bias is not None:
                    tensors[f"{prefix}{name}.bias"] = linear.bias
        return tensors

    def ignorable_tensor(self, name: str) -> bool:
        """Whether a checkpoint may carry this tensor although the model computes or shares it."""
        if name == "lm_head.weight":
            return self.config.tie_word_embeddings
        return name.endswith("rotary_emb.inv_freq")
