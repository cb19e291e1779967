"""Checkpoints and helpers that the tests of the runtime share."""

from __future__ import annotations

import os

# One thread per process, child processes included: with several test workers on few cores, OpenMP threads that wait
# for each other while their cores are taken are a hundred times slower than none.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.checkpoints import VARIANTS, make_llama_checkpoint
from tests.runtime.families import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a variant to its checkpoint directory, made at first use."""
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            directory = tmp_path_factory.mktemp(variant)
            made[variant] = make_llama_checkpoint(directory, seed=len(variant), **VARIANTS[variant])
        return made[variant]

    return get


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a key of `families.FAMILIES` to its checkpoint directory, made at first use."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def llama_checkpoint(checkpoint: Callable[[str], Path]) -> Path:
    """A small tied grouped-query checkpoint with its tokenizer."""
    return checkpoint("tied-gqa")
