"""What is kept of a fill of certain sizes, so that the next one of the same sizes is little else than its copies."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from runtime.model_executor.graph_slots import FillContext, GraphSlot


@dataclass
class FillPlan:
    """The views that a fill of certain sizes needs, made once; of most batches `vectors` does all but `post_fills`."""

    context: FillContext
    zeroed: list[torch.Tensor] = field(default_factory=list)
    filled: list[tuple[torch.Tensor, float]] = field(default_factory=list)
    heads: list[tuple[GraphSlot, torch.Tensor]] = field(default_factory=list)
    post_fills: list[tuple[GraphSlot, torch.Tensor]] = field(default_factory=list)
    vectors: VectorCopies | None = None
    fills: int = 0


class VectorCopies:
    """Fills that need no looking at: every field there and a vector as long as its slot says, all on one device.

    It is all of a step that Python does but the launch, so that what is looked at here is what torch does not refuse
    itself: it would repeat a vector of one element. Fields of other dtypes than those that the groups were made for are
    copied as well, only not one grouped copy per pair of dtypes.

    Args:
        heads: slots, with what the batch is copied to.
        sources: what it brings for them, the first time.
        tails: what padding is copied to, with what is copied there.
    """

    def __init__(
        self,
        heads: Sequence[tuple[GraphSlot, torch.Tensor]],
        sources: Sequence[torch.Tensor],
        tails: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        names = [slot.name for slot, _ in heads]
        fields = operator.attrgetter(*names)
        self.fields = fields if len(names) > 1 else lambda batch: (fields(batch),)
        self.lengths = [head.shape[0] for _, head in heads]
        # What has one element need not be a vector, and asking that takes longer.
        self.length_of: Callable[[torch.Tensor], int] = len if 1 in self.lengths else torch.Tensor.numel
        pairs = [(slot.dtype, source.dtype) for (slot, _), source in zip(heads, sources, strict=True)]
        self.groups = []
        for pair in dict.fromkeys([*pairs, *((tail.dtype, tail.dtype) for tail, _ in tails)]):
            numbers = [number for number, of_head in enumerate(pairs) if of_head == pair]
            of_pair = [(tail, padding) for tail, padding in tails if (tail.dtype, tail.dtype) == pair]
            destinations = [heads[number][1] for number in numbers] + [tail for tail, _ in of_pair]
            self.groups.append((destinations, numbers, [padding for _, padding in of_pair]))
        # Where there is one group without padding, the fields are its sources.
        self.destinations = self.groups[0][0] if len(self.groups) == 1 and not tails else None

    def copied(self, forward_batch: Any) -> bool:
        """Copy; False if the batch is not as expected and has to be looked at."""
        try:
            sources = self.fields(forward_batch)
            if [*map(self.length_of, sources)] != self.lengths:
                return False
            if self.destinations is not None:
                torch._foreach_copy_(self.destinations, sources)
                return True
            for destinations, numbers, padding in self.groups:
                torch._foreach_copy_(destinations, [sources[number] for number in numbers] + padding)
        except (AttributeError, TypeError, RuntimeError):  # no such field, no tensor, as many elements but no vector
            return False
        return True
