"""Who owns which KV slot."""

from __future__ import annotations

import torch

from runtime.core.errors import EngineError


class TokenToKVPoolAllocator:
    """Hands out slots 1 to `size` one by one; slot 0 is the padding sink and is never handed out.

    Free slots are a stack kept in one tensor, so that neither `alloc` nor `free` costs more than the slots it moves,
    and slots used a moment ago, which are still in the processor's cache, are used again first.

    Attributes:
        size: slots that can be handed out.
        page_size: slots per page; 1 here.
        device: where the tensors are.

    Raises:
        ValueError: `page_size` is not 1: larger pages are for `PagedTokenToKVPoolAllocator`.
    """

    def __init__(self, size: int, device: torch.device, page_size: int = 1) -> None:
        if page_size != 1:
            raise ValueError(f"{type(self).__name__} hands out single slots, not pages of {page_size}")
        self._init_units(size, device, page_size)

    def _init_units(self, size: int, device: torch.device, page_size: int) -> None:
        self.size = size
        self.page_size = page_size
        self.device = device
        self._num_units = size // page_size  # a unit is what is taken and given back: a page
        self._group: list[torch.Tensor] | None = None
        self._scratch = torch.empty(size + page_size, dtype=torch.int64, device=device)
        self.clear()

    def clear(self) -> None:
        """Make every slot free, and forget what an open group has collected."""
        # _free[_head:] are the free units. _is_free answers for one unit; its entry 0 stays False.
        self._free = torch.arange(1, self._num_units + 1, dtype=torch.int64, device=self.device)
        self._head = 0
        self._is_free = torch.ones(self._num_units + 1, dtype=torch.bool, device=self.device)
        self._is_free[0] = False
        if self._group is not None:
            self._group = []

    def available_size(self) -> int:
        """Slots that are free."""
        return (self._num_units - self._head) * self.page_size

    def alloc(self, need_size: int) -> torch.Tensor | None:
        """[need_size] int64 ids of slots that now belong to the caller; None, with nothing taken, if too few are free.

        Raises:
            ValueError: `need_size` is negative.
        """
        if need_size < 0:
            raise ValueError(f"cannot allocate {need_size} slots")
        return self._take(need_size)

    def free(self, slots: torch.Tensor) -> None:
        """Take slots back; `slots` is a one-dimensional integer tensor, in any order.

        Between `free_group_begin` and `free_group_end` they are only collected.

        Raises:
            EngineError: a slot is out of range, is the sink, is free already or comes twice; nothing is freed then.
        """
        if self._group is not None:
            self._group.append(slots)
            return
        slots = slots.to(torch.int64)
        if slots.numel() == 0:
            return
        low, high = (int(bound) for bound in torch.aminmax(slots))
        if low < self.page_size or high >= self.size + self.page_size:
            wrong = low if low < self.page_size else high
            last = self.size + self.page_size - 1
            raise EngineError(f"cannot free KV slot {wrong}: slots are {self.page_size} to {last}")
        self._give_back(slots)

    def free_group_begin(self) -> None:
        """Collect what is freed from now on and free it together: one pass for the requests that end in one step.

        Raises:
            EngineError: a group is open already.
        """
        if self._group is not None:
            raise EngineError("a group of frees is open already: end it with free_group_end first")
        self._group = []

    def free_group_end(self) -> None:
        """Free what was collected since `free_group_begin`.

        Raises:
            EngineError: no group is open, or as `free`; nothing that was collected is freed then.
        """
        if self._group is None:
            raise EngineError("there is no group of frees to end: free_group_begin comes first")
        group, self._group = self._group, None
        if group:
            self.free(torch.cat(group))

    def check_integrity(self, held_slots: torch.Tensor) -> None:
        """Check that free slots and `held_slots` (all that callers own) are each slot exactly once.

        Costs a pass over the pool; for tests and for an idle engine.

        Raises:
            EngineError: a slot leaked, is held twice, is held and free, or the free list is damaged.
        """
        self._check_units(held_slots.to(torch.int64))

    def _take(self, count: int) -> torch.Tensor | None:
        """[count] units, or None if too few are free."""
        if count > self._num_units - self._head:
            return None
        units = self._free[self._head : self._head + count].clone()
        self._head += count
        self._is_free[units] = False
        return units

    def _give_back(self, units: torch.Tensor) -> None:
        """Make units free, each of which exists."""
        count = units.numel()
        if count > self._head:
            raise EngineError(f"cannot free {count} KV {self._unit}s: only {self._head} are taken")
        if bool(self._is_free[units].any()):
            already = units[self._is_free[units]][:8].tolist()
            raise EngineError(f"cannot free KV {self._unit}s {already}: they are free already")
        if not bool(self._one_of_each(units).all()):
            raise EngineError(f"cannot free {count} KV {self._unit}s: the same {self._unit} comes twice")
        self._is_free[units] = True
        self._head -= count
        self._free[self._head : self._head + count] = units

    def _one_of_each(self, ids: torch.Tensor) -> torch.Tensor:
        """[N] bool: true for exactly one of each distinct id in `ids` ([N] int64, below `size + page_size`).

        Costs a write and a read of N numbers, where sorting them would cost several times as much.
        """
        numbers = torch.arange(ids.numel(), device=self.device)
        self._scratch[ids] = numbers
        return self._scratch[ids] == numbers

    def _check_units(self, held: torch.Tensor) -> None:
        if self._group is not None:
            raise EngineError("KV slots cannot be checked while a group of frees is open")
        holders = torch.zeros(self._num_units + 1, dtype=torch.int64, device=self.device)
        free = self._free[self._head :]
        for units in (free, held):
            if units.numel() and not bool(((units >= 1) & (units <= self._num_units)).all()):
                raise EngineError(f"KV {self._unit}s are damaged: an id outside 1 to {self._num_units} is free or held")
            holders.index_add_(0, units, torch.ones_like(units))
        holders[0] = 1
        leaked = (holders == 0).nonzero().flatten()
        shared = (holders > 1).nonzero().flatten()
        if leaked.numel() or shared.numel():
            raise EngineError(
                f"KV {self._unit}s are damaged: {leaked.numel()} neither free nor held {leaked[:8].tolist()}, "
                f"{shared.numel()} owned twice {shared[:8].tolist()}"
            )
        if int(self._is_free.sum()) != free.numel() or not bool(self._is_free[free].all()):
            raise EngineError(f"KV {self._unit}s are damaged: the free list and the free marks disagree")

    @property
    def _unit(self) -> str:
        return "slot" if self.page_size == 1 else "page"


