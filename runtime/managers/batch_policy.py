"""Which requests run next: a pure object that sees lengths and counts, never a request, a pool or a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.core.errors import InvalidRequestError


@dataclass(frozen=True)
class Demand:
    """What a waiting request asks for: its prompt now, and the most KV slots it can ever hold."""

    prompt_tokens: int
    max_kv_slots: int


@dataclass(frozen=True)
class BatchPolicy:
    """First come, first served, with the whole of a request's possible KV demand reserved when it is admitted.

    A request that runs can therefore always run to its end: nothing is ever preempted. The price is that the pool is
    counted as fuller than it is while outputs are short.

    Attributes:
        context_length: tokens of prompt and output together.
        max_total_tokens: KV slots of the pool.
        max_running_requests: rows of a batch at most.
        max_prefill_tokens: prompt tokens of one step at most; a longer prompt runs in a step whose only prompt it is.
    """

    context_length: int
    max_total_tokens: int
    max_running_requests: int
    max_prefill_tokens: int

    def demand(self, prompt_tokens: int, max_new_tokens: int) -> Demand:
        """The demand of a request."""
        return Demand(prompt_tokens, max_kv_slots(prompt_tokens, max_new_tokens, self.context_length))

    def admit(self, waiting: Iterable[Demand], running: int, reserved_slots: int) -> int:
        """How many requests from the head of `waiting` start in the next step.

        Args:
            waiting: in the order of arrival.
            running: how many requests run already.
            reserved_slots: the `max_kv_slots` of those, added up.
        """
        admitted = prefill_tokens = 0
        for demand in waiting:
            prefill_tokens += demand.prompt_tokens
            reserved_slots += demand.max_kv_slots
            if running + admitted >= self.max_running_requests or reserved_slots > self.max_total_tokens:
                break
            if admitted and prefill_tokens > self.max_prefill_tokens:
                break
            admitted += 1
        return admitted


def max_kv_slots(prompt_tokens: int, max_new_tokens: int, context_length: int) -> int:
    """The most KV slots a request can hold. Its last token is never fed back, so that one needs none."""
    return min(prompt_tokens + max_new_tokens, context_length) - 1


def check_fits(
    input_ids: Sequence[int], max_new_tokens: int, *, context_length: int, max_total_tokens: int, vocab_size: int
) -> None:
    """Refuse a request that can never run.

    Raises:
        InvalidRequestError: the prompt is empty or leaves no room for a token in the context, holds a token id that
            the model does not have, or needs more KV slots than the pool has.
    """
    length = len(input_ids)
    if length == 0:
        raise InvalidRequestError("the prompt is empty: it has no tokens to continue")
    if length >= context_length:
        raise InvalidRequestError(
            f"the prompt has {length} tokens, but the context holds {context_length} and at least one of them has to"
            " be left for the output; shorten the prompt"
        )
    slots = max_kv_slots(length, max_new_tokens, context_length)
    if slots > max_total_tokens:
        raise InvalidRequestError(
            f"the request can need {slots} KV slots, but the pool has {max_total_tokens}; shorten the prompt, lower"
            " max_new_tokens or raise max_total_tokens"
        )
    for token_id in input_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(f"token id {token_id} is outside the model's vocabulary [0, {vocab_size})")
