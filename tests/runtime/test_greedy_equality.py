"""Greedy output equals transformers token for token, whoever shares the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from runtime.config import ServerArgs
from runtime.core.request import FinishReason, Request
from runtime.core.sampling_params import SamplingParams
from runtime.model_executor.model_runner import ModelRunner
from runtime.sampling.sampler import SamplingBatch
from tests.runtime.checkpoints import VARIANTS, random_prompts, reference_greedy, reference_logits

NEW_TOKENS = 28
LENGTHS = (1, 2, 7, 16, 33, 64, 5, 100)


def make_runner(directory: Path, **args: object) -> ModelRunner:
    return ModelRunner(ServerArgs(str(directory), max_running_requests=16, **args))  # type: ignore[arg-type]


def make_request(name: str, prompt: Sequence[int], **params: object) -> Request:
    params = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True} | params
    return Request(name, list(prompt), SamplingParams(**params))  # type: ignore[arg-type]


def step(runner: ModelRunner, extends: list[Request], decodes: list[Request]) -> torch.Tensor:
    """One forward and sample; returns the logits."""
    rows = [*extends, *decodes]
    logits = runner.forward(runner.prepare_forward_batch(extends, decodes))
    tokens = runner.sample(logits, SamplingBatch.from_requests(rows))
    for request, token in zip(rows, tokens, strict=True):
        request.append_token(token, runner.eos_token_ids, runner.context_length)
    return logits


def generate(runner: ModelRunner, arrivals: list[list[Request]]) -> None:
    """Run to the end; `arrivals[i]` join at step i, while the others decode."""
    running: list[Request] = []
    number = 0
    while running or number < len(arrivals):
        joining = arrivals[number] if number < len(arrivals) else []
        number += 1
        if not joining and not running:
            continue
        step(runner, joining, running)
        running = joining + running
        for request in [request for request in running if request.finished]:
            runner.release(request)
        running = [request for request in running if not request.finished]


def assert_all_returned(runner: ModelRunner) -> None:
    runner.token_to_kv_pool_allocator.check_integrity(torch.empty(0, dtype=torch.int64))
    assert runner.token_to_kv_pool_allocator.available_size() == runner.max_total_tokens
    assert runner.req_to_token_pool.available_size() == runner.req_to_token_pool.size


@pytest.mark.parametrize("variant", VARIANTS)
def test_alone_together_and_joining_late_all_equal_transformers(
    checkpoint: Callable[[str], Path], variant: str
) -> None:
    directory = checkpoint(variant)
    runner = make_runner(directory)
    prompts = random_prompts(LENGTHS, seed=1)
    expected = [reference_greedy(directory, prompt, NEW_TOKENS) for prompt in prompts]
    assert len({tuple(tokens) for tokens in expected}) == len(expected)

    alone = [make_request(f"alone-{i}", prompt) for i, prompt in enumerate(prompts)]
    for request in alone:
        generate(runner, [[request]])
    assert [request.output_ids for request in alone] == expected

    together = [make_request(f"together-{i}", prompt) for i, prompt in enumerate(prompts)]
    generate(runner, [together])
    assert [request.output_ids for request in together] == expected

    late = [make_request(f"late-{i}", prompt) for i, prompt in enumerate(prompts)]
    generate(runner, [late[:2], [], late[2:5], [late[5]], [], [], [], late[6:]])
    assert [request.output_ids for request in late] == expected
    assert {request.finish_reason for request in late} == {FinishReason.LENGTH}
    assert_all_returned(runner)


@pytest.mark.parametrize("variant", ["untied-mha", "biases", "llama3-rope"])
def test_logits_of_prompts_and_decodes_are_close_to_transformers(
    checkpoint: Callable[[str], Path], variant: str
) -> None:
    directory = checkpoint(variant)
    runner = make_runner(directory)
    prompts = random_prompts((3, 40, 17), seed=2)
    requests = [make_request(f"r{i}", prompt) for i, prompt in enumerate(prompts)]
    seen = [step(runner, requests, [])]
    seen += [step(runner, [], requests) for _ in range(5)]
    for row, request in enumerate(requests):
        tokens = request.input_ids + request.output_ids[:-1]
        reference = reference_logits(directory, tokens)[-6:]
        torch.testing.assert_close(torch.stack([logits[row] for logits in seen]), reference, atol=1e-4, rtol=1e-4)


def test_a_prompt_brought_in_pieces_equals_the_whole(llama_checkpoint: Path) -> None:
    # What chunked prefill will do: extends that follow a prefix, beside another request's decode.
    runner = make_runner(llama_checkpoint)
    prompt, other_prompt = random_prompts((90, 20), seed=3)
    other = make_request("other", other_prompt)
    step(runner, [other], [])
    pieces = make_request("pieces", prompt[:11])
    for start, end in ((0, 11), (11, 12), (12, 50), (50, 90)):
        pieces.input_ids = prompt[:end]
        assert pieces.kv_len == start
        decodes = [other] if start else []
        logits = runner.forward(runner.prepare_forward_batch([pieces], decodes))
        reference = reference_logits(llama_checkpoint, prompt[:end])[-1]
        torch.testing.assert_close(logits[0], reference, atol=1e-4, rtol=1e-4)
        if decodes:
            other.append_token(int(logits[1].argmax()), (), runner.context_length)
    assert other.output_ids == reference_greedy(llama_checkpoint, other_prompt, 4)
    for request in (pieces, other):
        runner.release(request)
    assert_all_returned(runner)


def test_a_retracted_request_goes_on_where_it_was(llama_checkpoint: Path) -> None:
    # Its slots are given back while it waits; its prompt and output so far are one extend later.
    runner = make_runner(llama_checkpoint)
    (prompt,) = random_prompts((13,), seed=4)
    request = make_request("retracted", prompt)
    step(runner, [request], [])
    for _ in range(4):
        step(runner, [], [request])
    runner.release(request)
    assert_all_returned(runner)
    generate(runner, [[request]])
    assert request.output_ids == reference_greedy(llama_checkpoint, prompt, NEW_TOKENS)


def test_an_end_of_sequence_token_ends_the_request_unless_ignored(llama_checkpoint: Path) -> None:
    runner = make_runner(llama_checkpoint)
    (prompt,) = random_prompts((9,), seed=5)
    expected = reference_greedy(llama_checkpoint, prompt, NEW_TOKENS)
    runner.eos_token_ids = frozenset({expected[3]})
    stopped = make_request("stopped", prompt, ignore_eos=False)
    ignoring = make_request("ignoring", prompt, ignore_eos=True)
    by_stop_token = make_request("by-stop-token", prompt, stop_token_ids=(expected[3],))
    generate(runner, [[stopped, ignoring, by_stop_token]])
    first = expected.index(expected[3])
    assert stopped.output_ids == expected[: first + 1]
    assert stopped.finish_reason is FinishReason.STOP
    assert ignoring.output_ids == expected
    assert by_stop_token.output_ids == expected[: first + 1]


def test_a_sequence_ends_at_the_context_length(llama_checkpoint: Path) -> None:
    runner = make_runner(llama_checkpoint, context_length=32)
    (prompt,) = random_prompts((30,), seed=6)
    request = make_request("long", prompt)
    generate(runner, [[request]])
    assert request.output_ids == reference_greedy(llama_checkpoint, prompt, 2)
    assert request.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_logits_are_as_close_as_the_dtype_allows(llama_checkpoint: Path, dtype: str) -> None:
    runner = make_runner(llama_checkpoint, dtype=dtype)
    requests = [make_request(f"r{i}", prompt) for i, prompt in enumerate(random_prompts((12, 30), seed=7))]
    step(runner, requests, [])
    logits = step(runner, [], requests)
    assert logits.dtype is runner.dtype
    for row, request in enumerate(requests):
        reference = reference_logits(llama_checkpoint, request.input_ids + request.output_ids[:1])[-1]
        error = (logits[row].float() - reference).abs().max() / reference.abs().max()
        assert error < (0.1 if dtype == "bfloat16" else 0.02)
