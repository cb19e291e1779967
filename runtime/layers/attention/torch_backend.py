"""Attention in plain torch operations, for any device torch has scaled dot-product attention on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from runtime.core.forward_batch import ForwardBatch
from runtime.layers.attention.base import AttentionBackend


@dataclass(frozen=True)
class ExtendMetadata:
    """One extend row.

    Attributes:
        tokens: the row's slice of the T new tokens.
        slots: [L] slots of the whole sequence; None when nothing precedes the new tokens.
        mask: [new, L] additive mask, aligned so that the last new token sees everything; None with `slots`.
    """

    tokens: slice
    slots: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True)
class DecodeMetadata:
    """All decode rows (D of them) as one padded attention.

    Attributes:
        num_rows: D.
        slots: [D * max_len] slots of the sequences, padded with the sink.
        mask: [D, 1, 1, max_len] additive mask of the padding; None when no row is padded.
    """

    num_rows: int
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class ForwardMetadata:
    """What all layers of one forward pass share."""

    out_cache_loc: torch.Tensor
    extends: list[ExtendMetadata]
    decode: DecodeMetadata | None


class TorchAttentionBackend(AttentionBackend):
    """Scaled dot-product attention: decode rows together, extend rows one by one.

    Nothing is ever as large as tokens times tokens of the whole batch, and keys and values are not repeated for
    grouped queries.
    """

    forward_metadata: ForwardMetadata

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Gather slots and build masks, once for all layers."""
        extends = []
        start = 0
        for row in range(forward_batch.num_extend):
            new, length = forward_batch.extend_lens_cpu[row], forward_batch.seq_lens_cpu[row]
            extends.append(self._extend_metadata(forward_batch, row, slice(start, start + new), length))
            start += new
        has_decode = forward_batch.num_extend < forward_batch.batch_size
        decode = self._decode_metadata(forward_batch) if has_decode else None
        self.forward_metadata = ForwardMetadata(forward_batch.out_cache_loc, extends, decode)

    def _extend_metadata(self, forward_batch: ForwardBatch, row: int, tokens: slice, length: int) -> ExtendMetadata:
        new = tokens.stop - tokens.start
        if new == length:
            return ExtendMetadata(tokens, None, None)
        # is_causal would align the triangle to the top left, as if the new tokens came first.
        mask = torch.full((new, length), -torch.inf, dtype=torch.float32, device=forward_batch.input_ids.device).triu_(
            length - new + 1
        )
        table = self.req_to_token_pool.req_to_token[:, :length]
        slots = table.index_select(0, forward_batch.req_pool_indices[row : row + 1]).flatten()
        return ExtendMetadata(tokens, slots, mask)

    def _decode_metadata(self, forward_batch: ForwardBatch) -> DecodeMetadata:
        first = forward_batch.num_extend
        lens_cpu = forward_batch.seq_lens_cpu[first:]
        max_len = max(lens_cpu)
        table = self.req_to_token_pool.req_to_token
        slots = table[:, :max_len].index_select(0, forward_batch.req_pool_indices[first:])
        mask = None
        if min(lens_cpu) < max_len:
            padding = torch.arange(max_len, device=slots.device) >= forward_batch.seq_lens[first:, None]
            # Padding reads the sink: a row's table past its length may name slots of other requests by now.
            slots.masked_fill_(padding, 0)
            mask = torch.zeros(padding.shape, dtype=torch.float32, device=slots.device)
            mask = mask.masked_fill_(padding, -torch.inf)[:, None, None, :]
        return DecodeMetadata(len(lens_cpu), slots.flatten(), mask)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer_id: int) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        metadata = self.forward_metadata
        self.kv_pool.set_kv_buffer(layer_id, metadata.out_cache_loc, k, v)
        key_buffer, value_buffer = self.kv_pool.get_kv_buffer(layer_id)
        if not metadata.extends and metadata.decode is not None:
            return self._decode(q, key_buffer, value_buffer, metadata.decode)
        out = torch.empty(q.shape[0], self.num_heads * self.head_dim, dtype=q.dtype, device=q.device)
        for extend in metadata.extends:
            tokens = extend.tokens
            if extend.slots is None:
                keys, values = k[tokens], v[tokens]
            else:
                # The pool may store another dtype than the model computes in.
                keys = key_buffer.index_select(0, extend.slots).to(q.dtype)
                values = value_buffer.index_select(0, extend.slots).to(q.dtype)
            out[tokens] = self._extend(q[tokens], keys, values, extend.mask)
        if metadata.decode is not None:
            first = q.shape[0] - metadata.decode.num_rows
            out[first:] = self._decode(q[first:], key_buffer, value_buffer, metadata.decode)
        return out

    def _extend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """q [new, heads, dim] over k and v [L, kv_heads, dim]; mask [new, L], or None for the plain triangle."""
        attended = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            k.transpose(0, 1).unsqueeze(0),
            v.transpose(0, 1).unsqueeze(0),
            attn_mask=None if mask is None else mask.to(q.dtype),
            is_causal=mask is None,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return attended.squeeze(0).transpose(0, 1).reshape(q.shape[0], -1)

    def _decode(
        self,
        q: torch.Tensor,
        key_buffer: torch.Tensor,
        value_buffer: torch.Tensor,
        metadata: DecodeMetadata,
    ) -> torch.Tensor:
        """q [D, heads, dim] over the pool's keys and values."""
        rows, heads, dim = metadata.num_rows, self.num_kv_heads, self.head_dim
        keys = key_buffer.index_select(0, metadata.slots).to(q.dtype).view(rows, -1, heads, dim)
        values = value_buffer.index_select(0, metadata.slots).to(q.dtype).view(rows, -1, heads, dim)
        mask = None if metadata.mask is None else metadata.mask.to(q.dtype)
        # The queries of a group share keys and see the same tokens, so they can stand in the place of positions.
        attended = F.scaled_dot_product_attention(
            q.view(rows, heads, -1, dim), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
        )
        return attended.reshape(rows, -1)
