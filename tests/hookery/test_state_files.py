"""What is read of files that are damaged, and shown of processes that say strange things."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hookery import state_files
from tests.hookery.support import run_hookery

Say = Callable[..., None]

GROUP: dict[str, Any] = {"type": "before", "source": "hooks", "state": "applied"}


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "states"
    folder.mkdir(0o700)
    monkeypatch.setenv("HOOKERY_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def say(states: Path) -> Say:
    """Say something of this process, as it would itself."""
    identity = state_files.identity_of()
    assert identity is not None
    head = {
        "format": state_files.FORMAT,
        "pid": identity.pid,
        "start": identity.start,
        "stack": identity.stack,
        "parent": 1,
        "role": "worker",
        "command": ["python"],
        "python": "3",
        "signal": None,
        "published_at": 1.5,
        "ended_at": None,
        "records": [{**GROUP, "hooks": [[1, "shop.price", "hooks:note"]]}],
    }

    def say(*more: str, **changes: object) -> None:
        lines = [json.dumps({**head, **changes}), *more]
        (states / identity.file_name).write_text("".join(f"{line}\n" for line in lines))

    return say


def change(**changes: object) -> str:
    return json.dumps({"published_at": 2, "records": [], "gone": [], **changes})


def record(**changes: object) -> list[object]:
    return [{**GROUP, "hooks": [[1, "shop.price", "hooks:note", changes]]}]


class TestADamagedFile:
    def test_what_is_not_damaged_is_read(self, say: Say) -> None:
        say(change(records=record(calls=3)))
        (process,), unreadable = state_files.read_processes()
        assert unreadable == []
        assert (process.published_at, process.records[0].calls) == (2, 3)

    @pytest.mark.parametrize(
        "changes",
        [
            {"role": None},
            {"pid": "self"},
            {"pid": None},
            {"start": "1"},
            {"command": ["python", None]},
            {"command": 5},
            {"signal": 0},
            {"signal": "SIGUSR2"},
            {"published_at": "x"},
            {"published_at": float("nan")},
            {"published_at": 1e30},
            {"published_at": -1.0},
            {"ended_at": "x"},
            {"records": ["x"]},
            {"records": None},
            {"records": [{**GROUP, "hooks": [[1, None, "hooks:note"]]}]},
            {"records": [{**GROUP, "hooks": [[[], "shop.price", "hooks:note"]]}]},
            {"records": record(calls="many")},
            {"records": record(ran=1)},
            {"records": record(unreached=[1])},
            {"records": record(absent_in=[None])},
            {"records": [{**GROUP, "state": None, "hooks": [[1, "shop.price", "hooks:note"]]}]},
        ],
        ids=str,
    )
    def test_by_its_head_is_one_line_among_the_unreadable(self, say: Say, changes: dict[str, object]) -> None:
        say(**changes)
        processes, unreadable = state_files.read_processes()
        assert (processes, len(unreadable)) == ([], 1)

    @pytest.mark.parametrize(
        "line",
        [
            change(records=["x"]),
            change(published_at="x"),
            change(gone=[[]]),
            change(gone=None),
            change(records=record(detail=[])),
            "[" * 100_000,
            "null",
        ],
        ids=lambda line: line[:60],
    )
    def test_by_a_change_too(self, say: Say, line: str) -> None:
        say(line)
        processes, unreadable = state_files.read_processes()
        assert (processes, len(unreadable)) == ([], 1)

    def test_the_others_are_shown(self, say: Say, states: Path) -> None:
        say()
        space = state_files.namespace()
        (states / f"{space}-ended-1.jsonl").write_text("[" * 100_000 + "\n")
        (states / f"{space}-ended-2.jsonl").write_text('{"format": 2, "pid": "\\n"}\n')
        done = run_hookery("ps", "--ended", folder=states)
        assert done.stdout.splitlines()[2].split()[:2] == [str(os.getpid()), "worker"]
        assert done.stderr.count("hookery: cannot be read: ") == len(done.stderr.splitlines()) == 2


class TestAProcessWithAStrangeName:
    STRANGE = "w\udcff\u00e4\n24855  forged\x1b[31m\r\u202e"

    @pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
    def test_it_can_neither_end_the_command_nor_forge_a_row(self, say: Say, states: Path, encoding: str) -> None:
        say(role=self.STRANGE, records=record(notes=[f"is {self.STRANGE}"]))
        variables = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
        letter = "\\xe4" if encoding == "ascii" else "\u00e4"
        shown = f"w\\udcff{letter}\\n24855  forged\\x1b[31m\\r\\u202e"
        table = run_hookery("ps", folder=states, environment=variables).stdout.splitlines()
        assert len(table) == 3
        assert f"  {shown}  " in table[2]
        listed = run_hookery("list", "--process", str(os.getpid()), folder=states, environment=variables).stdout
        assert listed.splitlines()[2].startswith(f"{shown}  shop.price  ")
        assert listed.splitlines()[3] == f"{shown}: note is {shown}"
        assert len(listed.splitlines()) == 5

    def test_as_json_it_is_what_it_is(self, say: Say, states: Path) -> None:
        say(role=self.STRANGE)
        (process,) = json.loads(run_hookery("ps", "--json", folder=states).stdout)
        assert process["role"] == self.STRANGE