class PagedTokenToKVPoolAllocator(TokenToKVPoolAllocator):
    """Hands out whole pages: page p is slots p * page_size to (p + 1) * page_size - 1, and page 0 is the padding sink.

    A sequence fills its last page before it takes another one, so that at most `page_size` - 1 slots of it lie idle
    (PagedAttention, Kwon et al. 2023, arXiv:2309.06180). A page belongs to one owner. The lengths that the methods take
    are tensors on the host, where they are known: no call waits for the device to learn how many pages are needed.

    Raises:
        ValueError: `size` is not a multiple of `page_size`.
    """

    def __init__(self, size: int, device: torch.device, page_size: int = 1) -> None:
        if page_size < 1 or size % page_size:
            raise ValueError(f"{size} slots are not whole pages of {page_size}")
        self._in_page = torch.arange(page_size, dtype=torch.int64, device=device)
        self._init_units(size, device, page_size)

    def alloc(self, need_size: int) -> torch.Tensor | None:
        """[need_size] int64 ids of the slots of whole pages; None, with nothing taken, if too few are free.

        Raises:
            ValueError: `need_size` is negative or not a multiple of the page size.
        """
        if need_size < 0 or need_size % self.page_size:
            raise ValueError(f"cannot allocate {need_size} slots: whole pages have {self.page_size}")
        pages = self._take(need_size // self.page_size)
        return None if pages is None else self._slots_of(pages)

    def alloc_extend(
        self, prefix_lens: torch.Tensor, seq_lens: torch.Tensor, last_loc: torch.Tensor, extend_num_tokens: int
    ) -> torch.Tensor | None:
        """Slots for B sequences that grow from `prefix_lens` to `seq_lens` tokens.

        Args:
            prefix_lens: [B] int64 tokens that have slots, on the host.
            seq_lens: [B] int64 tokens that shall have slots, on the host.
            last_loc: [B] int64 slot of the last token that has one, on the device; not looked at where there is none or
                where it ends its page.
            extend_num_tokens: how many slots that is in all.

        Returns:
            [extend_num_tokens] int64 slots, sequence by sequence; None, with nothing taken, if too few pages are free.

        Raises:
            ValueError: a sequence shrinks, or `extend_num_tokens` is not what the lengths add up to.
        """
        new = seq_lens - prefix_lens
        if bool((new < 0).any()) or int(new.sum()) != extend_num_tokens:
            raise ValueError(
                f"sequences of {prefix_lens.tolist()} tokens cannot grow to {seq_lens.tolist()} by {extend_num_tokens}"
            )
        page_size = self.page_size
        prefix_pages = (prefix_lens + (page_size - 1)) // page_size
        new_pages = (seq_lens + (page_size - 1)) // page_size - prefix_pages
        pages = self._take(int(new_pages.sum()))
        if pages is None:
            return None
        # One table for all tokens: per sequence, where its new tokens start, how many of them still fit its last page,
        # and which of the new pages is its first.
        first_token = new.cumsum(0) - new
        in_last_page = torch.minimum(prefix_pages * page_size - prefix_lens, new)
        first_page = new_pages.cumsum(0) - new_pages
        per_row = torch.stack([first_token, in_last_page, first_page]).to(self.device)
        row = torch.repeat_interleave(
            torch.arange(len(new), device=self.device), new.to(self.device), output_size=extend_num_tokens
        )
        first_token, in_last_page, first_page = per_row[:, row]
        number = torch.arange(extend_num_tokens, device=self.device) - first_token
        beyond = number - in_last_page
        if pages.numel() == 0:
            return last_loc[row] + 1 + number
        index = first_page + beyond.clamp(min=0) // page_size
        # A sequence that stays within its last page has no new page, and its index may lie one past the end.
        fresh = pages[index.clamp(max=pages.numel() - 1)] * page_size + beyond % page_size
        return torch.where(beyond < 0, last_loc[row] + 1 + number, fresh)

    def alloc_decode(self, seq_lens: torch.Tensor, last_loc: torch.Tensor) -> torch.Tensor | None:
        """Slots for B sequences that grow by one token.

        Args:
            seq_lens: [B] int64 lengths with the new token, on the host.
            last_loc: [B] int64 slot of the token before it, on the device.

        Returns:
            [B] int64 slots; None, with nothing taken, if too few pages are free.
        """
        starts_page = (seq_lens - 1) % self.page_size == 0
        rows = starts_page.nonzero().flatten()
        pages = self._take(rows.numel())
        if pages is None:
            return None
        slots = last_loc + 1
        if rows.numel():
            slots[rows.to(self.device)] = pages * self.page_size
        return slots

    def check_integrity(self, held_slots: torch.Tensor) -> None:
        """Check that each page is free or held, and held by one owner; a page is held if one of `held_slots` is in it.

        Costs a pass over the pool; for tests and for an idle engine.

        Raises:
            EngineError: a page leaked, is held and free, a slot is held twice, or the free list is damaged.
        """
        held = held_slots.to(torch.int64)
        if torch.unique(held).numel() != held.numel():
            raise EngineError("KV slots are damaged: the same slot is held twice")
        self._check_units(torch.unique(held // self.page_size))

    def _give_back(self, units: torch.Tensor) -> None:
        """Make the pages of slots free: a page goes as a whole, however many of its slots are named."""
        if not bool(self._one_of_each(units).all()):
            raise EngineError(f"cannot free {units.numel()} KV slots: the same slot comes twice")
        pages = units // self.page_size
        super()._give_back(pages[self._one_of_each(pages)])

    def _slots_of(self, pages: torch.Tensor) -> torch.Tensor:
        return (pages[:, None] * self.page_size + self._in_page).flatten()
