"""The benchmark of applying runs, and prints what it says it prints. Its figures are not judged here."""

from __future__ import annotations

import json

import pytest

from benchmarks import apply
from hookery import patch_table

TINY = ["--rounds", "1", "--hooks", "12", "--bare"]


def test_json_has_the_scan_the_application_and_the_import(capsys: pytest.CaptureFixture[str]) -> None:
    apply.main([*TINY, "--json"])
    printed = json.loads(capsys.readouterr().out)
    applied, imported = printed["apply"], printed["import"]
    assert applied["hooks"] == 12
    assert applied["globals"] > applied["modules"] > 50
    assert set(applied["rows"]) == {"one scan", "apply", "revert", "unreached"}
    for row in applied["rows"].values():
        assert 0 < row["ms_p10"] <= row["ms_median"] <= row["ms_p90"]
    assert applied["rows"]["one scan"]["scans"] == 1.0
    assert "hookery.registry" in imported["imports"]
    assert not {"torch", "wrapt", "importlib.metadata"} & set(imported["imports"])
    assert patch_table.all_patches() == []


def test_the_table_names_what_was_measured_and_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    apply.main(TINY)
    out = capsys.readouterr().out
    for text in ("12 hooks", "one scan", "apply", "3.0x", "import hookery", "at most 25 ms", "python: "):
        assert text in out


@pytest.mark.parametrize("option", ["--rounds", "--hooks"])
def test_nothing_to_measure_is_an_error(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        apply.main([option, "0"])
    assert "must be at least 1" in capsys.readouterr().err


def test_the_targets_are_those_asked_for() -> None:
    import textwrap

    assert apply.targets(["textwrap"], 1000)[:1] == ["textwrap:TextWrapper._fix_sentence_endings"]
    assert "textwrap:dedent" in apply.targets(["textwrap"], 1000)
    assert apply.targets(["not.imported"], 5) == []
    assert (vars(textwrap), "dedent") in apply.scan(textwrap.dedent)
