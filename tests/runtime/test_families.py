"""Every architecture generates what transformers generates, whatever shares the batch and however prompts arrive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from runtime.core.request import Request
from runtime.model_executor.model_runner import ModelRunner
from tests.runtime.checkpoints import random_prompts, reference_greedy, reference_logits
from tests.runtime.families import ARCHITECTURES, BASE, FAMILIES, make_checkpoint
from tests.runtime.test_greedy_equality import generate, make_request, make_runner, step

# Below, at and above the windows (9) and the tokens that the sparse models choose (12).
LENGTHS = (1, 8, 9, 13, 33, 70, 4)
NEW_TOKENS = 12
VOCAB = BASE["vocab_size"]

Family = Callable[[str], Path]


def requests_of(prompts: list[list[int]], name: str = "r", max_new_tokens: int = NEW_TOKENS) -> list[Request]:
    return [make_request(f"{name}{i}", prompt, max_new_tokens=max_new_tokens) for i, prompt in enumerate(prompts)]


def assert_greedy(directory: Path, request: Request) -> None:
    """The output is what transformers chooses after each of its prefixes, and no close call."""
    tokens = request.input_ids + request.output_ids
    logits = reference_logits(directory, tokens[:-1])[len(request.input_ids) - 1 :]
    best = logits.topk(2, dim=-1)
    assert request.output_ids == best.indices[:, 0].tolist()
    assert (best.values[:, 0] - best.values[:, 1]).min() > 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_joining_late_equals_transformers(family: Family, name: str) -> None:
    directory = family(name)
    runner = make_runner(directory)
    requests = requests_of(random_prompts(LENGTHS, VOCAB, seed=1))
    generate(runner, [requests[:2], [], requests[2:4], requests[4:5], [], requests[5:]])
    for request in requests:
        assert_greedy(directory, request)
    assert len({tuple(request.output_ids) for request in requests}) == len(requests)
    runner.batch_builder.check_integrity([])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_alone_equals_what_transformers_generates(family: Family, name: str) -> None:
    directory = family(name)
    runner = make_runner(directory)
    for request in requests_of(random_prompts((5, 30), VOCAB, seed=2)):
        generate(runner, [[request]])
        assert request.output_ids == reference_greedy(directory, request.input_ids, NEW_TOKENS)


def bring(runner: ModelRunner, request: Request, pieces: tuple[int, ...], decoding: Request) -> None:
    """Run the prompt of `request` in pieces, beside a decode each, until it has its first token."""
    runner.batch_builder.start(request)
    left = iter(pieces)
    while not request.output_ids:
        new = min(next(left, request.num_tokens), request.num_tokens - request.kv_len)
        batch = runner.prepare_forward_batch([request], [decoding], [new])
        logits = runner.forward(batch)
        decoding.append_token(int(logits[1].argmax()), (), runner.context_length)
        if request.kv_len == request.num_tokens:
            request.append_token(int(logits[0].argmax()), (), runner.context_length)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "qwen2-window", "mixtral-window", "deepseek-v2-lite"])
def test_pieces_and_cached_prefixes_equal_transformers(family: Family, name: str, page_size: int) -> None:
    directory = family(name)
    runner = make_runner(directory, page_size=page_size)
    (prompt, other) = random_prompts((59, 6), VOCAB, seed=3)
    decoding = make_request("decoding", other, max_new_tokens=60)
    step(runner, [decoding], [])
    first = make_request("first", prompt, max_new_tokens=6)
    bring(runner, first, (1, 3, 15, 17), decoding)
    while not first.finished:
        step(runner, [], [first, decoding])
    runner.batch_builder.finish([first])

    # The whole prompt is cached, then part of it.
    again = make_request("again", prompt, max_new_tokens=6)
    branch = make_request("branch", prompt[:40] + other, max_new_tokens=6)
    for request in (again, branch):
        bring(runner, request, (), decoding)
        while not request.finished:
            step(runner, [], [request, decoding])
        assert request.cache_len >= (40 if request is branch else 58) // page_size * page_size
        runner.batch_builder.finish([request])
    assert again.output_ids == first.output_ids
    for request in (first, branch, decoding):
        assert_greedy(directory, request)
    runner.batch_builder.finish([decoding])
    runner.batch_builder.check_integrity([])


def errors(directory: Path, dtype: str, reference: torch.dtype | None = None) -> float:
    """The largest error of our logits over prompts and decodes, as a part of the largest logit."""
    runner = make_runner(directory, dtype=dtype)
    requests = requests_of(random_prompts((3, 40, 17), VOCAB, seed=4))
    seen = [step(runner, requests, [])]
    seen += [step(runner, [], requests) for _ in range(4)]
    worst = 0.0
    for row, request in enumerate(requests):
        expected = reference_logits(directory, request.input_ids + request.output_ids[:-1])[-5:]
        ours = torch.stack([logits[row] for logits in seen]).float()
        worst = max(worst, float((ours - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_logits_are_close(family: Family, name: str) -> None:
    assert errors(family(name), "float32") < 2e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_logits_are_close(tmp_path: Path, name: str) -> None:
    # Routing and choosing tokens are no continuous functions: with all experts and all tokens chosen, rounding is all
    # that differs. bfloat16 has 8 bits, and errors add up over three layers.
    changes = (
        {"num_experts_per_tok": 4 if name == "mixtral" else 8} if "num_experts_per_tok" in FAMILIES[name][1] else {}
    )
    if "n_group" in FAMILIES[name][1]:
        changes["topk_group"] = 4
    if name == "deepseek-v32":
        changes["index_topk"] = 64
    directory = make_checkpoint(tmp_path, name, **changes)
    assert errors(directory, "bfloat16") < 0.06


@pytest.mark.parametrize("name", ["llama", "mistral", "deepseek-v3", "deepseek-v32"])
def test_an_8_bit_cache_gives_the_same_however_prompts_arrive(family: Family, name: str) -> None:
    runner = make_runner(family(name), kv_cache_dtype="float8_e4m3fn", disable_radix_cache=True)
    (prompt,) = random_prompts((41,), VOCAB, seed=5)
    whole, pieces = make_request("whole", prompt), make_request("pieces", prompt)
    expected = runner.forward(runner.prepare_forward_batch([whole], []))
    for new in (7, 1, 20, 13):
        got = runner.forward(runner.prepare_forward_batch([pieces], [], [new]))
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    reference = reference_logits(family(name), prompt)[-1]
    assert torch.nn.functional.cosine_similarity(got[0], reference, dim=0) > 0.8


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v2-lite", "deepseek-v3-yarn", "deepseek-v32"])
def test_latents_absorbed_and_expanded_agree(family: Family, name: str) -> None:
    # One token more is a decode on the latents, or an extend that makes keys and values of them.
    runner = make_runner(family(name))
    prompts = random_prompts((30, 5, 12), VOCAB, seed=6)
    logits = []
    for as_decode in (True, False):
        requests = requests_of(prompts, name=f"{as_decode}")
        step(runner, requests, [])
        extends, decodes = ([], requests) if as_decode else (requests, [])
        logits.append(runner.forward(runner.prepare_forward_batch(extends, decodes)))
        for request in requests:
            runner.release(request)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_sparse_attention_that_chooses_all_tokens_is_dense_attention(tmp_path: Path) -> None:
    sparse = make_checkpoint(tmp_path / "v32", "deepseek-v32", index_topk=64)
    dense = make_checkpoint(tmp_path / "v3", "deepseek-v3")
    weights = safetensors.torch.load_file(sparse / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".indexer." not in name}
    safetensors.torch.save_file(kept, dense / "model.safetensors", metadata={"format": "pt"})
    prompts = random_prompts((3, 40, 17), VOCAB, seed=7)
    outputs, logits = [], []
    for directory in (sparse, dense):
        runner = make_runner(directory)
        requests = requests_of(prompts)
        first = step(runner, requests, [])
        logits.append(torch.stack([first, *(step(runner, [], requests) for _ in range(11))]))
        outputs.append([request.output_ids for request in requests])
    assert outputs[0] == outputs[1]
    assert torch.equal(logits[0], logits[1])


def test_sparse_attention_is_dense_for_short_rows_beside_long_ones(tmp_path: Path) -> None:
    # Choosing is done for the whole batch once a row is long: it must change nothing for those that are not.
    few = make_checkpoint(tmp_path / "few", "deepseek-v32", index_topk=20)
    all_tokens = make_checkpoint(tmp_path / "all", "deepseek-v32", index_topk=64)
    prompts = random_prompts((8, 50), VOCAB, seed=8)
    logits = []
    for directory in (few, all_tokens):
        runner = make_runner(directory)
        requests = requests_of(prompts)
        step(runner, requests, [])
        requests[1].output_ids[:] = [7]
        logits.append(step(runner, [], requests))
    torch.testing.assert_close(logits[0][0], logits[1][0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits[0][1], logits[1][1], atol=1e-2)


def test_a_dynamic_context_grows_past_the_original_one(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "llama-dynamic", max_position_embeddings=32)
    assert make_runner(directory).context_length == 32
    runner = make_runner(directory, context_length=64)
    (prompt,) = random_prompts((20,), VOCAB, seed=9)
    request = make_request("long", prompt, max_new_tokens=40)
    generate(runner, [[request]])
    assert request.output_ids == reference_greedy(directory, prompt, 40)


@pytest.mark.parametrize("name", ["mistral", "mixtral-window"])
def test_a_window_reads_nothing_from_before_it(family: Family, name: str) -> None:
    runner = make_runner(family(name))
    (prompt,) = random_prompts((40,), VOCAB, seed=10)
    request = make_request("windowed", prompt)
    step(runner, [request], [])
    # With three layers of 9 tokens, only what the next token's layer reads matters: the window ends at the new token.
    before = runner.req_to_token_pool.req_to_token[request.req_pool_index, : 41 - 9].long()
    for layer in range(runner.model_config.num_hidden_layers):
        for buffer in runner.token_to_kv_pool.get_kv_buffer(layer):
            buffer[before] = torch.nan
    assert step(runner, [], [request]).isfinite().all()
    assert runner.forward(runner.prepare_forward_batch([request], [])).isfinite().all()
