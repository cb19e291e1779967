"""Which requests run next: a pure object that sees lengths and counts, never a request, a pool or a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from runtime.core.errors import InvalidRequestError

INITIAL_NEW_TOKEN_RATIO: Final = 0.7
MIN_NEW_TOKEN_RATIO: Final = 0.1
RATIO_DECAY_STEPS: Final = 600
"""Steps without a retraction in which the ratio falls from its first value to its least."""
RETRACTION_MARGIN_STEPS: Final = 20
"""Steps that running requests should have room for after a retraction."""


@dataclass(frozen=True)
class Demand:
    """What a request asks for.

    Attributes:
        tokens: tokens of its sequence, all of which need a KV slot before the next one can be made.
        cached_tokens: leading ones that have a slot already.
        new_tokens: tokens that it may still generate at most.
    """

    tokens: int
    cached_tokens: int
    new_tokens: int

    @property
    def missing_tokens(self) -> int:
        """Tokens to compute before the next one can be made."""
        return self.tokens - self.cached_tokens


@dataclass(frozen=True)
class Room:
    """What is left for prompts in the step that is being put together.

    Attributes:
        rows: requests that may still join.
        slots: KV slots that can be had, less those that are spoken for.
        prefill_tokens: prompt tokens that the step may still take.
        has_prompt: a prompt is in the step already.
        is_idle: nothing runs, so there is nobody to wait for.
    """

    rows: int
    slots: int
    prefill_tokens: int
    has_prompt: bool
    is_idle: bool


@dataclass(frozen=True)
class BatchPolicy:
    """First come, first served. Requests are admitted in the hope that most outputs stay shorter than they may get.

    An admitted request has slots for its whole prompt; of the tokens that it may generate a part is reckoned with, the
    *new-token ratio*. Where the hope fails a request is retracted: it gives back its slots and waits at the head. The
    ratio rises then, and falls while all goes well.

    Attributes:
        context_length: tokens of prompt and output together.
        page_size: KV slots per page.
        max_prefill_tokens: prompt tokens of one step at most; a longer prompt runs in a step whose only prompt it is.
        chunked_prefill_size: prompt tokens of one step at most, a longer prompt being cut; None cuts nothing.
    """

    context_length: int
    page_size: int
    max_prefill_tokens: int
    chunked_prefill_size: int | None = None

    @property
    def prefill_budget(self) -> int:
        """Prompt tokens of a step."""
        if self.chunked_prefill_size is None:
            return self.max_prefill_tokens
        return min(self.max_prefill_tokens, self.chunked_prefill_size)

    def demand(self, prompt_tokens: int, generated_tokens: int, cached_tokens: int, max_new_tokens: int) -> Demand:
        """The demand of a request."""
        tokens = prompt_tokens + generated_tokens
        return Demand(tokens, cached_tokens, min(max_new_tokens - generated_tokens, self.context_length - tokens))

    def slots_between(self, have: int, want: int) -> int:
        """KV slots, in whole pages, that a sequence takes to grow from `have` to `want` tokens."""
        size = self.page_size
        return (-(-want // size) - -(-have // size)) * size

    def expected_growth(self, demand: Demand, ratio: float) -> int:
        """KV slots that a request is reckoned to take beyond its present tokens. The last token never needs one."""
        new_tokens = math.ceil(max(demand.new_tokens - 1, 0) * ratio)
        return self.slots_between(demand.tokens, demand.tokens + new_tokens)

    def admit(self, demand: Demand, room: Room, ratio: float) -> int:
        """How many tokens the waiting request at the head runs in this step; 0 if it does not start yet."""
        need = self.slots_between(demand.cached_tokens, demand.tokens)
        if not room.is_idle:
            need += self.expected_growth(demand, ratio)
        if room.rows < 1 or need > room.slots:
            return 0
        if demand.missing_tokens <= room.prefill_tokens:
            return demand.missing_tokens
        if self.chunked_prefill_size is not None:
            return room.prefill_tokens
        return 0 if room.has_prompt else demand.missing_tokens

    def next_chunk(self, demand: Demand, slots: int) -> int:
        """How many tokens a request whose prompt was cut runs in this step, with `slots` KV slots to be had."""
        in_last_page = -demand.cached_tokens % self.page_size
        fitting = in_last_page + slots // self.page_size * self.page_size
        return min(demand.missing_tokens, self.prefill_budget, fitting)

    def choose_retraction(self, progress: Sequence[tuple[int, int]]) -> int:
        """Which of several running requests is retracted: the one whose loss costs least to make up for.

        Args:
            progress: for each, in the order of arrival, how many tokens it has generated and how long its prompt is.

        Returns:
            The index of the one that has generated fewest; among equals the longest prompt, then the latest arrival.
        """
        return min(range(len(progress)), key=lambda i: (progress[i][0], -progress[i][1], -i))


def decayed_ratio(ratio: float) -> float:
    """The new-token ratio after a step without a retraction."""
    step = (INITIAL_NEW_TOKEN_RATIO - MIN_NEW_TOKEN_RATIO) / RATIO_DECAY_STEPS
    return max(ratio - step, MIN_NEW_TOKEN_RATIO)


def ratio_after_retraction(ratio: float, remaining: Sequence[tuple[int, int]]) -> float:
    """The new-token ratio after a retraction: at least what those that still run need for their next steps.

    Args:
        ratio: the one before.
        remaining: for each request that still runs, how many tokens it has generated and how many it may in all.
    """
    generated = sum(done for done, _ in remaining)
    needed = (generated + RETRACTION_MARGIN_STEPS * len(remaining)) / (sum(most for _, most in remaining) + 1)
    return min(1.0, max(ratio, needed))


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
