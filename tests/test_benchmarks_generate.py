"""The generation benchmark runs, and prints what it says it prints. Its figures are not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import generate
from tests.runtime.checkpoints import make_llama_checkpoint

TINY = ["--rounds", "1", "--new-tokens", "3", "--prompt-tokens", "4", "--batch-sizes", "1", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llama_checkpoint(tmp_path_factory.mktemp("model")))


def test_json_has_a_row_for_each_engine_and_batch_size(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main(["--model", model, *TINY, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [(row["engine"], row["batch_size"]) for row in printed["rows"]] == [
        ("runtime", 1),
        ("transformers", 1),
        ("runtime", 2),
        ("transformers", 2),
    ]
    for row in printed["rows"]:
        assert row["prefill_median"] > 0
        assert row["decode_range"][0] <= row["decode_median"] <= row["decode_range"][1]


def test_the_table_compares_with_transformers_and_the_memory_limit(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    generate.main(["--model", model, *TINY])
    lines = capsys.readouterr().out.splitlines()
    peers = [line for line in lines if line.split()[1:2] == ["transformers"]]
    assert len(peers) == 2
    assert all("1.00x 1.00x" in line for line in peers)


def test_a_random_checkpoint_is_one_that_the_runtime_loads(tmp_path: Path) -> None:
    generate.make_random_checkpoint(tmp_path)
    side = generate.RuntimeSide(str(tmp_path), "float32")
    _, tokens = side.run([[1, 2, 3]], new_tokens=2)
    assert len(tokens[0]) == 2


def test_a_disagreement_with_transformers_in_fp32_ends_the_benchmark(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_token_off(
        self: generate.TransformersSide, prompts: list[list[int]], new_tokens: int
    ) -> tuple[generate.Timing, list[list[int]]]:
        return generate.Timing(1.0, 1.0), [[0] * new_tokens for _ in prompts]

    monkeypatch.setattr(generate.TransformersSide, "run", one_token_off)
    with pytest.raises(SystemExit, match="disagree about a token"):
        generate.main(["--model", model, "--dtype", "float32", *TINY])
