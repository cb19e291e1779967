"""The engine as a Python user meets it: a scheduler process of its own behind one object."""

from __future__ import annotations

import _thread
import itertools
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_mock import MockerFixture
from tokenizers import Tokenizer

from runtime.core.errors import (
    ConfigError,
    EngineDeadError,
    EngineError,
    InvalidRequestError,
    ModelLoadError,
    PlatformError,
)
from runtime.core.sampling_params import SamplingParams
from runtime.entrypoints.engine import EMBEDDED_MODEL, Engine
from tests.processes import children_of, wait_until_gone
from tests.runtime.checkpoints import random_prompts, reference_greedy

NEW_TOKENS = 24
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
LENGTHS = [1, 3, 7, 12, 20, 33, 50, 80]


@pytest.fixture(scope="module")
def engine(llama_checkpoint: Path) -> Iterator[Engine]:
    with Engine(llama_checkpoint, dtype="float32", max_running_requests=8) as running:
        yield running


@pytest.mark.parametrize("variant", ["tied-gqa", "tied-mha", "untied-gqa", "untied-mha"])
def test_greedy_output_equals_transformers_alone_and_in_a_batch_of_eight(
    variant: str, checkpoint: Callable[[str], Path]
) -> None:
    directory = checkpoint(variant)
    prompts = random_prompts(LENGTHS, seed=1)
    expected = [reference_greedy(directory, prompt, NEW_TOKENS) for prompt in prompts]
    with Engine(directory, dtype="float32") as engine:
        alone = [engine.generate(input_ids=[prompt], sampling_params=GREEDY)[0].token_ids for prompt in prompts]
        together = [output.token_ids for output in engine.generate(input_ids=prompts, sampling_params=GREEDY)]
    assert alone == expected
    assert together == expected


def test_greedy_output_of_the_embedded_model_equals_transformers_alone_and_in_a_batch_of_eight() -> None:
    texts = ["The", "Return a", "This module", "If the file", "A list of", "Create", "The following functions are", "x"]
    with Engine(dtype="float32") as engine:
        alone = [engine.generate([text], sampling_params=GREEDY)[0] for text in texts]
        together = engine.generate(texts, sampling_params=GREEDY)
    embedded = Path(EMBEDDED_MODEL)
    expected = [
        reference_greedy(embedded, output.prompt_token_ids, NEW_TOKENS, dtype=torch.float32) for output in together
    ]
    assert [output.token_ids for output in alone] == expected
    assert [output.token_ids for output in together] == expected


def test_a_batch_larger_than_the_rows_runs_in_turns_with_the_same_result(
    engine: Engine, llama_checkpoint: Path
) -> None:
    prompts = random_prompts([2 + number % 5 for number in range(20)], seed=2)
    params = [SamplingParams(max_new_tokens=3 + number % 7, ignore_eos=True) for number in range(20)]
    outputs = engine.generate(input_ids=prompts, sampling_params=params)
    for prompt, param, output in zip(prompts, params, outputs, strict=True):
        assert output.token_ids == reference_greedy(llama_checkpoint, prompt, param.max_new_tokens)


def test_text_is_the_decoded_token_ids_and_prompts_get_the_tokenizers_special_tokens(
    engine: Engine, llama_checkpoint: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(llama_checkpoint / "tokenizer.json"))
    (output,) = engine.generate("lines of text", sampling_params=GREEDY)
    assert output.prompt_token_ids == tokenizer.encode("lines of text").ids
    assert output.text == tokenizer.decode(output.token_ids)


def test_an_output_ends_at_a_stop_token_which_it_includes(engine: Engine) -> None:
    prompt = random_prompts([6], seed=3)
    free = engine.generate(input_ids=prompt, sampling_params=GREEDY)[0]
    stop = free.token_ids[5]
    stopping = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True, stop_token_ids=(stop,))
    stopped = engine.generate(input_ids=prompt, sampling_params=stopping)[0]
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert (free.finish_reason, stopped.finish_reason) == ("length", "stop")


def test_an_output_ends_where_the_context_ends(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=1000, ignore_eos=True)
    (output,) = engine.generate(input_ids=random_prompts([250]), sampling_params=params)
    assert len(output.token_ids) == 6
    assert output.finish_reason == "length"


def test_the_pieces_of_a_stream_add_up_to_what_generate_returns(engine: Engine) -> None:
    prompts = ["one", "and another one"]
    whole = engine.generate(prompts, sampling_params=GREEDY)
    texts, token_ids, reasons = ["", ""], [[], []], [[], []]
    for chunk in engine.stream(prompts, sampling_params=GREEDY):
        texts[chunk.index] += chunk.text
        token_ids[chunk.index] += chunk.token_ids
        reasons[chunk.index].append(chunk.finish_reason)
    assert texts == [output.text for output in whole]
    assert token_ids == [output.token_ids for output in whole]
    assert all(reason == [None] * (NEW_TOKENS - 1) + ["length"] for reason in reasons)


