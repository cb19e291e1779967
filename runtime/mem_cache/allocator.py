"""Who owns which KV slot."""

from __future__ import annotations

import torch

from runtime import platforms
from runtime.core.errors import EngineError


class TokenToKVPoolAllocator:
    """Hands out slots 1 to `size` one by one; slot 0 is the padding sink and is never handed out.

    Free slots are a stack kept in one tensor, so that neither `alloc` nor `free` costs more than the slots it moves,
    and slots used a moment ago, which are still in the processor's cache, are used again first.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Make every slot free."""
        # _free[_head:] are the free slots. _is_free answers for one slot; its entry 0 stays False.
        self._free = torch.arange(1, self.size + 1, dtype=torch.int64, device=self.device)
        self._head = 0
        self._is_free = torch.ones(self.size + 1, dtype=torch.bool, device=self.device)
        self._is_free[0] = False

    def available_size(self) -> int:
        """Slots that are free."""
        return self.size - self._head

    def alloc(self, need_size: int) -> torch.Tensor | None:
        """[need_size] int64 ids of slots that now belong to the caller; None, with nothing taken, if too few are free.

        Raises:
            ValueError: `need_size` is negative.
        """
        if need_size < 0:
            raise ValueError(f"cannot allocate {need_size} slots")
        if need_size > self.available_size():
            return None
        slots = self._free[self._head : self._head + need_size].clone()
        self._head += need_size
        self._is_free[slots] = False
        return slots

    def free(self, slots: torch.Tensor) -> None:
        """Take slots back; `slots` is a one-dimensional integer tensor, in any order.

        Raises:
            EngineError: a slot is out of range, is the sink, is free already or comes twice; nothing is freed then.
        """
        slots = slots.to(torch.int64)
        count = slots.numel()
        if count == 0:
            return
        if count > self._head:
            raise EngineError(f"cannot free {count} KV slots: only {self._head} are taken")
        low, high = (int(bound) for bound in torch.aminmax(slots))
        if low < 1 or high > self.size:
            raise EngineError(f"cannot free KV slot {low if low < 1 else high}: slots are 1 to {self.size}")
        if bool(self._is_free[slots].any()):
            already = slots[self._is_free[slots]][:8].tolist()
            raise EngineError(f"cannot free KV slots {already}: they are free already")
        if torch.unique(slots).numel() != count:
            raise EngineError(f"cannot free {count} KV slots: the same slot comes twice")
        self._is_free[slots] = True
        self._head -= count
        self._free[self._head : self._head + count] = slots

    def check_integrity(self, held_slots: torch.Tensor) -> None:
        """Check that free slots and `held_slots` (all that callers own) are each slot exactly once.

        Costs a pass over the pool; for tests and for an idle engine.

        Raises:
            EngineError: a slot leaked, is held twice, is held and free, or the free list is damaged.
        """
        holders = torch.zeros(self.size + 1, dtype=torch.int64, device=self.device)
        free = self._free[self._head :]
        for slots in (free, held_slots.to(torch.int64)):
            if slots.numel() and not bool(((slots >= 1) & (slots <= self.size)).all()):
                raise EngineError(f"KV slots are damaged: an id outside 1 to {self.size} is free or held")
            holders.index_add_(0, slots, torch.ones_like(slots))
        holders[0] = 1
        leaked = (holders == 0).nonzero().flatten()
        shared = (holders > 1).nonzero().flatten()
        if leaked.numel() or shared.numel():
            raise EngineError(
                f"KV slots are damaged: {leaked.numel()} neither free nor held {leaked[:8].tolist()}, "
                f"{shared.numel()} owned twice {shared[:8].tolist()}"
            )
        if int(self._is_free.sum()) != free.numel() or not bool(self._is_free[free].all()):
            raise EngineError("KV slots are damaged: the free list and the free marks disagree")


def create_token_to_kv_pool_allocator(*, size: int, device: torch.device) -> TokenToKVPoolAllocator:
    """Make the slot allocator of the current platform; the arguments are those of `TokenToKVPoolAllocator`.

    Raises:
        ConfigError: the platform's class cannot be imported or is no subclass of `TokenToKVPoolAllocator`.
    """
    chosen = platforms.current_platform.get_paged_allocator_cls()
    if chosen is None:
        return TokenToKVPoolAllocator(size=size, device=device)
    what = "KV slot allocator from get_paged_allocator_cls"
    return platforms.resolve_class(chosen, TokenToKVPoolAllocator, what)(size=size, device=device)
