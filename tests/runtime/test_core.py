"""Requests and forward batches."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from runtime.core.forward_batch import ForwardBatch, ForwardMode
from runtime.core.request import FinishReason, Request
from runtime.core.sampling_params import SamplingParams


def request(**params: object) -> Request:
    return Request("r", [1, 2, 3], SamplingParams(**params))  # type: ignore[arg-type]


def test_a_request_ends_at_an_end_of_sequence_token_and_keeps_it() -> None:
    r = request()
    r.append_token(5, {9}, 100)
    assert not r.finished
    r.append_token(9, {9}, 100)
    assert (r.output_ids, r.finish_reason) == ([5, 9], FinishReason.STOP)


def test_ignore_eos_does_not_ignore_stop_tokens() -> None:
    r = request(ignore_eos=True, stop_token_ids=(7,))
    r.append_token(9, {9}, 100)
    assert not r.finished
    r.append_token(7, {9}, 100)
    assert r.finish_reason is FinishReason.STOP


def test_a_request_ends_at_its_own_limit_and_at_the_context_length() -> None:
    own = request(max_new_tokens=2)
    own.append_token(5, (), 100)
    assert not own.finished
    own.append_token(5, (), 100)
    assert own.finish_reason is FinishReason.LENGTH
    context = request()
    context.append_token(5, (), 5)
    assert not context.finished
    context.append_token(5, (), 5)
    assert (context.num_tokens, context.finish_reason) == (5, FinishReason.LENGTH)


def test_a_stop_token_at_the_limit_counts_as_a_stop() -> None:
    r = request(max_new_tokens=1)
    r.append_token(9, {9}, 4)
    assert r.finish_reason is FinishReason.STOP


def test_abort_only_marks_and_does_not_overwrite() -> None:
    r = request()
    r.req_pool_index, r.kv_len = 4, 3
    r.abort()
    assert (r.finish_reason, r.req_pool_index, r.kv_len) == (FinishReason.ABORT, 4, 3)
    ended = request(max_new_tokens=1)
    ended.append_token(1, (), 100)
    ended.abort()
    assert ended.finish_reason is FinishReason.LENGTH


def test_a_finished_request_refuses_tokens() -> None:
    r = request()
    r.abort()
    with pytest.raises(RuntimeError, match="finished"):
        r.append_token(1, (), 100)
    assert r.output_ids == []


def test_requests_are_told_apart_by_identity() -> None:
    assert request() != request()
    assert len({request(), request()}) == 2


def test_the_mode_of_a_batch_follows_from_its_rows() -> None:
    assert ForwardMode.of(2, 2).is_extend()
    assert ForwardMode.of(0, 2).is_decode()
    assert ForwardMode.of(1, 2).is_mixed()
    for num_extend, batch_size in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="batch of"):
            ForwardMode.of(num_extend, batch_size)


def test_a_batch_counts_its_tokens_and_rows() -> None:
    tokens = torch.zeros(7, dtype=torch.int64)
    batch = ForwardBatch(ForwardMode.MIXED, tokens, tokens, tokens, tokens[:3], tokens[:3], [5, 9, 4], [5, 1, 1], 1)
    assert (batch.num_tokens, batch.batch_size, batch.num_extend_tokens) == (7, 3, 5)


def test_arguments_requests_and_platform_names_cost_no_torch_import() -> None:
    # The process that only passes requests on stays light.
    modules = "runtime.config, runtime.platforms, runtime.core.request, runtime.core.forward_batch"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
