"""What an input buffer of recorded steps is: its slot, what its padding holds, and the sizes it is filled for."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

AXES = ("bs", "tokens", "none")
"""What may grow with a batch: its requests, its tokens, or nothing."""


class PaddingPolicy(enum.Enum):
    """What the elements between the batch and the recorded size hold."""

    ZERO = "zero"
    """Zeros, at each fill: row 0 of every table is there for padding."""
    FILL_SENTINEL = "fill sentinel"
    """The slot's `pad_value`, from the beginning and at each fill."""
    FILL_ONCE = "fill once"
    """The slot's `pad_value` until a batch has been there, then what that left: any valid value will do."""
    FOREACH_COPY = "foreach copy"
    """Whatever was there: nothing that a padding row computes from it matters."""
    KEEP_PAD = "keep pad"
    """What the slot's owner has put there; a fill never touches it."""


@dataclass(frozen=True)
class FillContext:
    """The sizes of one fill.

    Attributes:
        raw_bs: requests in the batch.
        padded_bs: requests of the recorded step.
        raw_num_tokens: tokens in the batch.
        padded_num_tokens: tokens of the recorded step.
        pp_proxy_tensors: what the stage before in a pipeline has sent, by name; None in the first.
    """

    raw_bs: int
    padded_bs: int
    raw_num_tokens: int
    padded_num_tokens: int
    pp_proxy_tensors: Mapping[str, torch.Tensor] | None = None


@dataclass
class GraphSlot:
    """One named input buffer.

    Attributes:
        name: the field of the batch that fills it. A dotted name stands for part of something nested, which is never a
            field of a batch: such a slot has a `source_fn`, or nothing copied into it.
        shape_fn: `shape_fn(max_bs, max_num_tokens)` is the whole buffer's shape.
        dtype: of the buffer.
        axis: what grows with the batch: `"bs"` (requests), `"tokens"`, or `"none"`.
        dim: the dimension that the axis is.
        device: where the buffer is; None for the registry's device.
        padding_policy: what padding holds.
        pad_value: for the policies that fill.
        enabled: False to register the name only: no buffer, and no part in anything.
        copy_from_fb: the batch is copied into it. False for a buffer that the step itself or `post_fill` writes.
        post_fill: `post_fill(buffer, batch, context)` writes what is computed, after everything has been copied.
        source_fn: `source_fn(batch, context)` is what to copy instead of the batch's field, None for nothing. It may be
            shorter than the batch along the slot's dimension: only its own length is copied.
        buffer: the whole buffer; set by the registry.

    Raises:
        ValueError: there is no such axis.
    """

    name: str
    shape_fn: Callable[[int, int], tuple[int, ...]]
    dtype: torch.dtype
    axis: str
    dim: int = 0
    device: torch.device | None = None
    padding_policy: PaddingPolicy = PaddingPolicy.FOREACH_COPY
    pad_value: float = 0
    enabled: bool = True
    copy_from_fb: bool = True
    post_fill: Callable[[torch.Tensor, Any, FillContext], None] | None = None
    source_fn: Callable[[Any, FillContext], torch.Tensor | None] | None = None
    buffer: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"slot {self.name!r} has axis {self.axis!r}: it must be one of {', '.join(AXES)}")

    @property
    def computed(self) -> bool:
        """Whether what is in it does not come from the batch's field of its name."""
        return self.post_fill is not None or not self.copy_from_fb

    def sizes(self, context: FillContext) -> tuple[int, int] | None:
        """`(raw, padded)` along its axis; None without one."""
        if self.axis == "none":
            return None
        if self.axis == "bs":
            return context.raw_bs, context.padded_bs
        return context.raw_num_tokens, context.padded_num_tokens
