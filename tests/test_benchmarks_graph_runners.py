"""The benchmark of graph runners runs, and prints what it says it prints. Its figures are not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pytest_mock import MockerFixture

from benchmarks import graph_runners
from runtime.model_executor.cuda_graph_runner import CudaGraphRunner
from tests.runtime.checkpoints import make_llama_checkpoint

TINY = ["--rounds", "1", "--steps", "2", "--prompt-tokens", "4", "--batch-sizes", "1", "2", "--fill-batch", "16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llama_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def little(mocker: MockerFixture) -> None:
    mocker.patch.object(graph_runners, "COPY_BYTES", 1 << 16)


def test_json_has_a_row_for_each_way_and_batch_size(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    graph_runners.main(["--model", model, *TINY, "--ways", "eager", "plain", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["platform"] == "cpu"
    assert [(row["what"], row["way"], row["batch_size"]) for row in printed["rows"]] == [
        ("decode", "eager", 1),
        ("decode", "plain", 1),
        ("decode", "eager", 2),
        ("decode", "plain", 2),
        ("fill", "foreach copy", 16),
        ("fill", "fill_from", 16),
        ("fill", "copy by copy", 16),
        ("fill", "one copy", 16),
    ]
    for row in printed["rows"]:
        assert 0 < row["host_us"] <= row["step_us"]
        assert row["of_limit"] > 0
        if row["way"] in ("eager", "foreach copy"):
            assert row["times_as_fast"] == 1


def test_the_table_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    graph_runners.main(["--hidden", "64", "--layers", "1", *TINY, "--ways", "eager", "plain"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("platform cpu, dtype float32")
    assert sum("1.00x" in line for line in lines) >= 3
    assert len(lines) == 2 + 8


def test_ways_that_disagree_end_the_benchmark(model: str, mocker: MockerFixture) -> None:
    mocker.patch.object(CudaGraphRunner, "replay", lambda self, batch: torch.ones(batch.batch_size, 1))
    with pytest.raises(SystemExit, match="plain and eager disagree"):
        graph_runners.main(["--model", model, *TINY, "--ways", "eager", "plain"])


def test_a_random_checkpoint_is_one_that_the_runtime_loads(tmp_path: Path) -> None:
    graph_runners.make_random_checkpoint(tmp_path, 64, 1)
    runner = graph_runners.make_runner(str(tmp_path), "float32", "eager", [2], 16)
    # A token table that is not the output projection is not read as a whole.
    table = runner.model.embed_tokens.weight
    everything = sum(t.numel() * t.itemsize for t in runner.model.checkpoint_tensors().values())
    assert graph_runners.weight_bytes(runner) == everything - table.numel() * table.itemsize
