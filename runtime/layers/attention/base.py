"""What an attention backend is, and what it has to know of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from runtime.core.errors import ConfigError
from runtime.core.forward_batch import ForwardBatch
from runtime.layers.attention.latent import IndexInputs, LatentProjection
from runtime.mem_cache.memory_pool import AttentionKind, KVCache, ReqToTokenPool


@dataclass(frozen=True)
class AttentionConfig:
    """The attention of a model.

    Attributes:
        kind: what it keeps of a token.
        num_heads: query heads.
        num_kv_heads: key and value heads; as many as query heads for latent attention.
        head_dim: width of queries and keys.
        scale: factor on their products.
        sliding_windows: for each layer, how many tokens a token sees, itself included; None for all.
        index_topk: sparse attention: how many tokens a token sees.
    """

    kind: AttentionKind
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_windows: tuple[int | None, ...]
    index_topk: int | None = None


class AttentionBackend(ABC):
    """Causal attention over a batch of sequences whose keys and values live in a pool.

    One backend serves all layers of a model. Whoever runs the model calls `init_forward_metadata` once per forward
    pass, the layers then call `forward` or, for latent attention, `forward_mla`.

    Attributes:
        kinds: the kinds of attention it computes.

    Raises:
        ConfigError: the model's attention is of another kind.
    """

    kinds: ClassVar[frozenset[AttentionKind]] = frozenset({AttentionKind.MHA})

    def __init__(
        self,
        req_to_token_pool: ReqToTokenPool,
        kv_pool: KVCache,
        config: AttentionConfig,
        dtype: torch.dtype,
    ) -> None:
        if config.kind not in self.kinds:
            known = ", ".join(sorted(kind.value for kind in self.kinds))
            raise ConfigError(
                f"attention backend {type(self).__qualname__} cannot run a model with {config.kind.value} attention:"
                f" it computes {known}"
            )
        self.req_to_token_pool = req_to_token_pool
        self.kv_pool = kv_pool
        self.config = config
        self.dtype = dtype

    @abstractmethod
    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Prepare what all layers of one forward pass share."""

    def reserve(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Make room for what `init_replay_metadata` prepares, in tensors that from now on stay where they are.

        Args:
            shapes: of the decodes that are recorded: rows, and tokens of a sequence at most.

        Raises:
            ConfigError: decodes on this backend cannot be recorded.
        """
        raise ConfigError(
            f"decodes with attention backend {type(self).__qualname__} cannot be recorded, it has no reserve and"
            " init_replay_metadata: switch decode_graph off"
        )

    def init_replay_metadata(self, forward_batch: ForwardBatch, max_len: int) -> None:
        """`init_forward_metadata` for a decode that is recorded, or one that a recorded step is to run on.

        Everything the layers read is written into the reserved tensors, in shapes that depend on the batch size and
        `max_len` alone; so does what the layers then do.

        Args:
            forward_batch: a decode, of as many rows as were reserved with this `max_len`.
            max_len: tokens of its sequences at most.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no metadata for recorded steps")

    def reserved_tensors(self) -> list[torch.Tensor]:
        """The tensors that `reserve` made; whoever checks that they stay where they are looks here."""
        return []

    @abstractmethod
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer_id: int) -> torch.Tensor:
        """Write the new keys and values to the pool and attend.

        Args:
            q: [T, num_heads, head_dim] queries, rotated.
            k: [T, num_kv_heads, head_dim] new keys, rotated.
            v: [T, num_kv_heads, head_dim] new values.
            layer_id: the layer, from 0.

        Returns:
            [T, num_heads * head_dim].
        """

    def forward_mla(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        projection: LatentProjection,
        layer_id: int,
        index: IndexInputs | None = None,
    ) -> torch.Tensor:
        """Write the new latents to the pool and attend; only for a backend with latent attention among its `kinds`.

        Args:
            q_nope: [T, num_heads, nope] part of the queries without position.
            q_rope: [T, num_heads, rope] part of the queries with position, rotated.
            latent: [T, rank] new latents, normalised.
            k_rope: [T, rope] new keys with position, rotated, one for all heads.
            projection: what makes keys and values of latents.
            layer_id: the layer, from 0.
            index: sparse attention: what chooses the tokens.

        Returns:
            [T, num_heads * v_head_dim].
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no latent attention")
