"""Every architecture through the scheduler equals transformers: cut prompts, shared prefixes, pages, eviction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from runtime.mem_cache.radix_cache import RadixCache
from tests.runtime.checkpoints import random_prompts, reference_logits
from tests.runtime.families import ARCHITECTURES, BASE
from tests.runtime.test_scheduler import Served

Family = Callable[[str], Path]
NEW_TOKENS = 7
VOCAB = BASE["vocab_size"]


def assert_greedy(directory: Path, prompt: list[int], output: list[int]) -> None:
    logits = reference_logits(directory, (prompt + output)[:-1])[len(prompt) - 1 :]
    assert output == logits.argmax(-1).tolist()
    assert len(output) == NEW_TOKENS


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "mixtral-window"])
def test_cut_prompts_shared_prefixes_and_eviction_equal_transformers(
    family: Family, name: str, page_size: int, mocker: MockerFixture
) -> None:
    directory = family(name)
    evict = mocker.spy(RadixCache, "evict")
    whole, other, third = random_prompts((70, 21, 66), VOCAB, seed=page_size)
    prompts = [whole, other, whole, whole[:66] + other, third, whole[:50], third[:30] + other, whole]
    for chunk in (3, max(1, page_size - 1), page_size + 1):
        # Three pages of 64, or as many slots: what has been kept has to go for others.
        served = Served(
            directory, page_size=page_size, chunked_prefill_size=chunk, max_total_tokens=192, max_running_requests=3
        )
        names = [served.submit(prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts]
        served.run()
        for request, prompt in zip(names, prompts, strict=True):
            assert_greedy(directory, prompt, served.tokens(request))
        assert max(served.computed()) <= chunk
        assert sum(served.computed()) < sum(map(len, prompts)), "prefixes are shared"
    assert evict.call_count


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompts_brought_token_by_token_equal_transformers(family: Family, name: str) -> None:
    directory = family(name)
    served = Served(directory, chunked_prefill_size=1)
    prompts = random_prompts((17, 30), VOCAB, seed=3)
    names = [served.submit(prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts]
    served.run()
    for request, prompt in zip(names, prompts, strict=True):
        assert_greedy(directory, prompt, served.tokens(request))
