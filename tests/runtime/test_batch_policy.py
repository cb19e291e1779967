"""Which requests the policy admits, and which can never run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.errors import InvalidRequestError
from runtime.managers.batch_policy import BatchPolicy, check_fits

LIMITS = {"context_length": 100, "max_total_tokens": 250, "vocab_size": 50}


def make_policy(**changes: int) -> BatchPolicy:
    fields = {
        "context_length": 100,
        "max_total_tokens": 250,
        "max_running_requests": 4,
        "max_prefill_tokens": 60,
    }
    return BatchPolicy(**(fields | changes))


def test_requests_are_admitted_in_the_order_of_arrival_while_there_is_room() -> None:
    policy = make_policy()
    waiting = [policy.demand(10, 20), policy.demand(10, 20), policy.demand(10, 20)]
    assert policy.admit(waiting, running=0, reserved_slots=0) == 3


def test_a_request_that_does_not_fit_is_not_overtaken_by_a_smaller_one_behind_it() -> None:
    policy = make_policy()
    waiting = [policy.demand(40, 60), policy.demand(2, 2)]
    assert policy.admit(waiting, running=1, reserved_slots=200) == 0


def test_rows_limit_admission() -> None:
    policy = make_policy(max_running_requests=2)
    waiting = [policy.demand(1, 1)] * 5
    assert policy.admit(waiting, running=1, reserved_slots=1) == 1


def test_prompts_of_one_step_stay_within_the_prefill_budget() -> None:
    policy = make_policy()
    waiting = [policy.demand(30, 1), policy.demand(30, 1), policy.demand(30, 1)]
    assert policy.admit(waiting, running=0, reserved_slots=0) == 2


def test_a_prompt_longer_than_the_prefill_budget_runs_in_a_step_whose_only_prompt_it_is() -> None:
    policy = make_policy()
    waiting = [policy.demand(90, 1), policy.demand(1, 1)]
    assert policy.admit(waiting, running=0, reserved_slots=0) == 1


def test_the_last_token_needs_no_slot_and_the_context_caps_the_demand() -> None:
    policy = make_policy()
    assert policy.demand(10, 5).max_kv_slots == 14
    assert policy.demand(90, 500).max_kv_slots == 99


demands = st.lists(st.tuples(st.integers(1, 99), st.integers(1, 200)), max_size=20)


@given(demands, st.integers(1, 6), st.integers(1, 200), st.integers(99, 400))
def test_admission_never_exceeds_a_limit_and_an_idle_engine_always_starts(
    lengths: list[tuple[int, int]], rows: int, prefill: int, slots: int
) -> None:
    policy = make_policy(max_running_requests=rows, max_prefill_tokens=prefill, max_total_tokens=slots)
    waiting = [policy.demand(prompt, new) for prompt, new in lengths]
    running: list[int] = []
    while waiting or running:
        admitted = policy.admit(waiting, len(running), sum(running))
        taken, waiting = waiting[:admitted], waiting[admitted:]
        running += [demand.max_kv_slots for demand in taken]
        assert len(running) <= rows
        assert sum(running) <= slots
        assert admitted <= 1 or sum(demand.prompt_tokens for demand in taken) <= prefill
        assert running, "something waits, nothing runs, and nothing was admitted"
        running.pop(0)


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
