"""The scheduler's loop in this process: prefixes, chunks, eviction, retraction; pools are checked at every step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from runtime.config import ServerArgs
from runtime.core.errors import ConfigError, EngineError
from runtime.core.request import FinishReason
from runtime.core.sampling_params import SamplingParams
from runtime.managers.io_struct import AbortRequest, BatchOutput, GenerateRequest, RequestOutput, Shutdown
from runtime.managers.scheduler import ScheduleBatch, Scheduler
from tests.runtime.checkpoints import random_prompts, reference_greedy

NEW_TOKENS = 12


class FakeChannel:
    """What the scheduler is told and what it says."""

    def __init__(self) -> None:
        self.inbox: list[Any] = []
        self.sent: list[RequestOutput] = []

    def receive(self, *, wait: bool) -> Any:
        assert self.inbox or not wait, "the scheduler waits, and nothing more will come"
        return self.inbox.pop(0) if self.inbox else None

    def send(self, message: Any) -> None:
        assert isinstance(message, BatchOutput)
        self.sent += message.outputs


class Served:
    """A scheduler, the batches it ran and what came out, with every slot accounted for after every step."""

    def __init__(self, model: Path, **args: Any) -> None:
        self.channel = FakeChannel()
        self.scheduler = Scheduler(ServerArgs(str(model), dtype="float32", **args), self.channel)  # type: ignore[arg-type]
        self.builder = self.scheduler.builder
        self.batches: list[ScheduleBatch] = []
        self.retracted: list[str] = []
        self.sent = 0

    def submit(self, prompt: Sequence[int], **params: Any) -> str:
        name = f"r{self.sent}"
        self.sent += 1
        sampling = SamplingParams(**{"max_new_tokens": NEW_TOKENS, "ignore_eos": True, **params})
        self.channel.inbox.append(GenerateRequest(name, list(prompt), sampling))
        return name

    def step(self) -> None:
        scheduler = self.scheduler
        scheduler.receive_messages()
        before = {request.request_id for request in scheduler.running}
        batch = scheduler.get_next_batch_to_run()
        self.retracted += [r.request_id for r in scheduler.waiting if r.request_id in before]
        if batch is not None:
            self.batches.append(batch)
            scheduler.process_batch_result(batch, scheduler.run_batch(batch))
        self.check()

    def run(self) -> None:
        while self.channel.inbox or self.scheduler.has_work:
            self.step()

    def check(self) -> None:
        scheduler = self.scheduler
        chunked = [scheduler.chunked] if scheduler.chunked is not None else []
        alive = [*scheduler.running, *chunked, *scheduler.waiting]
        assert len(alive) == len(set(map(id, alive))) == len(scheduler.by_id), "no request is lost or there twice"
        assert all(request.req_pool_index is None for request in scheduler.waiting)
        self.builder.check_integrity(alive)

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.channel.sent if output.request_id == name for token in output.token_ids]

    def terminal(self, name: str) -> RequestOutput:
        (end,) = [o for o in self.channel.sent if o.request_id == name and (o.finish_reason or o.error)]
        return end

    def computed(self) -> list[int]:
        """The prompt tokens that ran in each batch."""
        return [sum(batch.extend_lens) for batch in self.batches]


def expected(model: Path, prompt: Sequence[int], new: int = NEW_TOKENS) -> list[int]:
    return reference_greedy(model, prompt, new)


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_a_prefix_is_computed_once_whether_it_is_none_part_or_all_of_a_prompt(
    llama_checkpoint: Path, page_size: int
) -> None:
    served = Served(llama_checkpoint, page_size=page_size)
    first, other = random_prompts((128, 40), seed=1)
    part = first[:100] + other[:10]
    ran = []
    for prompt in (first, other, part, first, first[:64]):
        name = served.submit(prompt)
        served.run()
        assert served.tokens(name) == expected(llama_checkpoint, prompt)
        ran.append(sum(served.computed()))
        served.batches.clear()
    found = [shared // page_size * page_size for shared in (100, 127, 63)]  # the last token is always computed
    assert ran == [128, 40, 110 - found[0], 128 - found[1], 64 - found[2]]


def test_requests_that_run_share_a_prefix_as_soon_as_it_is_computed(llama_checkpoint: Path) -> None:
    served = Served(llama_checkpoint)
    prompt, tail = random_prompts((80, 5), seed=2)
    first = served.submit(prompt)
    served.step()
    second = served.submit(prompt + tail)
    served.run()
    assert served.computed()[:2] == [80, 5]
    for name, tokens in ((first, prompt), (second, prompt + tail)):
        assert served.tokens(name) == expected(llama_checkpoint, tokens)


def test_requests_that_start_together_keep_one_copy_of_what_they_share(llama_checkpoint: Path) -> None:
    served = Served(llama_checkpoint)
    (prompt,) = random_prompts((60,), seed=3)
    names = [served.submit(prompt) for _ in range(3)]
    served.step()
    pool = served.scheduler.limits.max_total_tokens
    assert served.builder.allocator.available_size() == pool - 60
    served.run()
    assert {tuple(served.tokens(name)) for name in names} == {tuple(expected(llama_checkpoint, prompt))}


def test_without_the_cache_every_prompt_is_computed_and_nothing_is_kept(llama_checkpoint: Path) -> None:
    served = Served(llama_checkpoint, disable_radix_cache=True, page_size=16)
    (prompt,) = random_prompts((50,), seed=4)
    for _ in range(2):
        name = served.submit(prompt)
        served.run()
        assert served.tokens(name) == expected(llama_checkpoint, prompt)
    assert [n for n in served.computed() if n] == [50, 50]
    assert served.builder.allocator.available_size() == served.scheduler.limits.max_total_tokens


@pytest.mark.parametrize("chunk", [1, 3, 15, 17])
def test_a_prompt_is_cut_into_chunks_while_others_decode(llama_checkpoint: Path, chunk: int) -> None:
    served = Served(llama_checkpoint, chunked_prefill_size=chunk, page_size=16, max_running_requests=4)
    prompts = random_prompts((5, 50, 33, 7), seed=5)
    names = [served.submit(prompt) for prompt in prompts]
    served.run()
    for name, prompt in zip(names, prompts, strict=True):
        assert served.tokens(name) == expected(llama_checkpoint, prompt)
    assert max(served.computed()) == chunk
    assert any(batch.chunked and batch.decodes for batch in served.batches)
    assert sum(served.computed()) == sum(map(len, prompts))


def test_a_chunk_draws_no_token_so_that_a_seed_decides_the_output(llama_checkpoint: Path) -> None:
    (prompt,) = random_prompts((40,), seed=6)
    outputs = []
    for args in ({}, {"chunked_prefill_size": 3}, {"page_size": 16, "chunked_prefill_size": 7}):
        served = Served(llama_checkpoint, **args)
        name = served.submit(prompt, temperature=1.0, seed=11)
        served.run()
        outputs.append(served.tokens(name))
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == NEW_TOKENS


def test_an_abort_between_two_chunks_gives_back_what_was_computed(llama_checkpoint: Path) -> None:
    served = Served(llama_checkpoint, chunked_prefill_size=10)
    (prompt,) = random_prompts((50,), seed=7)
    name = served.submit(prompt)
    for _ in range(2):
        served.step()
    served.channel.inbox.append(AbortRequest(name))
    served.step()
    assert served.terminal(name).finish_reason is FinishReason.ABORT
    assert not served.scheduler.has_work
    assert served.builder.available_slots() == served.scheduler.limits.max_total_tokens
    again = served.submit(prompt)
    served.run()
    assert served.tokens(again) == expected(llama_checkpoint, prompt)
    assert sum(served.computed()) == 20 + 30, "the two chunks are found again"


@pytest.mark.parametrize("page_size", [1, 16])
def test_what_is_kept_makes_room_for_what_comes_and_outputs_stay_right(llama_checkpoint: Path, page_size: int) -> None:
    served = Served(llama_checkpoint, max_total_tokens=96, page_size=page_size)
    prompts = random_prompts((60, 70, 50, 64, 80), seed=8)
    for prompt in [*prompts, prompts[0]]:
        name = served.submit(prompt)
        served.run()
        assert served.tokens(name) == expected(llama_checkpoint, prompt)
    assert sum(served.computed()) > sum(map(len, prompts)) + len(prompts[0]) // 2, "the first was dropped meanwhile"
    assert served.builder.available_slots() == 96


def test_an_eviction_makes_room_for_some_steps(llama_checkpoint: Path, mocker: MockerFixture) -> None:
    served = Served(llama_checkpoint, max_total_tokens=2048)
    for prompt in random_prompts([200] * 11, seed=13):
        served.submit(prompt, max_new_tokens=1)
    served.run()
    evict = mocker.spy(served.scheduler.model_runner.prefix_cache, "evict")
    before = evict.call_count
    (prompt,) = random_prompts((20,), seed=14)
    name = served.submit(prompt, max_new_tokens=33)
    served.run()
    assert served.tokens(name) == expected(llama_checkpoint, prompt, 33)
    assert 1 <= evict.call_count - before <= 7, "32 decode steps, and 8 slots at a time"


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("chunk", [None, 5])
def test_running_requests_are_retracted_and_come_back_with_the_same_output(
    llama_checkpoint: Path, page_size: int, chunk: int | None
) -> None:
    served = Served(llama_checkpoint, max_total_tokens=112, page_size=page_size, chunked_prefill_size=chunk)
    served.scheduler.new_token_ratio = 0.0  # as hopeful as can be
    prompts = random_prompts((20, 16, 18, 15), seed=9)
    names = [served.submit(prompt, max_new_tokens=40) for prompt in prompts]
    served.run()
    assert served.retracted
    for name, prompt in zip(names, prompts, strict=True):
        assert served.tokens(name) == expected(llama_checkpoint, prompt, 40)
        assert served.terminal(name).finish_reason is FinishReason.LENGTH


def test_a_retracted_request_draws_the_same_tokens(llama_checkpoint: Path) -> None:
    prompts = random_prompts((20, 16, 18), seed=10)
    outputs = []
    for slots in (None, 80):
        served = Served(llama_checkpoint, max_total_tokens=slots)
        served.scheduler.new_token_ratio = 0.0
        names = [served.submit(p, max_new_tokens=40, temperature=1.0, seed=n) for n, p in enumerate(prompts)]
        served.run()
        assert bool(served.retracted) == (slots is not None)
        outputs.append([served.tokens(name) for name in names])
    assert outputs[0] == outputs[1]


def test_the_last_request_that_cannot_get_slots_ends_with_an_error(llama_checkpoint: Path) -> None:
    served = Served(llama_checkpoint, max_total_tokens=40, disable_radix_cache=True)
    (prompt,) = random_prompts((10,), seed=11)
    name = served.submit(prompt)
    for _ in range(3):
        served.step()
    stolen = served.builder.allocator.alloc(served.builder.allocator.available_size())
    assert stolen is not None
    served.scheduler.receive_messages()
    assert served.scheduler.get_next_batch_to_run() is None
    error = served.terminal(name).error
    assert error is not None
    assert "r0 cannot go on: it has 13 tokens, 12 of them in KV slots, and of the pool's 40 slots 0 are" in error
    waiting = served.submit(prompt * 2)
    served.scheduler.receive_messages()
    assert served.scheduler.get_next_batch_to_run() is None, "its prompt has no room either"
    assert "raise max_total_tokens" in str(served.terminal(waiting).error)
    served.builder.allocator.free(stolen)
    served.check()
    after = served.submit(prompt)
    served.run()
    assert served.tokens(after) == expected(llama_checkpoint, prompt)


def test_a_cut_prompt_that_cannot_get_slots_ends_with_an_error(llama_checkpoint: Path) -> None:
    served = Served(llama_checkpoint, max_total_tokens=40, chunked_prefill_size=4, disable_radix_cache=True)
    name = served.submit(range(20))
    served.step()
    stolen = served.builder.allocator.alloc(served.builder.allocator.available_size())
    assert stolen is not None
    served.scheduler.receive_messages()
    assert served.scheduler.get_next_batch_to_run() is None
    assert "it has 20 tokens, 4 of them in KV slots" in str(served.terminal(name).error)
    served.builder.allocator.free(stolen)
    served.check()


def test_a_request_larger_than_the_pool_is_refused_when_it_comes(llama_checkpoint: Path) -> None:
    served = Served(llama_checkpoint, max_total_tokens=47, page_size=16)
    assert served.scheduler.limits.max_total_tokens == 32, "in whole pages"
    refused = served.submit([1] * 25, max_new_tokens=9)
    fits = served.submit([1] * 25, max_new_tokens=8)
    served.run()
    assert "can need 33 KV slots, but the pool has 32" in str(served.terminal(refused).error)
    assert len(served.tokens(fits)) == 8


@pytest.mark.parametrize("seed", range(6))
def test_random_loads_on_a_small_pool_equal_transformers_and_leak_nothing(llama_checkpoint: Path, seed: int) -> None:
    chance = random.Random(seed)
    page_size = [1, 1, 16, 16, 4, 64][seed]
    served = Served(
        llama_checkpoint,
        max_total_tokens=[70, 90, 128, 160, 100, 256][seed],
        page_size=page_size,
        chunked_prefill_size=[None, 3, None, 7, 1, 63][seed],
        max_running_requests=5,
    )
    served.scheduler.new_token_ratio = 0.0
    stems = random_prompts((30, 20), seed=100 + seed)
    names: dict[str, tuple[list[int], int]] = {}
    aborted = set()
    while len(names) < 14 or served.scheduler.has_work or served.channel.inbox:
        if len(names) < 14 and chance.random() < 0.3:
            stem = chance.choice(stems)[: chance.randrange(1, 30)]
            prompt = stem + [chance.randrange(256) for _ in range(chance.randrange(6))]
            new = chance.randrange(1, 30)
            names[served.submit(prompt, max_new_tokens=new)] = (prompt, new)
        elif chance.random() < 0.02 and names:
            gone = chance.choice(list(names))
            aborted.add(gone)
            served.channel.inbox.append(AbortRequest(gone))
        if served.scheduler.has_work or served.channel.inbox:
            served.step()
    for name, (prompt, new) in names.items():
        tokens = served.tokens(name)
        end = served.terminal(name)
        assert end.error is None
        assert tokens == expected(llama_checkpoint, prompt, new)[: len(tokens)]
        assert len(tokens) == new or (name in aborted and end.finish_reason is FinishReason.ABORT)
    served.builder.check_integrity([])
    assert served.builder.available_slots() == served.scheduler.limits.max_total_tokens


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2", "bfloat16"])
def test_a_narrow_cache_gives_nearly_the_same_logits(llama_checkpoint: Path, dtype: str) -> None:
    (prompt,) = random_prompts((40,), seed=12)
    logits = []
    for kind in ("auto", dtype):
        served = Served(llama_checkpoint, kv_cache_dtype=kind)
        served.submit(prompt, max_new_tokens=2)
        served.step()
        served.scheduler.receive_messages()
        batch = served.scheduler.get_next_batch_to_run()
        assert batch is not None
        batch.requests[0].output_ids[-1] = 5  # whatever the prompt gave
        runner = served.scheduler.model_runner
        logits.append(runner.forward(runner.prepare_forward_batch(batch.extends, batch.decodes))[0])
    wide, narrow = logits
    error = float((wide - narrow).norm() / wide.norm())
    assert 0 < error < {"fp8_e4m3": 0.1, "fp8_e5m2": 0.2, "bfloat16": 0.02}[dtype]


def test_the_scheduler_says_when_a_slot_has_leaked_and_nothing_runs(
    llama_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_CHECK_INTEGRITY", "1")
    served = Served(llama_checkpoint)
    served.submit([1, 2, 3], max_new_tokens=2)
    served.scheduler.receive_messages()
    served.channel.inbox.append(Shutdown())
    served.scheduler.event_loop()
    served.scheduler.stopping = False
    served.builder.allocator.alloc(1)
    served.submit([1, 2, 3], max_new_tokens=1)
    with pytest.raises(EngineError, match="1 neither free nor held"):
        served.scheduler.event_loop()


@pytest.mark.parametrize(("value", "checks"), [("", False), ("0", False), ("1", True)])
def test_the_check_when_idle_is_switched_by_one(
    llama_checkpoint: Path, value: str, checks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_CHECK_INTEGRITY", value)
    assert Served(llama_checkpoint).scheduler.check_when_idle is checks
    monkeypatch.setenv("RUNTIME_CHECK_INTEGRITY", "yes")
    with pytest.raises(ConfigError, match="RUNTIME_CHECK_INTEGRITY='yes' is not valid: set it to 1"):
        Served(llama_checkpoint)
