"""From requests to the tensors of one forward pass, and the slots and rows that go with them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from runtime import platforms
from runtime.core.errors import EngineError
from runtime.core.forward_batch import ForwardBatch, ForwardMode
from runtime.core.request import Request
from runtime.mem_cache.allocator import TokenToKVPoolAllocator
from runtime.mem_cache.memory_pool import ReqToTokenPool


class BatchBuilder:
    """Gives requests their rows and KV slots, and takes them back."""

    def __init__(
        self, req_to_token_pool: ReqToTokenPool, allocator: TokenToKVPoolAllocator, device: torch.device
    ) -> None:
        self.req_to_token_pool = req_to_token_pool
        self.allocator = allocator
        self.device = device
        self.pin_memory = platforms.current_platform.is_pin_memory_available()

    def build(self, extends: Sequence[Request], decodes: Sequence[Request]) -> ForwardBatch:
        """The forward pass that brings every given request up to date, extends first.

        A request brings its tokens that have no KV slot yet: for an extend any number (a whole prompt, one with the
        tokens generated before it was retracted, or what follows a prefix), for a decode exactly one.

        Raises:
            EngineError: rows or slots have run out, or a request cannot be part of this batch; nothing is then taken.
                Whoever schedules reserves ahead, so this is a mistake of his and not something to retry.
        """
        self._check(extends, decodes)
        rows = [*extends, *decodes]
        seq_lens = [request.num_tokens for request in rows]
        extend_lens = [length - request.kv_len for request, length in zip(rows, seq_lens, strict=True)]
        num_tokens = sum(extend_lens)
        new_rows = [request for request in extends if request.req_pool_index is None]
        if len(new_rows) > self.req_to_token_pool.available_size():
            raise EngineError(
                f"out of request rows: {len(new_rows)} needed, {self.req_to_token_pool.available_size()} free"
            )
        out_cache_loc = self.allocator.alloc(num_tokens)
        if out_cache_loc is None:
            raise EngineError(f"out of KV slots: {num_tokens} needed, {self.allocator.available_size()} free")
        for request in new_rows:
            request.req_pool_index = self.req_to_token_pool.alloc()
        batch = self._tensors(rows, len(extends), seq_lens, extend_lens, out_cache_loc)
        for request, length in zip(rows, seq_lens, strict=True):
            request.kv_len = length
        return batch

    def release(self, request: Request) -> None:
        """Take back the row and the slots of a request; one that holds none is left as it is.

        Raises:
            EngineError: its slots or its row are not taken: the pools and the request disagree.
        """
        if request.req_pool_index is None:
            return
        slots = self.req_to_token_pool.req_to_token[request.req_pool_index, : request.kv_len]
        self.allocator.free(slots)
        self.req_to_token_pool.free(request.req_pool_index)
        request.req_pool_index = None
        request.kv_len = 0

    def _check(self, extends: Sequence[Request], decodes: Sequence[Request]) -> None:
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
            input_ids += _tokens(request, request.kv_len)
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


def _tokens(request: Request, start: int) -> list[int]:
    """The request's sequence from position `start` on."""
    prompt_len = len(request.input_ids)
    if start >= prompt_len:
        return request.output_ids[start - prompt_len :]
    return request.input_ids[start:] + request.output_ids