def test_a_seed_decides_the_output_whoever_shares_the_batch(engine: Engine) -> None:
    seeded = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=1.0, top_p=0.9, top_k=40, seed=5, ignore_eos=True)
    other = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=1.5, seed=6, ignore_eos=True)
    prompt, *rest = random_prompts([9, 4, 30], seed=4)
    alone = engine.generate(input_ids=[prompt], sampling_params=seeded)[0].token_ids
    shared = engine.generate(input_ids=[rest[0], prompt, rest[1]], sampling_params=[other, seeded, other])
    assert shared[1].token_ids == alone
    differently = engine.generate(input_ids=[prompt], sampling_params=other)[0].token_ids
    assert differently != alone


def test_without_a_seed_two_engines_sample_differently(llama_checkpoint: Path) -> None:
    params = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=2.0, ignore_eos=True)
    outputs = []
    for _ in range(2):
        with Engine(llama_checkpoint) as engine:
            outputs.append(engine.generate("x", sampling_params=params)[0].token_ids)
    assert outputs[0] != outputs[1]


def test_engines_with_the_same_random_seed_sample_the_same_and_others_do_not(llama_checkpoint: Path) -> None:
    params = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=2.0, ignore_eos=True)
    outputs = []
    for random_seed in (5, 5, 6):
        with Engine(llama_checkpoint, random_seed=random_seed) as engine:
            outputs.append([output.token_ids for output in engine.generate(["x", "x"], sampling_params=params)])
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0][0] != outputs[0][1]


