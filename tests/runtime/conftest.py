"""Checkpoints and helpers that the tests of the runtime share."""

from __future__ import annotations

import os

# One thread per process, child processes included: with several test workers on few cores, OpenMP threads that wait
# for each other while their cores are taken are a hundred times slower than none.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.plugin_distributions import PLUGINS, Environment, build_wheel
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


@pytest.fixture(scope="session")
def acme_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Acme accelerator, a device that is no CPU, compiled once for all processes of a test run."""
    for missing, what in (
        (shutil.which("g++") is None, "there is no g++"),
        (not hasattr(torch.accelerator, "Graph"), f"torch {torch.__version__} has no torch.accelerator.Graph"),
    ):
        if missing and os.environ.get("REQUIRE_DEVICE") == "1":
            pytest.fail(f"the device is to be compiled here (REQUIRE_DEVICE=1), and {what}")
        if missing:
            pytest.skip(f"the device cannot be compiled: {what}")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    finished = shared / "acme-wheel"
    with open(shared / "acme-wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            unfinished = tmp_path_factory.mktemp("unfinished")
            build_wheel(PLUGINS / "acme_accelerator", unfinished)
            unfinished.rename(finished)
    (wheel,) = finished.iterdir()
    return wheel


@pytest.fixture(scope="session")
def acme(acme_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the Acme accelerator installed; not to be changed."""
    environment = Environment(tmp_path_factory.mktemp("acme"))
    environment.install(acme_wheel)
    return environment
