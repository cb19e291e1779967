"""What a forward pass needs to know of its batch, computed once for all layers that see equally far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from runtime.core.forward_batch import ForwardBatch


@dataclass(frozen=True)
class ExtendMetadata:
    """One extend row, or a block of one.

    Attributes:
        tokens: its slice of the T new tokens.
        length: how many tokens the new ones can see, themselves included.
        slots: [length] slots of the visible tokens, the last at the end; None when these are the new tokens themselves
            and what the pool holds of them is what the layer has of them.
        mask: [new, length] additive mask, aligned so that the last new token sees everything up to itself; None for
            the plain triangle. The blocks of a row have views of one.
    """

    tokens: slice
    length: int
    slots: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True)
class DecodeMetadata:
    """All decode rows (D of them) as one padded attention.

    Attributes:
        num_rows: D.
        slots: [D, width] slots of the tokens that each row sees, padded with the sink.
        mask: [D, width] additive mask of the padding; None when no row is padded.
    """

    num_rows: int
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class ForwardMetadata:
    """What all layers of one forward pass that see equally far share."""

    extends: list[ExtendMetadata]
    decode: DecodeMetadata | None


class MetadataBuilder:
    """Makes the metadata for layers with one sliding window, or with none.

    Decode metadata is written into tensors that are kept from step to step, and replaced only when they are too small:
    whoever records a step finds them in place, filled anew, when he replays it. See `reserve`.

    Args:
        window: how many tokens a token sees, itself included; None for all.
        req_to_token: [rows, max_context_len] slots of the sequences.
        dtype: of masks.
        through_pool: new tokens too are read back from the pool, because it holds them in another dtype: what a token
            sees must not depend on which pass brought it.
        block: new tokens of a row that need a mask are taken so many at a time, so that it is never as large as tokens
            times tokens.
    """

    def __init__(
        self, window: int | None, req_to_token: torch.Tensor, dtype: torch.dtype, through_pool: bool, block: int
    ) -> None:
        self.window = window
        self.req_to_token = req_to_token
        self.through_pool = through_pool
        self.block = block
        self.fixed_width = 0
        self.is_reserved = False
        device = req_to_token.device
        self.slots = torch.zeros(0, dtype=req_to_token.dtype, device=device)
        self.mask = torch.zeros(0, dtype=dtype, device=device)
        self.positions = torch.arange(req_to_token.shape[1], device=device)

    def reserve(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Make room for decodes of `shapes` (rows, tokens of a sequence at most), in tensors that from now on stay
        where they are: a batch that needs more is given others, for itself."""
        self.is_reserved = True
        self._grow(max(rows * self._width_of(max_len) for rows, max_len in shapes))

    def build_fixed(self, batch: ForwardBatch, max_len: int) -> ForwardMetadata:
        """`build` for decode rows of at most `max_len` tokens: they are given the width of that many, and always a
        mask, so that shapes do not depend on the lengths."""
        self.fixed_width = self._width_of(max_len)
        try:
            return self.build(batch)
        finally:
            self.fixed_width = 0

    def _width_of(self, max_len: int) -> int:
        return max_len if self.window is None else min(max_len, self.window)

    def build(self, batch: ForwardBatch) -> ForwardMetadata:
        """The metadata of one forward pass; that of the pass before is no longer valid."""
        extends = []
        start = 0
        for row in range(batch.num_extend):
            new = batch.extend_lens_cpu[row]
            extends += self._extend(batch, row, slice(start, start + new))
            start += new
        return ForwardMetadata(extends, self._decode(batch) if batch.num_extend < batch.batch_size else None)

    def _extend(self, batch: ForwardBatch, row: int, tokens: slice) -> list[ExtendMetadata]:
        new, total = tokens.stop - tokens.start, batch.seq_lens_cpu[row]
        if new == total and (self.window is None or total <= self.window):
            slots = self._row_slots(batch, row, total) if self.through_pool else None
            return [ExtendMetadata(tokens, total, slots, None)]
        slots = self._row_slots(batch, row, total)
        blocks = []
        for start in range(total - new, total, self.block):
            end = min(start + self.block, total)
            # The first of the new tokens sees furthest back.
            blocks.append((start, end, 0 if self.window is None else max(0, start - self.window + 1)))
        mask = self._mask(max(end - start for start, end, _ in blocks), max(end - first for _, end, first in blocks))
        offset = tokens.start - (total - new)
        return [
            ExtendMetadata(
                slice(start + offset, end + offset), end - first, slots[first:end], mask[start - end :, first - end :]
            )
            for start, end, first in blocks
        ]

    def _row_slots(self, batch: ForwardBatch, row: int, length: int) -> torch.Tensor:
        return self.req_to_token[:, :length].index_select(0, batch.req_pool_indices[row : row + 1]).flatten()

    def _mask(self, new: int, length: int) -> torch.Tensor:
        """[new, length] additive mask of the last `new` of `length` tokens; the end of it is that of fewer of both."""
        # is_causal would align the triangle to the top left, as if the new tokens came first.
        mask = torch.full((new, length), -torch.inf, dtype=self.mask.dtype, device=self.mask.device)
        mask.triu_(length - new + 1)
        if self.window is not None and length > self.window:
            mask += torch.full_like(mask, -torch.inf).tril_(length - new - self.window)
        return mask

    def _decode(self, batch: ForwardBatch) -> DecodeMetadata:
        first = batch.num_extend
        lens_cpu = batch.seq_lens_cpu[first:]
        rows, longest, shortest = len(lens_cpu), max(lens_cpu), min(lens_cpu)
        seq_lens = batch.seq_lens[first:, None]
        row_indices = batch.req_pool_indices[first:]
        if self.window is None or self.window >= max(longest, self.fixed_width):
            width = max(longest, self.fixed_width)
            slots, mask = self._views(rows, width)
            torch.index_select(self.req_to_token[:, :width], 0, row_indices, out=slots)
            positions = self.positions[:width]
        else:
            width = self.window
            slots, mask = self._views(rows, width)
            positions = self.positions[:width] + (seq_lens - width).clamp_(min=0)
            slots.copy_(self.req_to_token[row_indices[:, None], positions])
        if shortest >= width and not self.fixed_width:
            return DecodeMetadata(rows, slots, None)
        # Padding reads the sink: a row's table past its length may name slots of other requests by now.
        padding = positions >= seq_lens
        slots.masked_fill_(padding, 0)
        mask.zero_().masked_fill_(padding, -torch.inf)
        return DecodeMetadata(rows, slots, mask)

    def _views(self, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = rows * width
        if self.slots.numel() < size:
            if self.is_reserved:
                return self.slots.new_zeros(rows, width), self.mask.new_zeros(rows, width)
            self._grow(2 * size)
        return self.slots[:size].view(rows, width), self.mask[:size].view(rows, width)

    def _grow(self, size: int) -> None:
        self.slots = self.slots.new_zeros(size)
        self.mask = self.mask.new_zeros(size)
