"""The benchmark of child processes runs, and prints what it says it prints. Its figures are not judged here."""

from __future__ import annotations

import re

import pytest

from benchmarks import child_processes


def test_the_table_has_a_row_per_number_of_hooks_and_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    child_processes.main(["--rounds", "1", "--hooks", "1", "3", "--targets", "waiting", "imported"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", head) == [
        "hooks",
        "targets",
        "ms over the imports",
        "ms with the imports",
        "at most 2.0 ms over",
    ]
    cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
    assert [cell[:2] for cell in cells] == [["1", "waiting"], ["3", "waiting"], ["1", "imported"], ["3", "imported"]]
    for _, targets, over, whole, said in cells:
        assert 0 < float(over.split()[0]) < float(whole.split()[0])
        kept = "kept" if float(over.split()[0]) <= child_processes.LIMIT_MILLISECONDS else "NOT KEPT"
        assert said == (kept if targets == "waiting" else "-")


def test_nothing_to_measure_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        child_processes.main(["--rounds", "0"])
    assert "something to measure" in capsys.readouterr().err
