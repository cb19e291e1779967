"""What an attention backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from runtime.core.forward_batch import ForwardBatch
from runtime.mem_cache.memory_pool import KVCache, ReqToTokenPool


class AttentionBackend(ABC):
    """Causal attention over a batch of sequences whose keys and values live in a pool.

    One backend serves all layers of a model. Whoever runs the model calls `init_forward_metadata` once per forward
    pass, the layers then call `forward`.
    """

    def __init__(
        self,
        req_to_token_pool: ReqToTokenPool,
        kv_pool: KVCache,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> None:
        self.req_to_token_pool = req_to_token_pool
        self.kv_pool = kv_pool
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim

    @abstractmethod
    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Prepare what all layers of one forward pass share."""

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
