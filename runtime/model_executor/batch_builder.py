"""From requests to the tensors of one forward pass, and the slots and rows that go with them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from runtime import platforms
from runtime.core.errors import EngineError
from runtime.core.forward_batch import ForwardBatch, ForwardMode
from runtime.core.request import Request
from runtime.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from runtime.mem_cache.memory_pool import ReqToTokenPool
from runtime.mem_cache.radix_cache import RadixCache

EVICTION_SHARE = 256
"""The part of the pool, as one in so many, that an eviction makes free where less would do."""


class BatchBuilder:
    """Gives requests their rows and KV slots, and takes them back: the one place where requests, the allocator and the
    prefix cache meet.

    A slot belongs to the allocator (free), to the prefix cache, or to one request. A request's row names the slots of
    its tokens; the first `cache_len` of them are the cache's and locked while the request has them.

    Args:
        req_to_token_pool: rows.
        allocator: slots.
        device: where batches are put.
        prefix_cache: what is kept of sequences that ran; None to keep nothing.
    """

    def __init__(
        self,
        req_to_token_pool: ReqToTokenPool,
        allocator: TokenToKVPoolAllocator,
        device: torch.device,
        prefix_cache: RadixCache | None = None,
    ) -> None:
        self.req_to_token_pool = req_to_token_pool
        self.allocator = allocator
        self.device = device
        self.prefix_cache = prefix_cache
        self.page_size = allocator.page_size
        self.pin_memory = platforms.current_platform.is_pin_memory_available()

    def build(
        self, extends: Sequence[Request], decodes: Sequence[Request], extend_lens: Sequence[int] | None = None
    ) -> ForwardBatch:
        """The forward pass that brings every given request up to date, extends first.

        A request brings its tokens that have no KV slot yet: for an extend any number (a whole prompt, one with the
        tokens generated before it was retracted, or what follows a prefix), for a decode exactly one.

        Args:
            extends: requests with tokens to bring.
            decodes: requests with one token to bring.
            extend_lens: how many of its tokens each extend brings now; all of them by default.

        Raises:
            EngineError: rows or slots have run out, or a request cannot be part of this batch; nothing is then taken.
                Whoever schedules reserves ahead, so this is a mistake of his and not something to retry.
        """
        self._check(extends, decodes, extend_lens)
        rows = [*extends, *decodes]
        seq_lens = [request.num_tokens for request in rows]
        if extend_lens is not None:
            seq_lens[: len(extends)] = [request.kv_len + new for request, new in zip(extends, extend_lens, strict=True)]
        new_lens = [length - request.kv_len for request, length in zip(rows, seq_lens, strict=True)]
        new_rows = [request for request in extends if request.req_pool_index is None]
        if len(new_rows) > self.req_to_token_pool.available_size():
            raise EngineError(
                f"out of request rows: {len(new_rows)} needed, {self.req_to_token_pool.available_size()} free"
            )
        out_cache_loc = self._alloc(rows, seq_lens, sum(new_lens), is_decode=not extends)
        for request in new_rows:
            request.req_pool_index = self.req_to_token_pool.alloc()
        batch = self._tensors(rows, len(extends), seq_lens, new_lens, out_cache_loc)
        for request, length in zip(rows, seq_lens, strict=True):
            request.kv_len = length
        return batch

    def available_slots(self) -> int:
        """Slots that a batch can have: free ones, and those that the prefix cache can give back."""
        cached = 0 if self.prefix_cache is None else self.prefix_cache.evictable_size()
        return self.allocator.available_size() + cached

    def decode_slots(self, requests: Sequence[Request]) -> int:
        """Slots that a decode of `requests` takes from those available."""
        if self.page_size == 1:
            return len(requests)
        return self.page_size * sum(request.kv_len % self.page_size == 0 for request in requests)

    def start(self, request: Request) -> None:
        """Give a request that holds nothing a row, and what the prefix cache has of its sequence.

        At least its last token is left to compute: a next token comes from the logits after it.

        Raises:
            EngineError: no row is free.
        """
        row = self.req_to_token_pool.alloc()
        if row is None:
            raise EngineError(f"out of request rows: 1 needed, 0 free, for request {request.request_id}")
        request.req_pool_index = row
        if self.prefix_cache is None:
            return
        match = self.prefix_cache.match_prefix(request.tokens(0, request.num_tokens - 1))
        self.prefix_cache.inc_lock_ref(match.node)
        request.cache_node = match.node
        request.cache_len = request.kv_len = match.slots.numel()
        if request.kv_len:
            self.req_to_token_pool.req_to_token[row, : request.kv_len] = match.slots

    def cache(self, request: Request) -> None:
        """Let others share what has been computed of a request, as far as it fills pages; it goes on with it.

        Slots that turn out to hold what the cache has already are freed. To be called after the batch has landed.
        """
        length = request.kv_len // self.page_size * self.page_size
        if self.prefix_cache is None or request.req_pool_index is None or length <= request.cache_len:
            return
        row = self.req_to_token_pool.req_to_token[request.req_pool_index, :length]
        inserted = self.prefix_cache.insert(request.tokens(0, length), row)
        self.prefix_cache.inc_lock_ref(inserted.node)
        if request.cache_node is not None:
            self.prefix_cache.dec_lock_ref(request.cache_node)
        request.cache_node, request.cache_len = inserted.node, length
        if inserted.duplicates.numel():
            row.copy_(inserted.slots)
            self.allocator.free(inserted.duplicates)

    def finish(self, requests: Sequence[Request]) -> None:
        """Take back what requests that have ended hold, and keep what was computed of them in the prefix cache.

        Raises:
            EngineError: as `release`.
        """
        self.allocator.free_group_begin()
        try:
            for request in requests:
                self.cache(request)
                self.release(request)
        finally:
            self.allocator.free_group_end()

    def release(self, request: Request) -> None:
        """Take back the row and the slots of a request; one that holds none is left as it is.

        Raises:
            EngineError: its slots or its row are not taken: the pools and the request disagree.
        """
        if request.req_pool_index is None:
            return
        self.allocator.free(self._own_slots(request))
        if self.prefix_cache is not None and request.cache_node is not None:
            self.prefix_cache.dec_lock_ref(request.cache_node)
        self.req_to_token_pool.free(request.req_pool_index)
        request.req_pool_index = request.cache_node = None
        request.kv_len = request.cache_len = 0

    def check_integrity(self, requests: Sequence[Request]) -> None:
        """Check that every slot and row is free, in the prefix cache or held by one of `requests`, all that are alive.

        Costs a pass over the pool; for tests and for an idle engine.

        Raises:
            EngineError: something leaked, is owned twice or is locked by nobody.
        """
        holding = [request for request in requests if request.req_pool_index is not None]
        held = [self._own_slots(request) for request in holding]
        if self.prefix_cache is not None:
            self.prefix_cache.check_integrity()
            held.append(self.prefix_cache.all_slots())
            if not holding and self.prefix_cache.protected_size():
                raise EngineError(
                    f"{self.prefix_cache.protected_size()} slots of the prefix cache are locked, but no request runs"
                )
        self.allocator.check_integrity(
            torch.cat(held) if held else torch.empty(0, dtype=torch.int64, device=self.device)
        )
        taken = self.req_to_token_pool.size - self.req_to_token_pool.available_size()
        if taken != len(holding):
            raise EngineError(f"{taken} request rows are taken, but {len(holding)} requests hold one")

    def _own_slots(self, request: Request) -> torch.Tensor:
        row: torch.Tensor = self.req_to_token_pool.req_to_token[request.req_pool_index]
        return row[request.cache_len : request.kv_len]

    def _alloc(self, rows: Sequence[Request], seq_lens: list[int], num_tokens: int, is_decode: bool) -> torch.Tensor:
        """[num_tokens] slots for the new tokens of `rows`, in their order, evicting what stands in the way."""
        allocator = self.allocator
        if not isinstance(allocator, PagedTokenToKVPoolAllocator):
            need = num_tokens
            self._evict_for(need)
            slots = allocator.alloc(need)
        else:
            size = self.page_size
            need = size * sum(-(-n // size) - -(-r.kv_len // size) for n, r in zip(seq_lens, rows, strict=True))
            self._evict_for(need)
            last_loc = self.req_to_token_pool.req_to_token[
                self._tensor([request.req_pool_index or 0 for request in rows]),
                self._tensor([max(request.kv_len - 1, 0) for request in rows]),
            ].to(torch.int64)
            lengths = torch.tensor(seq_lens)
            if is_decode:
                slots = allocator.alloc_decode(lengths, last_loc)
            else:
                prefixes = torch.tensor([request.kv_len for request in rows])
                slots = allocator.alloc_extend(prefixes, lengths, last_loc, num_tokens)
        if slots is None:
            raise EngineError(f"out of KV slots: {need} needed, {allocator.available_size()} free")
        return slots

    def _evict_for(self, need: int) -> None:
        short = need - self.allocator.available_size()
        if short > 0 and self.prefix_cache is not None and self.prefix_cache.evictable_size() >= short:
            # In the long run the cache fills the pool: with some slots to spare not every step has to evict.
            self.allocator.free(self.prefix_cache.evict(max(short, self.allocator.size // EVICTION_SHARE)))

    def _check(self, extends: Sequence[Request], decodes: Sequence[Request], extend_lens: Sequence[int] | None) -> None:
        if not extends and not decodes:
            raise EngineError("a forward pass needs at least one request")
        limit = self.req_to_token_pool.max_context_len
        for request in extends:
            if request.num_tokens <= request.kv_len:
                raise EngineError(f"request {request.request_id} has no new token to extend by")
            if request.num_tokens > limit:
                raise EngineError(
                    f"request {request.request_id} has {request.num_tokens} tokens, the context length is {limit}"
                )
        if extend_lens is not None:
            for request, new in zip(extends, extend_lens, strict=True):
                if not 0 < new <= request.num_tokens - request.kv_len:
                    raise EngineError(
                        f"request {request.request_id} cannot be extended by {new} tokens:"
                        f" {request.num_tokens - request.kv_len} are left"
                    )
        for request in decodes:
            if request.req_pool_index is None or request.num_tokens != request.kv_len + 1:
                raise EngineError(
                    f"request {request.request_id} cannot decode: {request.num_tokens} tokens, "
                    f"{request.kv_len} of them cached"
                )
            if request.num_tokens > limit:
                raise EngineError(f"request {request.request_id} is at the context length of {limit} tokens")

    def _tensors(
        self,
        rows: Sequence[Request],
        num_extend: int,
        seq_lens: list[int],
        extend_lens: list[int],
        out_cache_loc: torch.Tensor,
    ) -> ForwardBatch:
        # Built as Python lists and turned into one tensor per field: many small tensor operations cost more.
        input_ids: list[int] = []
        positions: list[int] = []
        for request, length in zip(rows[:num_extend], seq_lens, strict=False):
            input_ids += request.tokens(request.kv_len, length)
            positions += range(request.kv_len, length)
        input_ids += [
            request.output_ids[-1] if request.output_ids else request.input_ids[-1] for request in rows[num_extend:]
        ]
        positions += [request.kv_len for request in rows[num_extend:]]
        req_pool_indices = [request.req_pool_index for request in rows]
        forward_mode = ForwardMode.of(num_extend, len(rows))
        token_rows = req_pool_indices
        if not forward_mode.is_decode():
            token_rows = list(
                itertools.chain.from_iterable(
                    itertools.repeat(row, new) for row, new in zip(req_pool_indices, extend_lens, strict=True)
                )
            )
        indices = self._tensor(req_pool_indices)
        batch = ForwardBatch(
            forward_mode=forward_mode,
            input_ids=self._tensor(input_ids),
            positions=self._tensor(positions),
            out_cache_loc=out_cache_loc,
            req_pool_indices=indices,
            seq_lens=self._tensor(seq_lens),
            seq_lens_cpu=seq_lens,
            extend_lens_cpu=extend_lens,
            num_extend=num_extend,
        )
        token_row_indices = indices if token_rows is req_pool_indices else self._tensor(token_rows)
        self.req_to_token_pool.write(token_row_indices, batch.positions, out_cache_loc)
        return batch

    def _tensor(self, values: Sequence[int | None]) -> torch.Tensor:
        if self.pin_memory:  # the copy then runs while the host assembles the next tensor
            return torch.tensor(values, dtype=torch.int64, pin_memory=True).to(self.device, non_blocking=True)
        return torch.tensor(values, dtype=torch.int64, device=self.device)
