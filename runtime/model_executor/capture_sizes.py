"""Which sizes steps are recorded at: lists, alignment, filtering, look-up. Pure, and imports no torch.

A recorded step has one shape, so a batch runs in the smallest recorded size that holds it and the rest is padding. The
*rows* of a step are the rows of its hidden states: requests times tokens per request for a decode, tokens for a
prefill. Every function takes plain values and is called through this module, so that a hook on it takes.

Sources: the lists and the three predicates are those that SGLang's users know (`server_args.py`, `common.py`); the
alignment and the filter are this runtime's own, see `row_alignment` and `filter_for_gather`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.core.errors import ConfigError

DECODE_RANGES = ((1, 2, 1), (4, 12, 4), (16, 256, 8), (272, 496, 16), (512, None, 32))
"""Batch sizes of decodes as (first, last, step): dense where the share of padding would be large."""
SPECULATIVE_DECODE_RANGES = ((1, 8, 1), (10, 32, 2), (40, 64, 4), (72, 256, 8), (272, None, 16))
"""Batch sizes of decodes with several tokens per request, where a row of padding costs several tokens."""
PREFILL_RANGES = (
    (4, 32, 4),
    (48, 256, 16),
    (288, 512, 32),
    (576, 1024, 64),
    (1280, 4096, 256),
    (4608, None, 512),
)
"""Token counts of prefills."""
FIRST_DECODE_LENGTH = 256
"""The shortest sequences that decodes are recorded for."""


def decode_capture_sizes(
    max_batch_size: int,
    *,
    chosen: Iterable[int] | None = None,
    tokens_per_request: int = 1,
    padding: bool = True,
) -> list[int]:
    """Batch sizes to record decodes at, ascending.

    Args:
        max_batch_size: requests in one batch at most; the last of the list.
        chosen: sizes that were asked for; batches above the largest of them run unrecorded.
        tokens_per_request: tokens a request brings; above 1 the list is denser.
        padding: False for one size per batch size, so that no batch is padded.

    Raises:
        ConfigError: a size is no positive integer, or none is given.
    """
    _check_positive("max_batch_size", max_batch_size)
    _check_positive("tokens_per_request", tokens_per_request)
    if chosen is not None:
        return clip_sizes(chosen, max_batch_size)
    if not padding:
        return list(range(1, max_batch_size + 1))
    ranges = DECODE_RANGES if tokens_per_request == 1 else SPECULATIVE_DECODE_RANGES
    return _expand(ranges, max_batch_size)


def prefill_capture_sizes(max_num_tokens: int, *, chosen: Iterable[int] | None = None) -> list[int]:
    """Token counts to record prefills at, ascending.

    Args:
        max_num_tokens: tokens in one forward pass at most; the last of the list.
        chosen: counts that were asked for; prefills above the largest of them run unrecorded.

    Raises:
        ConfigError: a count is no positive integer, or none is given.
    """
    _check_positive("max_num_tokens", max_num_tokens)
    return _expand(PREFILL_RANGES, max_num_tokens) if chosen is None else clip_sizes(chosen, max_num_tokens)


def clip_sizes(sizes: Iterable[int], largest: int) -> list[int]:
    """`sizes` ascending and each once, those above `largest` taken as `largest`: no batch is larger than that, and one
    between two of the sizes must still find one.

    Raises:
        ConfigError: a size is no positive integer, or none is given.
    """
    given = list(sizes)
    for size in given:
        _check_positive("capture size", size)
    if not given:
        raise ConfigError("no capture sizes are given: name at least one, or leave them to the default")
    return sorted({min(size, largest) for size in given})


def require_mlp_tp_gather(
    *,
    tp_size: int,
    dp_size: int = 1,
    enable_dp_attention: bool = False,
    moe_dense_tp_size: int | None = None,
    enable_dp_lm_head: bool = False,
    moe_all_to_all: bool = False,
) -> bool:
    """Whether the feed-forward layers compute on the rows of all data-parallel ranks, gathered.

    So it is under data-parallel attention, unless everything after attention stays within an attention group: dense
    feed-forward layers split over no more ranks than that, the output projection per rank, and experts that exchange
    rows among themselves.

    Args:
        tp_size: ranks of tensor parallelism.
        dp_size: ranks of data parallelism; `tp_size // dp_size` ranks share the attention of a batch.
        enable_dp_attention: every data-parallel rank computes attention of its own batch.
        moe_dense_tp_size: ranks that dense feed-forward layers are split over; None for all.
        enable_dp_lm_head: the output projection is computed per data-parallel rank.
        moe_all_to_all: expert layers exchange rows themselves instead of gathering them.

    Raises:
        ConfigError: the sizes do not fit each other.
    """
    check_parallel_sizes(tp_size, dp_size, enable_dp_attention, moe_dense_tp_size)
    if not enable_dp_attention:
        return False
    if moe_dense_tp_size is None or not enable_dp_lm_head or not moe_all_to_all:
        return True
    return moe_dense_tp_size > tp_size // dp_size


def require_attn_tp_gather(
    *,
    tp_size: int,
    dp_size: int = 1,
    enable_dp_attention: bool = False,
    moe_dense_tp_size: int | None = None,
    moe_all_to_all: bool = False,
) -> bool:
    """Whether the ranks that share the attention of a batch each hold a part of its rows between layers, so that rows
    are scattered after attention and gathered before it.

    So it is where a feed-forward layer wants its rows spread (experts with an exchange of their own, dense layers split
    over fewer ranks) and there is more than the one rank to spread them over. Arguments as `require_mlp_tp_gather`.

    Raises:
        ConfigError: the sizes do not fit each other.
    """
    check_parallel_sizes(tp_size, dp_size, enable_dp_attention, moe_dense_tp_size)
    if not moe_all_to_all and moe_dense_tp_size is None:
        return False
    return dp_size < tp_size if enable_dp_attention else True


def require_gathered_buffer(
    *,
    tp_size: int,
    dp_size: int = 1,
    enable_dp_attention: bool = False,
    moe_dense_tp_size: int | None = None,
    enable_dp_lm_head: bool = False,
    moe_all_to_all: bool = False,
) -> bool:
    """Whether a step needs a buffer of gathered rows: either kind of gather. Arguments as `require_mlp_tp_gather`.

    Raises:
        ConfigError: the sizes do not fit each other.
    """
    return require_mlp_tp_gather(
        tp_size=tp_size,
        dp_size=dp_size,
        enable_dp_attention=enable_dp_attention,
        moe_dense_tp_size=moe_dense_tp_size,
        enable_dp_lm_head=enable_dp_lm_head,
        moe_all_to_all=moe_all_to_all,
    ) or require_attn_tp_gather(
        tp_size=tp_size,
        dp_size=dp_size,
        enable_dp_attention=enable_dp_attention,
        moe_dense_tp_size=moe_dense_tp_size,
        moe_all_to_all=moe_all_to_all,
    )


def check_parallel_sizes(
    tp_size: int,
    dp_size: int,
    enable_dp_attention: bool,
    moe_dense_tp_size: int | None = None,
    attn_cp_size: int = 1,
) -> None:
    """Raise unless the sizes fit each other. Arguments as `ParallelSizes` has them.

    Raises:
        ConfigError: a size is no positive integer, or does not divide what it splits.
    """
    _check_positive("tp_size", tp_size)
    _check_positive("dp_size", dp_size)
    if enable_dp_attention and (dp_size == 1 or tp_size % dp_size):
        raise ConfigError(
            f"dp_size={dp_size} is not valid with data-parallel attention: it must be above 1 and divide"
            f" tp_size={tp_size}"
        )
    if moe_dense_tp_size is not None:
        _check_positive("moe_dense_tp_size", moe_dense_tp_size)
        if tp_size % moe_dense_tp_size:
            raise ConfigError(f"moe_dense_tp_size={moe_dense_tp_size} is not valid: it must divide tp_size={tp_size}")
    _check_positive("attn_cp_size", attn_cp_size)
    group = tp_size // dp_size if enable_dp_attention else tp_size
    if group % attn_cp_size:
        raise ConfigError(
            f"attn_cp_size={attn_cp_size} is not valid: it must divide the {group} ranks that share the attention of a"
            " batch"
        )


@dataclass(frozen=True)
class ParallelSizes:
    """How the ranks of a model share the rows of a step; by default there is one rank, and no row is shared.

    Attributes:
        tp_size, dp_size, enable_dp_attention, moe_dense_tp_size, enable_dp_lm_head, moe_all_to_all: as
            `require_mlp_tp_gather` takes them.
        attn_cp_size: ranks of context parallelism, among those that share the attention of a batch.
        attn_tp_rank: this rank among those that rows are scattered over.
        num_micro_batches: parts that a step is cut into first.

    Raises:
        ConfigError: the sizes do not fit each other.
    """

    tp_size: int = 1
    dp_size: int = 1
    enable_dp_attention: bool = False
    moe_dense_tp_size: int | None = None
    enable_dp_lm_head: bool = False
    moe_all_to_all: bool = False
    attn_cp_size: int = 1
    attn_tp_rank: int = 0
    num_micro_batches: int = 1

    def __post_init__(self) -> None:
        check_parallel_sizes(
            self.tp_size, self.dp_size, self.enable_dp_attention, self.moe_dense_tp_size, self.attn_cp_size
        )

    @property
    def attn_tp_size(self) -> int:
        """Ranks that rows are scattered over, where they are."""
        return self.tp_size // (self.dp_size if self.enable_dp_attention else 1) // self.attn_cp_size

    def mlp_tp_gather(self) -> bool:
        """`require_mlp_tp_gather` of these sizes."""
        return require_mlp_tp_gather(**self._sharing())

    def gathered_buffer(self) -> bool:
        """`require_gathered_buffer` of these sizes."""
        return require_gathered_buffer(**self._sharing())

    def _sharing(self) -> dict[str, Any]:
        return {
            "tp_size": self.tp_size,
            "dp_size": self.dp_size,
            "enable_dp_attention": self.enable_dp_attention,
            "moe_dense_tp_size": self.moe_dense_tp_size,
            "enable_dp_lm_head": self.enable_dp_lm_head,
            "moe_all_to_all": self.moe_all_to_all,
        }

    def alignment(self) -> int:
        """`row_alignment` of these sizes."""
        return row_alignment(
            attn_tp_size=self.attn_tp_size,
            attn_cp_size=self.attn_cp_size,
            gathered=self.gathered_buffer(),
            num_micro_batches=self.num_micro_batches,
        )


def row_alignment(
    *, attn_tp_size: int = 1, attn_cp_size: int = 1, gathered: bool = False, num_micro_batches: int = 1
) -> int:
    """What the rows of a step must be a multiple of: the least common multiple of everything that divides them.

    Two things divide the rows of one micro-batch into equal parts, each of them all of the rows: the scatter within an
    attention group (`attn_tp_size`, only where rows are gathered and scattered), and context parallelism
    (`attn_cp_size`, always). Neither divides a part that the other has made, so the least common multiple is enough; a
    product would pad more for nothing. A step of several micro-batches is cut into them first, and each of them is then
    divided, so that their number multiplies: the divisors are `num_micro_batches * attn_tp_size` and
    `num_micro_batches * attn_cp_size`.

    Raises:
        ConfigError: a size is no positive integer.
    """
    _check_positive("attn_tp_size", attn_tp_size)
    _check_positive("attn_cp_size", attn_cp_size)
    _check_positive("num_micro_batches", num_micro_batches)
    scattered = attn_tp_size if gathered else 1
    return math.lcm(num_micro_batches * scattered, num_micro_batches * attn_cp_size)


def size_multiple(alignment: int, rows_per_unit: int = 1) -> int:
    """What a capture size must be a multiple of for its rows to be one of `alignment`, where a unit of the size has
    `rows_per_unit` rows: a decode of 4 tokens per request aligned to 8 rows needs an even batch size.

    Raises:
        ConfigError: an argument is no positive integer.
    """
    _check_positive("alignment", alignment)
    _check_positive("rows_per_unit", rows_per_unit)
    return alignment // math.gcd(alignment, rows_per_unit)


def filter_for_gather(sizes: Iterable[int], multiple: int, *, limit: int | None = None) -> list[int]:
    """`sizes` as multiples of `multiple`, ascending: each rounded up, each once.

    Rounded up and not dropped: a batch as large as the largest size asked for must still find one.

    Args:
        sizes: capture sizes.
        multiple: what they must be multiples of.
        limit: what no size may be above, where the memory that steps run in is already there. A size that would be
            rounded up beyond it becomes the largest multiple within it; what is above runs unrecorded.

    Raises:
        ConfigError: no size is left; or a size is no positive integer.
    """
    given = sorted(set(sizes))
    for size in given:
        _check_positive("capture size", size)
    _check_positive("multiple", multiple)
    aligned = {-(-size // multiple) * multiple for size in given}
    if limit is not None:
        aligned = {min(size, limit // multiple * multiple) for size in aligned} - {0}
    if not aligned:
        bound = "" if limit is None else f" up to {limit}"
        raise ConfigError(
            f"no capture size is left: none of {given} can be made a multiple of {multiple}{bound}; give sizes of at"
            f" least {multiple}, or switch the graph runner off"
        )
    return sorted(aligned)


def decode_capture_lengths(context_length: int) -> list[int]:
    """Lengths of the longest sequence to record decodes at, ascending.

    What attention over padded sequences does depends on their length, so that a recorded decode has one. Each is four
    times the one before: few recordings, and none for a batch that is much shorter.

    Args:
        context_length: tokens of a sequence at most; the last of the list.

    Raises:
        ConfigError: it is no positive integer.
    """
    _check_positive("context_length", context_length)
    lengths = []
    length = FIRST_DECODE_LENGTH
    while length < context_length:
        lengths.append(length)
        length *= 4
    return [*lengths, context_length]


def find_capture_size(sizes: Sequence[int], wanted: int) -> int | None:
    """The smallest of `sizes` (ascending) that holds `wanted`, None if there is none."""
    index = bisect.bisect_left(sizes, wanted)
    return sizes[index] if index < len(sizes) else None


def _expand(ranges: Sequence[tuple[int, int | None, int]], largest: int) -> list[int]:
    """The sizes of `ranges` below `largest`, and `largest`."""
    sizes: list[int] = []
    for first, last, step in ranges:
        end = largest if last is None else min(last + 1, largest)
        sizes += range(first, end, step)
    return [*sizes, largest]


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r} is not valid: it must be an integer >= 1")
