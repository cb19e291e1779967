"""One forward pass, as the model executor and the attention backends see it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class ForwardMode(enum.Enum):
    """What the rows of a batch are."""

    EXTEND = "extend"
    """Every row brings prompt tokens (a whole prompt, or the rest of one after a cached prefix)."""
    DECODE = "decode"
    """Every row brings the one token generated last."""
    MIXED = "mixed"
    """Extend rows first, then decode rows."""

    @classmethod
    def of(cls, num_extend: int, batch_size: int) -> ForwardMode:
        """The mode of a batch whose first `num_extend` of `batch_size` rows are extends.

        Raises:
            ValueError: the batch is empty or the counts do not fit each other.
        """
        if batch_size < 1 or not 0 <= num_extend <= batch_size:
            raise ValueError(f"a batch of {batch_size} rows cannot have {num_extend} extend rows")
        if num_extend == 0:
            return cls.DECODE
        return cls.EXTEND if num_extend == batch_size else cls.MIXED

    def is_extend(self) -> bool:
        """Every row is an extend."""
        return self is ForwardMode.EXTEND

    def is_decode(self) -> bool:
        """Every row is a decode."""
        return self is ForwardMode.DECODE

    def is_mixed(self) -> bool:
        """Both kinds of rows are present."""
        return self is ForwardMode.MIXED


@dataclass(frozen=True)
class ForwardBatch:
    """The inputs of one forward pass over B rows with T new tokens in all.

    Rows [0, num_extend) are extends, the rest are decode rows; tokens are concatenated in row order. The `_cpu` lists
    carry the same numbers as the tensors so that nobody has to wait for the device to read a length.

    Attributes:
        forward_mode: what the rows are.
        input_ids: [T] int64 token ids.
        positions: [T] int64 position of each token in its sequence, from 0.
        out_cache_loc: [T] int64 KV slot each token's key and value go to.
        req_pool_indices: [B] int64 row of each request in the `ReqToTokenPool`.
        seq_lens: [B] int64 length of each sequence after this forward.
        seq_lens_cpu: `seq_lens` on the host.
        extend_lens_cpu: new tokens of each row; 1 for a decode row.
        num_extend: number of extend rows.
    """

    forward_mode: ForwardMode
    input_ids: torch.Tensor
    positions: torch.Tensor
    out_cache_loc: torch.Tensor
    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    seq_lens_cpu: list[int]
    extend_lens_cpu: list[int]
    num_extend: int

    @property
    def num_tokens(self) -> int:
        """T, the new tokens of all rows."""
        return self.input_ids.shape[0]

    @property
    def batch_size(self) -> int:
        """B, the rows."""
        return len(self.seq_lens_cpu)

    @property
    def num_extend_tokens(self) -> int:
        """How many of the T tokens belong to extend rows; they come first."""
        return self.num_tokens - (self.batch_size - self.num_extend)
