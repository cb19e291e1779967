"""Attention in plain torch operations, for any device torch has scaled dot-product attention on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F

from runtime.core.forward_batch import ForwardBatch
from runtime.layers.attention.base import AttentionBackend, AttentionConfig
from runtime.layers.attention.latent import IndexInputs, LatentProjection, index_scores
from runtime.layers.attention.metadata import DecodeMetadata, ExtendMetadata, ForwardMetadata, MetadataBuilder
from runtime.mem_cache.memory_pool import (
    AttentionKind,
    KVCache,
    MLATokenToKVPool,
    NSATokenToKVPool,
    ReqToTokenPool,
)

INDEX_BLOCK_BYTES = 1 << 26
"""How much memory the products of index queries and keys may take at a time."""

EXTEND_BLOCK = 512
"""New tokens of a row at a time, where they need a mask."""

LATENT_EXTEND_BLOCK = 2048
"""The same for latent attention, where keys and values of all that they see are made anew for each."""


class TorchAttentionBackend(AttentionBackend):
    """Scaled dot-product attention: decode rows together, extend rows one by one.

    Nothing is ever as large as tokens times tokens of the whole batch, and keys and values are not repeated for
    grouped queries. Latent attention decodes on the latents as they are cached, with queries moved to them; for extends
    it makes keys and values of the latents, which costs less when there are many queries. Sparse attention reads, for
    a decode, only the latents that its index has chosen.
    """

    kinds: ClassVar[frozenset[AttentionKind]] = frozenset(AttentionKind)

    def __init__(
        self, req_to_token_pool: ReqToTokenPool, kv_pool: KVCache, config: AttentionConfig, dtype: torch.dtype
    ) -> None:
        super().__init__(req_to_token_pool, kv_pool, config, dtype)
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.scale = config.scale
        table, through_pool = req_to_token_pool.req_to_token, kv_pool.dtype is not dtype
        windows = sorted(set(config.sliding_windows), key=lambda window: window or 0)
        block = EXTEND_BLOCK if config.kind is AttentionKind.MHA else LATENT_EXTEND_BLOCK
        self.builders = {window: MetadataBuilder(window, table, dtype, through_pool, block) for window in windows}
        self.layer_metadata: list[ForwardMetadata] = []

    def reserve(self, shapes: Iterable[tuple[int, int]]) -> None:
        """See `AttentionBackend.reserve`."""
        of_all = list(shapes)
        for builder in self.builders.values():
            builder.reserve(of_all)

    def reserved_tensors(self) -> list[torch.Tensor]:
        """See `AttentionBackend.reserved_tensors`."""
        reserved = (builder for builder in self.builders.values() if builder.is_reserved)
        return [tensor for builder in reserved for tensor in (builder.slots, builder.mask)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Gather slots and build masks, once for all layers."""
        self._set({window: builder.build(forward_batch) for window, builder in self.builders.items()}, forward_batch)

    def init_replay_metadata(self, forward_batch: ForwardBatch, max_len: int) -> None:
        """See `AttentionBackend.init_replay_metadata`."""
        built = {window: builder.build_fixed(forward_batch, max_len) for window, builder in self.builders.items()}
        self._set(built, forward_batch)

    def _set(self, metadata: dict[int | None, ForwardMetadata], forward_batch: ForwardBatch) -> None:
        self.out_cache_loc = forward_batch.out_cache_loc
        self.layer_metadata = [metadata[window] for window in self.config.sliding_windows]

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer_id: int) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        metadata = self.layer_metadata[layer_id]
        self.kv_pool.set_kv_buffer(layer_id, self.out_cache_loc, k, v)
        key_buffer, value_buffer = self.kv_pool.get_kv_buffer(layer_id)
        decode = metadata.decode
        if not metadata.extends and decode is not None:
            return self._decode(q, key_buffer, value_buffer, decode)
        out = torch.empty(q.shape[0], self.num_heads * v.shape[-1], dtype=q.dtype, device=q.device)
        for extend in metadata.extends:
            tokens = extend.tokens
            if extend.slots is None:
                keys, values = k[tokens], v[tokens]
            else:
                keys, values = self._gather(key_buffer, extend.slots), self._gather(value_buffer, extend.slots)
            out[tokens] = self._extend(q[tokens], keys, values, extend.mask)
        if decode is not None:
            first = q.shape[0] - decode.num_rows
            out[first:] = self._decode(q[first:], key_buffer, value_buffer, decode)
        return out

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
        """See `AttentionBackend.forward_mla`."""
        pool = self.kv_pool
        assert isinstance(pool, MLATokenToKVPool), "the pool that the model's attention_kind gets"
        pool.set_mla_kv_buffer(layer_id, self.out_cache_loc, latent, k_rope)
        if index is not None:
            assert isinstance(pool, NSATokenToKVPool), "the pool that the model's attention_kind gets"
            pool.set_index_k_buffer(layer_id, self.out_cache_loc, index.k)
        metadata = self.layer_metadata[layer_id]
        outputs = []
        for extend in metadata.extends:
            tokens = extend.tokens
            if extend.slots is None:
                row_latent, row_rope = latent[tokens], k_rope[tokens]
            else:
                row = self._gather(pool.get_key_buffer(layer_id)[:, 0], extend.slots)
                row_latent, row_rope = row.split_with_sizes((pool.kv_lora_rank, pool.qk_rope_head_dim), dim=-1)
            keys, values = projection.expand(row_latent, row_rope)
            q = torch.cat((q_nope[tokens], q_rope[tokens]), dim=-1)
            if index is None or extend.length <= self._topk():
                outputs.append(self._extend(q, keys, values, extend.mask))
            else:
                outputs.append(self._extend_sparse(q, keys, values, extend, layer_id, index))
        decode = metadata.decode
        if decode is not None:
            first = q_nope.shape[0] - decode.num_rows
            if index is not None and decode.slots.shape[1] > self._topk():
                decode = self._choose(decode, layer_id, index.q[first:], index.weights[first:])
            outputs.append(self._decode_mla(q_nope[first:], q_rope[first:], projection, layer_id, decode))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _extend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """q [new, heads, dim] over k [L, kv_heads, dim] and v [L, kv_heads, v_dim] to [new, heads * v_dim]; mask
        [new, L], or None for the plain triangle."""
        v_dim, dim = v.shape[-1], q.shape[-1]
        if v_dim < dim:
            # Kernels that never hold [heads, new, L] products want values as wide as keys; zeros cost less than those.
            v = F.pad(v, (0, dim - v_dim))
        attended = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            k.transpose(0, 1).unsqueeze(0),
            v.transpose(0, 1).unsqueeze(0),
            attn_mask=None if mask is None else mask.contiguous(),  # kernels ask for aligned rows
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return attended[0, ..., :v_dim].transpose(0, 1).reshape(q.shape[0], -1)

    def _decode(
        self,
        q: torch.Tensor,
        key_buffer: torch.Tensor,
        value_buffer: torch.Tensor,
        metadata: DecodeMetadata,
    ) -> torch.Tensor:
        """q [D, heads, dim] over the pool's keys and values."""
        rows, heads, dim = metadata.num_rows, self.num_kv_heads, q.shape[-1]
        slots = metadata.slots.view(-1)
        keys = self._gather(key_buffer, slots).view(rows, -1, heads, dim)
        values = self._gather(value_buffer, slots).view(rows, -1, heads, value_buffer.shape[-1])
        mask = metadata.mask
        # The queries of a group share keys and see the same tokens, so they can stand in the place of positions.
        attended = F.scaled_dot_product_attention(
            q.view(rows, heads, -1, dim),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=None if mask is None else mask[:, None, None],
            scale=self.scale,
        )
        return attended.reshape(rows, -1)

    def _decode_mla(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        projection: LatentProjection,
        layer_id: int,
        metadata: DecodeMetadata,
    ) -> torch.Tensor:
        """Queries of D rows over the pool's latents, which are keys and values of the one head that all share."""
        q = projection.absorb(q_nope, q_rope)
        rows = self._gather(self.kv_pool.get_key_buffer(layer_id)[:, 0], metadata.slots.view(-1))
        keys = rows.view(q.shape[0], -1, q.shape[-1])
        # Not scaled_dot_product_attention: where widths of keys and values differ it comes down to this and more.
        products = torch.bmm(q, keys.transpose(1, 2)).float().mul_(self.scale)
        if metadata.mask is not None:
            products += metadata.mask.unsqueeze(1)
        weights = products.softmax(-1).to(q.dtype)
        return projection.value_of(torch.bmm(weights, keys[..., : projection.weight.shape[1]]))

    def _topk(self) -> int:
        assert self.config.index_topk is not None, "a layer with an index is of a model with index_topk"
        return self.config.index_topk

    def _index_keys(self, layer_id: int, slots: torch.Tensor) -> torch.Tensor:
        pool = self.kv_pool
        assert isinstance(pool, NSATokenToKVPool), "the pool that the model's attention_kind gets"
        return self._gather(pool.get_index_k_buffer(layer_id), slots)

    def _choose(self, decode: DecodeMetadata, layer_id: int, q: torch.Tensor, weights: torch.Tensor) -> DecodeMetadata:
        """Of the tokens that D rows see, those with the best scores: slots and mask [D, index_topk]."""
        keys = self._index_keys(layer_id, decode.slots.view(-1)).view(*decode.slots.shape, -1)
        scores = index_scores(q, keys, weights)
        if decode.mask is not None:
            scores += decode.mask
        chosen = scores.topk(self._topk(), dim=-1, sorted=False).indices
        mask = None if decode.mask is None else decode.mask.gather(1, chosen)
        return DecodeMetadata(decode.num_rows, decode.slots.gather(1, chosen), mask)

    def _extend_sparse(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        extend: ExtendMetadata,
        layer_id: int,
        index: IndexInputs,
    ) -> torch.Tensor:
        """`_extend`, each query seeing only its best tokens; some queries at a time, for the index has many heads."""
        index_q, weights = index.q[extend.tokens], index.weights[extend.tokens]
        index_k = index.k[extend.tokens] if extend.slots is None else self._index_keys(layer_id, extend.slots)
        block = max(1, INDEX_BLOCK_BYTES // (4 * index_q.shape[1] * extend.length))
        outputs = []
        for start in range(0, q.shape[0], block):
            queries = slice(start, min(start + block, q.shape[0]))
            if extend.mask is None:
                visible = torch.full((queries.stop - start, extend.length), -torch.inf, dtype=q.dtype, device=q.device)
                visible.triu_(start + 1)
            else:
                visible = extend.mask[queries]
            scores = index_scores(index_q[queries], index_k, weights[queries]) + visible
            chosen = scores.topk(self._topk(), dim=-1, sorted=False).indices
            # A query that sees fewer tokens than it may choose has chosen some that it does not see.
            mask = torch.full_like(visible, -torch.inf).scatter_(1, chosen, 0.0) + visible
            outputs.append(self._extend(q[queries], k, v, mask))
        return torch.cat(outputs)

    def _gather(self, buffer: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """What a pool's buffer holds in `slots` ([N]), in the model's dtype."""
        if buffer.dtype is self.dtype:
            return buffer.index_select(0, slots)
        if buffer.dtype.itemsize == 1:  # torch has no indexed copies of the 8-bit floats
            return buffer.view(torch.uint8).index_select(0, slots).view(buffer.dtype).to(self.dtype)
        return buffer.index_select(0, slots).to(self.dtype)
