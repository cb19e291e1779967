"""The benchmark of child processes runs, and prints what it says it prints. Its figures are not judged here."""

from __future__ import annotations

import re

import pytest

from benchmarks import child_processes


def test_the_table_has_a_row_per_number_of_hooks_and_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    child_processes.main(["--rounds", "1", "--hooks", "1", "3"])
    head, *rows, empty, limit = capsys.readouterr().out.splitlines()
    assert head.split() == ["hooks", "milliseconds", "in", "the", "child"]
    assert [int(row.split()[0]) for row in rows] == [1, 3]
    assert all(float(row.split()[1]) > 0 for row in rows)
    assert empty == ""
    assert re.fullmatch(r"limit with 1: 2\.0 ms; \d+\.\d\d ms, (kept|NOT KEPT)", limit)


def test_nothing_to_measure_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        child_processes.main(["--rounds", "0"])
    assert "something to measure" in capsys.readouterr().err
