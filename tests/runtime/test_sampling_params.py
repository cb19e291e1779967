"""Sampling parameters are validated when they are made."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from runtime.core.errors import EngineError, InvalidRequestError
from runtime.core.sampling_params import MAX_SEED, SamplingParams


def test_the_defaults_are_greedy_without_filters() -> None:
    params = SamplingParams()
    assert params.is_greedy
    assert (params.max_new_tokens, params.top_p, params.top_k, params.seed) == (128, 1.0, 0, None)


def test_the_ends_of_every_range_are_allowed() -> None:
    SamplingParams(max_new_tokens=1, temperature=0, top_p=1, top_k=0, seed=0, stop_token_ids=(0,))
    SamplingParams(temperature=1e-30, top_p=1e-9, top_k=10**9, seed=MAX_SEED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.0),
        ("max_new_tokens", True),
        ("max_new_tokens", "8"),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", True),
        ("temperature", "warm"),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("top_p", None),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", False),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", 1.0),
        ("seed", True),
        ("ignore_eos", 1),
        ("stop_token_ids", [1]),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", (True,)),
        ("stop_token_ids", ("a",)),
    ],
)
def test_a_bad_value_is_refused_by_field_value_and_range(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert field in message
    assert "must be" in message
    assert "\n" not in message
    shown = value[0] if field == "stop_token_ids" and isinstance(value, tuple) else value
    assert repr(shown) in message


def test_the_error_is_an_engine_error_and_a_value_error() -> None:
    assert issubclass(InvalidRequestError, EngineError)
    assert issubclass(InvalidRequestError, ValueError)


def test_parameters_are_immutable_and_survive_serialisation() -> None:
    params = SamplingParams(max_new_tokens=5, temperature=0.5, stop_token_ids=(7, 8), seed=3)
    with pytest.raises(AttributeError):
        params.top_k = 3  # type: ignore[misc]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
