"""Which requests the policy admits, what it cuts, whom it retracts, and which can never run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.errors import InvalidRequestError
from runtime.managers import batch_policy
from runtime.managers.batch_policy import BatchPolicy, Demand, Room, check_fits

LIMITS = {"context_length": 100, "max_total_tokens": 250, "vocab_size": 50}
ROOM = Room(rows=4, slots=250, prefill_tokens=60, has_prompt=False, is_idle=False)


def make_policy(**changes: int | None) -> BatchPolicy:
    fields: dict[str, int | None] = {"context_length": 100, "page_size": 1, "max_prefill_tokens": 60}
    return BatchPolicy(**(fields | changes))  # type: ignore[arg-type]


def test_a_prompt_that_fits_runs_whole() -> None:
    policy = make_policy()
    assert policy.admit(policy.demand(40, 0, 0, 20), ROOM, 1.0) == 40


def test_what_is_cached_is_neither_computed_nor_given_slots() -> None:
    policy = make_policy()
    demand = policy.demand(40, 0, 30, 1)
    assert policy.admit(demand, replace(ROOM, slots=10, prefill_tokens=10), 1.0) == 10
    assert policy.admit(demand, replace(ROOM, slots=9), 1.0) == 0


def test_the_new_token_ratio_says_how_much_of_the_output_is_reckoned_with() -> None:
    policy = make_policy()
    demand = policy.demand(40, 0, 0, 21)
    assert [policy.expected_growth(demand, ratio) for ratio in (0.0, 0.5, 1.0)] == [0, 10, 20]
    assert policy.admit(demand, replace(ROOM, slots=50), 0.5) == 40
    assert policy.admit(demand, replace(ROOM, slots=50), 0.6) == 0


def test_an_idle_engine_starts_whatever_its_prompt_has_slots_for() -> None:
    policy = make_policy()
    demand = policy.demand(40, 0, 0, 50)
    assert policy.admit(demand, replace(ROOM, slots=40), 1.0) == 0
    assert policy.admit(demand, replace(ROOM, slots=40, is_idle=True), 1.0) == 40
    assert policy.admit(demand, replace(ROOM, slots=39, is_idle=True), 1.0) == 0


def test_rows_limit_admission() -> None:
    policy = make_policy()
    assert policy.admit(policy.demand(1, 0, 0, 1), replace(ROOM, rows=0), 1.0) == 0


def test_a_prompt_longer_than_the_prefill_budget_runs_in_a_step_whose_only_prompt_it_is() -> None:
    policy = make_policy()
    demand = policy.demand(90, 0, 0, 1)
    assert policy.admit(demand, ROOM, 1.0) == 90
    assert policy.admit(demand, replace(ROOM, has_prompt=True), 1.0) == 0


def test_a_prompt_longer_than_the_chunk_is_cut() -> None:
    policy = make_policy(chunked_prefill_size=7)
    assert policy.prefill_budget == 7
    assert make_policy(chunked_prefill_size=70).prefill_budget == 60
    demand = policy.demand(90, 0, 0, 1)
    assert policy.admit(demand, replace(ROOM, prefill_tokens=7), 1.0) == 7
    assert policy.admit(demand, replace(ROOM, prefill_tokens=3, has_prompt=True), 1.0) == 3
    assert policy.next_chunk(policy.demand(90, 0, 7, 1), 50) == 7
    assert policy.next_chunk(policy.demand(90, 0, 88, 1), 50) == 2


def test_a_chunk_takes_no_more_than_the_pages_hold() -> None:
    policy = make_policy(page_size=4, chunked_prefill_size=20)
    assert policy.next_chunk(policy.demand(90, 0, 6, 1), 0) == 2
    assert policy.next_chunk(policy.demand(90, 0, 8, 1), 3) == 0
    assert policy.next_chunk(policy.demand(90, 0, 8, 1), 9) == 8
    assert policy.next_chunk(policy.demand(90, 0, 8, 1), 90) == 20


def test_slots_are_reckoned_in_whole_pages() -> None:
    policy = make_policy(page_size=16)
    assert [policy.slots_between(*span) for span in ((0, 1), (0, 16), (0, 17), (15, 16), (16, 17), (5, 40))] == [
        *(16, 16, 32, 0, 16, 32)
    ]
    demand = policy.demand(10, 0, 0, 8)
    assert policy.expected_growth(demand, 1.0) == 16


def test_the_last_token_needs_no_slot_and_the_context_caps_the_demand() -> None:
    policy = make_policy()
    assert policy.expected_growth(policy.demand(10, 0, 0, 5), 1.0) == 4
    assert policy.expected_growth(policy.demand(10, 3, 12, 5), 1.0) == 1
    assert policy.expected_growth(policy.demand(90, 0, 0, 500), 1.0) == 9
    assert policy.demand(90, 4, 0, 500) == Demand(94, 0, 6)


def test_who_has_generated_fewest_is_retracted_then_the_longest_prompt_then_the_latest() -> None:
    policy = make_policy()
    assert policy.choose_retraction([(5, 10), (2, 10), (3, 90)]) == 1
    assert policy.choose_retraction([(2, 10), (2, 30), (2, 20)]) == 1
    assert policy.choose_retraction([(2, 10), (2, 10)]) == 1


def test_the_ratio_falls_while_all_goes_well_and_rises_with_a_retraction() -> None:
    ratio = batch_policy.INITIAL_NEW_TOKEN_RATIO
    for _ in range(batch_policy.RATIO_DECAY_STEPS):
        lower = batch_policy.decayed_ratio(ratio)
        assert lower < ratio
        ratio = lower
    assert ratio == pytest.approx(batch_policy.MIN_NEW_TOKEN_RATIO)
    assert batch_policy.decayed_ratio(ratio) == pytest.approx(ratio)
    assert batch_policy.ratio_after_retraction(ratio, [(40, 99)]) == pytest.approx(0.6)
    assert batch_policy.ratio_after_retraction(0.9, [(40, 99)]) == 0.9
    assert batch_policy.ratio_after_retraction(ratio, [(90, 100)] * 3) == 1.0


demands = st.lists(st.tuples(st.integers(1, 99), st.integers(1, 200), st.integers(0, 98)), max_size=20)


@given(
    demands,
    st.integers(1, 6),
    st.integers(1, 200),
    st.integers(7, 40),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([None, 1, 5]),
    st.floats(0, 1),
)
def test_admission_never_exceeds_a_limit_and_an_idle_engine_always_starts(
    waiting: list[tuple[int, int, int]],
    rows: int,
    prefill: int,
    pages: int,
    page_size: int,
    chunk: int | None,
    ratio: float,
) -> None:
    policy = make_policy(page_size=page_size, max_prefill_tokens=prefill, chunked_prefill_size=chunk)
    slots = max(pages * page_size, 112)
    room = Room(rows, slots, policy.prefill_budget, has_prompt=False, is_idle=True)
    admitted = taken = tokens_of_step = 0
    for prompt, new, cached in waiting:
        demand = policy.demand(prompt, 0, min(cached, prompt - 1) // page_size * page_size, new)
        tokens = policy.admit(demand, room, ratio)
        if tokens == 0:
            assert admitted, "nothing runs, and nothing was admitted"
            break
        admitted += 1
        tokens_of_step += tokens
        taken += policy.slots_between(demand.cached_tokens, demand.tokens)
        left = room.prefill_tokens - tokens
        room = Room(room.rows - 1, slots - taken, max(left, 0), has_prompt=True, is_idle=False)
        assert tokens <= demand.missing_tokens
        if left <= 0:
            break
    assert admitted <= rows
    assert taken <= slots
    assert tokens_of_step <= policy.prefill_budget or (admitted == 1 and chunk is None)


def test_a_request_that_fits_is_accepted() -> None:
    check_fits([1, 2, 3], 10, **LIMITS)


@pytest.mark.parametrize(
    ("input_ids", "max_new_tokens", "says"),
    [
        ([], 1, "the prompt is empty"),
        ([1] * 100, 1, "the prompt has 100 tokens, but the context holds 100"),
        ([1, 50], 1, r"token id 50 is outside the model's vocabulary \[0, 50\)"),
        ([1, -1], 1, "token id -1 is outside"),
    ],
)
def test_a_request_that_can_never_run_is_refused(input_ids: list[int], max_new_tokens: int, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        check_fits(input_ids, max_new_tokens, **LIMITS)


def test_a_request_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="can need 59 KV slots, but the pool has 30"):
        check_fits([1] * 10, 50, context_length=100, max_total_tokens=30, vocab_size=50)
