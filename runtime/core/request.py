"""One request on its way through the engine."""

from __future__ import annotations

import enum
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from runtime.core.sampling_params import SamplingParams


class FinishReason(enum.Enum):
    """Why a request ended; the value is what users see."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, what was generated so far, and what the request holds of the pools.

    Finishing and aborting only mark the request (`finish_reason`): its row and slots stay until the batch in flight
    has landed and its owner releases them. Two requests are equal only if they are the same object.

    Attributes:
        request_id: unique among the requests alive in an engine.
        input_ids: prompt token ids.
        sampling_params: how tokens are chosen and when to stop.
        output_ids: generated token ids, an end-of-sequence token included.
        finish_reason: None while the request runs.
        req_pool_index: row in the `ReqToTokenPool`; None while it holds none.
        kv_len: leading tokens of the sequence that have a KV slot.
        cache_len: of those, leading ones whose slot belongs to the prefix cache; the others are the request's own.
        cache_node: what keeps the prefix cache from dropping them; None while the request holds none of it.
        arrival: its number among the requests of a scheduler; who comes first is served first.
        generator: the request's own `torch.Generator`, made by the sampler at the first draw.
    """

    request_id: str
    input_ids: list[int]
    sampling_params: SamplingParams
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    req_pool_index: int | None = None
    kv_len: int = 0
    cache_len: int = 0
    cache_node: Any = None
    arrival: int = 0
    generator: Any = None

    @property
    def num_tokens(self) -> int:
        """Length of the sequence: prompt and generated tokens."""
        return len(self.input_ids) + len(self.output_ids)

    @property
    def finished(self) -> bool:
        """Whether the request has ended."""
        return self.finish_reason is not None

    def tokens(self, start: int, end: int) -> list[int]:
        """The token ids at positions [start, end) of the sequence."""
        prompt_len = len(self.input_ids)
        if start >= prompt_len:
            return self.output_ids[start - prompt_len : end - prompt_len]
        if end <= prompt_len:
            return self.input_ids[start:end]
        return self.input_ids[start:] + self.output_ids[: end - prompt_len]

    def append_token(self, token_id: int, eos_token_ids: Container[int], context_length: int) -> None:
        """Add a generated token and decide whether it was the last.

        The token is kept whatever it decides. A stop token wins over the length limits, so that a request whose last
        allowed token is an end-of-sequence token reports `STOP`.

        Raises:
            RuntimeError: the request has already finished; its caller lost track of it.
        """
        if self.finish_reason is not None:
            raise RuntimeError(f"request {self.request_id} has finished ({self.finish_reason.value}), token refused")
        self.output_ids.append(token_id)
        params = self.sampling_params
        if (not params.ignore_eos and token_id in eos_token_ids) or token_id in params.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.output_ids) >= params.max_new_tokens or self.num_tokens >= context_length:
            self.finish_reason = FinishReason.LENGTH

    def abort(self) -> None:
        """Mark the request as aborted; a request that has already ended keeps its reason."""
        if self.finish_reason is None:
            self.finish_reason = FinishReason.ABORT
