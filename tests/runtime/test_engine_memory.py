"""The engine's memory as a user sees it: the same tokens whatever is cut, shared, dropped or retracted."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.core.errors import InvalidRequestError
from runtime.core.sampling_params import SamplingParams
from runtime.entrypoints.engine import Engine
from tests.runtime.checkpoints import random_prompts, reference_greedy
from tests.runtime.engine_process import serve

NEW_TOKENS = 12
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
MEMORY_PLUGIN = "tests.runtime.memory_plugin"
POOL_PLUGIN = "tests.runtime.pool_platform_plugin"


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler checks its pools whenever it has nothing to do, and dies if they leak."""
    monkeypatch.setenv("RUNTIME_CHECK_INTEGRITY", "1")


class Trace:
    """What `memory_plugin` wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {"MEMORY_TRACE": str(path)}

    def events(self, word: str) -> list[str]:
        """The rest of each line whose event begins with `word`; one process has written them all."""
        lines = [line.split(" ", 2) for line in self.path.read_text().splitlines()]
        assert len({line[0] for line in lines}) == 1, "only the scheduler has pools"
        return [line[2] for line in lines if line[1] == word]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace(tmp_path / "trace")


def generate(engine: Engine, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.token_ids for output in engine.generate(input_ids=prompts, sampling_params=params)]


def assert_nothing_leaked(engine: Engine) -> None:
    engine.applied_hooks()  # a scheduler that answers has been idle since its last output, and has checked itself


@pytest.mark.parametrize(
    ("page_size", "chunk"),
    [(1, None), (1, 1), (1, 3), (1, 2), (16, None), (16, 1), (16, 3), (16, 15), (16, 17), (64, 63), (64, 65)],
)
def test_greedy_output_equals_transformers_alone_together_and_with_prefixes_found(
    llama_checkpoint: Path, page_size: int, chunk: int | None
) -> None:
    stem, tail, other, *short = random_prompts((130, 9, 40, 1, 5), seed=21)
    part = stem[:70] + tail
    rounds = [[stem], [stem, part, other, *short], [stem[:64], part, stem], [other + tail, short[1] + other]]
    with Engine(
        llama_checkpoint, dtype="float32", page_size=page_size, chunked_prefill_size=chunk, max_running_requests=4
    ) as engine:
        for prompts in rounds:
            assert generate(engine, prompts) == [reference_greedy(llama_checkpoint, p, NEW_TOKENS) for p in prompts]
            assert_nothing_leaked(engine)


@pytest.mark.parametrize(("page_size", "chunk"), [(1, None), (16, 17)])
def test_output_is_the_same_after_eviction_and_retraction(
    llama_checkpoint: Path, page_size: int, chunk: int | None, trace: Trace
) -> None:
    prompts = random_prompts((20, 20, 50, 33, 20), seed=22)
    rounds = [prompts[:2], prompts, prompts[:1]]
    served = serve(
        llama_checkpoint,
        rounds,
        trace.environment,
        new_tokens=40,
        dtype="float32",
        max_total_tokens=112,
        page_size=page_size,
        chunked_prefill_size=chunk,
        plugins=[MEMORY_PLUGIN],
    )
    assert served["outputs"] == [
        [reference_greedy(llama_checkpoint, prompt, 40) for prompt in batch] for batch in rounds
    ]
    assert trace.events("retract")
    assert sum(map(int, trace.events("evict"))) > 0
    assert any(int(found) > 0 for found in trace.events("match"))


@pytest.mark.parametrize(
    ("kv_cache_dtype", "stored"), [("fp8_e4m3", "torch.float8_e4m3fn"), ("bf16", "torch.bfloat16")]
)
def test_a_narrow_cache_runs_and_begins_as_transformers_does(
    llama_checkpoint: Path, kv_cache_dtype: str, stored: str, trace: Trace
) -> None:
    prompts = random_prompts((33, 8), seed=23)
    served = serve(
        llama_checkpoint,
        [prompts],
        trace.environment,
        kv_cache_dtype=kv_cache_dtype,
        page_size=16,
        plugins=[MEMORY_PLUGIN],
    )
    (outputs,) = served["outputs"]
    # The first token comes from a prompt that is computed whole and does not read the cache.
    assert [tokens[0] for tokens in outputs] == [reference_greedy(llama_checkpoint, p, 1)[0] for p in prompts]
    assert [len(tokens) for tokens in outputs] == [NEW_TOKENS] * 2
    (pool,) = trace.events("pool")
    assert pool.endswith(stored)


def test_a_class_put_in_the_place_of_the_pool_serves_in_the_scheduler(llama_checkpoint: Path, trace: Trace) -> None:
    (prompt,) = random_prompts((20,), seed=24)
    served = serve(
        llama_checkpoint,
        [[prompt]],
        trace.environment,
        dtype="float32",
        page_size=16,
        max_total_tokens=100,
        plugins=[MEMORY_PLUGIN],
    )
    assert served["outputs"] == [[reference_greedy(llama_checkpoint, prompt, NEW_TOKENS)]]
    assert trace.events("pool") == ["TracingPool of 96 slots in pages of 16, torch.float32"]
    assert trace.events("set") == ["20"] + ["1"] * (NEW_TOKENS - 1)
    assert trace.events("slots") == ["96"]
    assert trace.events("allocator") == ["PagedTokenToKVPoolAllocator"]
    memory = "runtime.mem_cache."
    assert {target.removeprefix(memory) for target in served["hooks"]} >= {
        "pool_selection.num_kv_slots",
        "pool_selection.create_allocator",
        "radix_cache.RadixCache.match_prefix",
    }


def test_the_pool_that_the_platform_names_serves_in_the_scheduler(llama_checkpoint: Path, trace: Trace) -> None:
    (prompt,) = random_prompts((20,), seed=25)
    environment = {**trace.environment, "PLATFORM_POOL": "PlatformPool"}
    served = serve(llama_checkpoint, [[prompt]], environment, dtype="float32", plugins=[POOL_PLUGIN])
    assert served["outputs"] == [[reference_greedy(llama_checkpoint, prompt, NEW_TOKENS)]]
    assert trace.events("pool") == ["PlatformPool"]


def test_a_pool_of_the_wrong_kind_is_one_clear_type_error(llama_checkpoint: Path) -> None:
    served = serve(llama_checkpoint, [], {"PLATFORM_POOL": "WrongPool"}, plugins=[POOL_PLUGIN])
    assert "get_mha_kv_pool_cls: tests.runtime.pool_platform_plugin.WrongPool must be a subclass of" in served["error"]
    assert {"WrongClassError", "ConfigError", "TypeError"} <= set(served["kinds"])


def test_a_request_larger_than_the_pool_is_one_clear_error_and_the_engine_goes_on(llama_checkpoint: Path) -> None:
    with Engine(llama_checkpoint, dtype="float32", max_total_tokens=40, page_size=16) as engine:
        with pytest.raises(InvalidRequestError, match="can need 36 KV slots, but the pool has 32; shorten the prompt"):
            generate(engine, [[1] * 25])
        assert generate(engine, [[1] * 20]) == [reference_greedy(llama_checkpoint, [1] * 20, NEW_TOKENS)]
        assert_nothing_leaked(engine)


def test_a_scheduler_whose_pool_leaks_says_so_and_ends(llama_checkpoint: Path) -> None:
    served = serve(llama_checkpoint, [[[1, 2, 3]]], {}, plugins=["tests.runtime.leaking_plugin"])
    assert len(served["outputs"]) == 1
    assert "1 neither free nor held" in served["error"]
    assert "EngineDeadError" in served["kinds"]