def test_requests_of_several_threads_share_the_engine(engine: Engine, llama_checkpoint: Path) -> None:
    prompts = random_prompts([3, 5, 8, 13], seed=5)
    results: dict[int, list[int]] = {}

    def generate(number: int) -> None:
        results[number] = engine.generate(input_ids=[prompts[number]], sampling_params=GREEDY)[0].token_ids

    threads = [threading.Thread(target=generate, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: reference_greedy(llama_checkpoint, prompt, NEW_TOKENS) for n, prompt in enumerate(prompts)}


def test_closing_a_stream_early_frees_what_it_held(llama_checkpoint: Path) -> None:
    # The pool has room for one such request: were an abandoned one not freed, the next could never start.
    endless = SamplingParams(max_new_tokens=200, ignore_eos=True)
    with Engine(llama_checkpoint, dtype="float32", max_total_tokens=210) as engine:
        for _ in range(5):
            stream = engine.stream(input_ids=[[1, 2, 3]], sampling_params=endless)
            next(stream)
            stream.close()
        (output,) = engine.generate(input_ids=[[1, 2, 3]], sampling_params=endless)
    assert len(output.token_ids) == 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input_ids": [[1] * 256]}, "the prompt has 256 tokens, but the context holds 256"),
        ({"input_ids": [[1], []]}, "the prompt is empty"),
        ({"input_ids": [[1, 9999]]}, "token id 9999 is outside the model's vocabulary"),
        ({}, "give either prompts or input_ids"),
        ({"prompts": ["a"], "input_ids": [[1]]}, "give either prompts or input_ids"),
        ({"prompts": ["a", "b"], "sampling_params": [GREEDY]}, "2 prompts but 1 sampling parameters"),
        ({"input_ids": [[1.0, 2.5]]}, "a token id is an int, not 1.0"),
        ({"input_ids": [[True]]}, "a token id is an int, not True"),
        ({"input_ids": [1, 2]}, "1 is no list of token ids"),
        ({"input_ids": ["abc"]}, "'abc' is no list of token ids"),
        ({"prompts": [b"bytes"]}, "a prompt is a str, not b'bytes'"),
        ({"prompts": ["ab\udcff"]}, "not valid Unicode"),
        ({"prompts": ["a"], "sampling_params": [None]}, "sampling_params are SamplingParams, not None"),
    ],
)
def test_a_bad_request_is_refused_and_the_engine_goes_on(engine: Engine, arguments: dict, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        engine.generate(**arguments)
    assert len(engine.generate("still there", sampling_params=GREEDY)[0].token_ids) == NEW_TOKENS


def test_token_ids_may_be_integers_of_numpy_and_torch(engine: Engine) -> None:
    rows = [[5, 6, 7], np.array([5, 6, 7]), torch.tensor([5, 6, 7])]
    outputs = engine.generate(input_ids=rows, sampling_params=GREEDY)
    assert outputs[0].token_ids == outputs[1].token_ids == outputs[2].token_ids


def test_a_stream_refuses_a_bad_request_before_it_is_asked_for_a_chunk(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="the prompt is empty"):
        engine.stream(input_ids=[[]])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works: a program that a shell starts in the background ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("after", [1, 50, 299])
def test_an_interrupt_while_requests_are_being_sent_leaves_the_engine_whole(
    after: int, engine: Engine, llama_checkpoint: Path, mocker: MockerFixture
) -> None:
    submit = engine.tokenizer_manager._submit
    sent = itertools.count(1)

    def submit_and_interrupt(*arguments: Any) -> Any:
        request = submit(*arguments)
        if next(sent) == after:
            _thread.interrupt_main()
        return request

    mocker.patch.object(engine.tokenizer_manager, "_submit", submit_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(input_ids=[[5] * 200] * 300, sampling_params=SamplingParams(max_new_tokens=50))
    mocker.stopall()
    (output,) = engine.generate(input_ids=[[1, 2, 3]], sampling_params=GREEDY)
    assert output.token_ids == reference_greedy(llama_checkpoint, [1, 2, 3], NEW_TOKENS)


def test_openmp_threads_of_the_scheduler_sleep_at_a_barrier(engine: Engine) -> None:
    environment = Path(f"/proc/{engine.tokenizer_manager.scheduler_pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_WAIT_POLICY=" + os.environ.get("OMP_WAIT_POLICY", "PASSIVE").encode() in environment


def test_a_fork_of_the_main_process_can_neither_use_nor_end_the_engine(engine: Engine) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            engine.generate("x")
        except EngineDeadError as error:
            os.write(writing, str(error).encode())
        engine.shutdown()
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # what sys.exit would run
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    with os.fdopen(reading) as said:
        assert f"the engine belongs to process {os.getpid()}" in said.read()
    assert len(engine.generate("x", sampling_params=GREEDY)[0].token_ids) == NEW_TOKENS


def test_a_daemonic_process_is_told_that_it_cannot_make_an_engine() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        said = pool.apply(make_an_engine)
    assert "cannot be made in a daemonic process" in said


def make_an_engine() -> str:
    try:
        Engine()
    except EngineError as error:
        return str(error)
    return "made"


def test_no_prompts_give_no_outputs(engine: Engine) -> None:
    assert engine.generate([]) == []


def test_a_request_larger_than_the_pool_is_refused(llama_checkpoint: Path) -> None:
    with (
        Engine(llama_checkpoint, max_total_tokens=20) as engine,
        pytest.raises(InvalidRequestError, match="can need 40 KV slots, but the pool has 20"),
    ):
        engine.generate(input_ids=[[1]], sampling_params=SamplingParams(max_new_tokens=40))


def test_a_killed_scheduler_ends_the_requests_that_run_and_those_that_come(llama_checkpoint: Path) -> None:
    with Engine(llama_checkpoint) as engine:
        pid = engine.tokenizer_manager.scheduler_pid
        stream = engine.stream("x", sampling_params=GREEDY)
        next(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match=rf"the scheduler process \(pid {pid}\) was killed by SIGKILL"):
            list(stream)
        with pytest.raises(EngineDeadError, match="was killed by SIGKILL"):
            engine.generate("x")
        with pytest.raises(EngineDeadError, match="was killed by SIGKILL"):
            engine.applied_hooks()


def test_shutdown_leaves_no_process_and_may_be_repeated(llama_checkpoint: Path) -> None:
    engine = Engine(llama_checkpoint)
    pid = engine.tokenizer_manager.scheduler_pid
    assert pid in children_of(os.getpid())
    engine.shutdown()
    engine.shutdown()
    wait_until_gone([pid])
    with pytest.raises(EngineDeadError, match="the engine is shut down"):
        engine.generate("x")


def test_shutdown_ends_a_request_that_runs(llama_checkpoint: Path) -> None:
    engine = Engine(llama_checkpoint)
    stream = engine.stream("x", sampling_params=SamplingParams(max_new_tokens=250, ignore_eos=True))
    next(stream)
    engine.shutdown()
    with pytest.raises(EngineDeadError, match="the engine is shut down"):
        list(stream)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": "no/such/directory"}, ModelLoadError, "does not exist"),
        ({"dtype": "int4"}, ConfigError, "dtype='int4' is not known"),
        ({"max_running_requests": 0}, ConfigError, "max_running_requests=0"),
        ({"plugins": "runtime.plugins.demo"}, ConfigError, "it must be a list of dotted module names"),
        ({"model": None}, ConfigError, "model=None"),
    ],
)
def test_bad_arguments_are_refused_before_a_process_is_started(
    arguments: dict, error: type[Exception], says: str
) -> None:
    before = children_of(os.getpid())
    with pytest.raises(error, match=says):
        Engine(**arguments)
    assert children_of(os.getpid()) == before


def test_pools_that_do_not_fit_the_memory_are_a_clear_error(llama_checkpoint: Path) -> None:
    with pytest.raises(PlatformError, match="no memory for 1000000000000 requests"):
        Engine(llama_checkpoint, max_running_requests=10**12, max_total_tokens=100)


def test_what_only_the_scheduler_can_know_is_raised_with_its_own_type(llama_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="context_length=5000 is more than the model was made for: at most 256"):
        Engine(llama_checkpoint, context_length=5000)
