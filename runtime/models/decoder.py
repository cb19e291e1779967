"""The frame that all decoder models share: token table, layers, final norm, output projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch

from runtime.layers.attention.base import AttentionBackend
from runtime.layers.layernorm import RMSNorm
from runtime.layers.rotary import RotaryEmbedding, Rotation
from runtime.layers.vocab_embedding import VocabEmbedding
from runtime.models.model_config import ModelConfig

TOKEN_TABLE = "model.embed_tokens.weight"
OUTPUT_PROJECTION = "lm_head.weight"
"""What checkpoints call the two; a tied model needs the first only."""


class Attention(Protocol):
    """The attention of a layer."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        rotation: Rotation,
        attention_backend: AttentionBackend,
    ) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""


class FeedForward(Protocol):
    """The feed-forward part of a layer."""

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""


class DecoderLayer:
    """Attention and feed-forward, each normalised before and added to the residual stream after.

    Attributes:
        mlp_name: what checkpoints call the feed-forward part.
    """

    def __init__(
        self,
        config: ModelConfig,
        self_attn: Attention,
        mlp: FeedForward,
        dtype: torch.dtype,
        device: torch.device,
        *,
        mlp_name: str = "mlp",
    ) -> None:
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.self_attn = self_attn
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.mlp = mlp
        self.mlp_name = mlp_name

    def forward(
        self, hidden_states: torch.Tensor, rotation: Rotation, attention_backend: AttentionBackend
    ) -> torch.Tensor:
        """[T, hidden] to [T, hidden]."""
        normed = self.input_layernorm.forward(hidden_states)
        hidden_states = self.self_attn.forward(normed, hidden_states, rotation, attention_backend)
        normed = self.post_attention_layernorm.forward(hidden_states)
        return self.mlp.forward(normed, hidden_states)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        return {
            prefix + "input_layernorm.weight": self.input_layernorm.weight,
            prefix + "post_attention_layernorm.weight": self.post_attention_layernorm.weight,
            **self.self_attn.tensors(prefix + "self_attn."),
            **self.mlp.tensors(f"{prefix}{self.mlp_name}."),
        }


class CausalLM(ABC):
    """A whole model. Weights are uninitialised until the tensors of `checkpoint_tensors()` are filled.

    A subclass names its configuration and makes its layers.
    """

    config_cls: ClassVar[type[ModelConfig]]
    interleaved_rotary: bool = False
    """Whether the rotary embedding pairs neighbours; see `RotaryEmbedding`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size, dtype, device)
        self.rotary = RotaryEmbedding(
            config.rope,
            config.rotary_dim,
            config.max_context_length,
            dtype,
            device,
            interleaved=self.interleaved_rotary,
        )
        self.layers = [self.make_layer(i, dtype, device) for i in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.lm_head = (
            self.embed_tokens
            if config.tie_word_embeddings
            else VocabEmbedding(config.vocab_size, config.hidden_size, dtype, device)
        )

    @abstractmethod
    def make_layer(self, layer_id: int, dtype: torch.dtype, device: torch.device) -> DecoderLayer:
        """Layer `layer_id`, from 0, with weights uninitialised."""

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
        rotation = self.rotary.at(positions)
        for layer in self.layers:
            hidden_states = layer.forward(hidden_states, rotation, attention_backend)
        return self.norm.forward(hidden_states)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, hidden] to [B, vocab]."""
        return self.lm_head.logits(hidden_states)

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        """For each tensor of a checkpoint, by its name there, the part of a weight that it fills."""
        tensors = {TOKEN_TABLE: self.embed_tokens.weight, "model.norm.weight": self.norm.weight}
        if not self.config.tie_word_embeddings:
            tensors[OUTPUT_PROJECTION] = self.lm_head.weight
        for i, layer in enumerate(self.layers):
            tensors |= layer.tensors(f"model.layers.{i}.")
        return tensors

    def ignorable_tensor(self, name: str) -> bool:
        """Whether a checkpoint may carry this tensor although the model computes or shares it, or has no use for it."""
        if name == OUTPUT_PROJECTION:
            return self.config.tie_word_embeddings
        return name.endswith("rotary_emb.inv_freq")
