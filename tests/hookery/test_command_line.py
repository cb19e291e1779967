"""`hookery list`, `ps`, `explain` and `check`: what they print, and the statuses that they end with."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hookery.support import environment_of, run_hookery

HOOKS = """
    from hookery import HookType, plugin_hook

    @plugin_hook("json.dumps", HookType.AFTER, reason="sign what is written", count=True)
    def sign(result, *args, **kwargs):
        return result + "+"

    @plugin_hook("json.dumps", HookType.BEFORE, priority=1)
    def note(*args, **kwargs): ...

    @plugin_hook("wsgiref.util.guess_scheme", HookType.AFTER)
    def shout(result, *args): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOOKERY_STATE_DIR", str(tmp_path / "states"))
    (tmp_path / "my_hooks.py").write_text(textwrap.dedent(HOOKS))
    (tmp_path / "broken.py").write_text(textwrap.dedent(HOOKS).replace("json.dumps", "json.dumsp"))
    return tmp_path


@pytest.fixture
def program(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with hooks, one of which has run."""
    code = (
        "import json, hookery; print(json.dumps(1), flush=True); hookery.publish(role='worker'); print(input('-\\n'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "hookery", "run", "--hook", "my_hooks", "-c", code],
        cwd=folder,
        env=environment_of([], {"PYTHONUNBUFFERED": "1"}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert (process.stdout.readline(), process.stdout.readline()) == ("1+\n", "-\n")
    yield process
    process.kill()
    process.communicate(timeout=60)


def rows(table: str) -> list[list[str]]:
    """The cells of the lines under the head of a table."""
    lines = table.splitlines()
    return [line.split() for line in lines[2:]]


class TestList:
    def test_what_would_apply_here(self, folder: Path) -> None:
        done = run_hookery("list", "--hook", "my_hooks", folder=folder)
        table = [row[:7] for row in rows(done.stdout)[:3]]
        assert table == [
            ["here", "json.dumps", "AFTER", "sign", "my_hooks", "applied", "no"],
            ["here", "json.dumps", "BEFORE", "note", "my_hooks", "applied", "no"],
            ["here", "wsgiref.util.guess_scheme", "AFTER", "shout", "my_hooks", "pending", "no"],
        ]
        assert "shout is pending: wsgiref is not imported yet" in done.stdout
        assert "\x1b" not in done.stdout

    def test_as_json_although_that_is_hooked(self, folder: Path) -> None:
        done = run_hookery("list", "--hook", "my_hooks", "--eager", "--json", folder=folder)
        assert [(hook["target"], hook["state"]) for hook in json.loads(done.stdout)] == [
            ("json.dumps", "applied"),
            ("json.dumps", "applied"),
            ("wsgiref.util.guess_scheme", "applied"),
        ]

    def test_of_a_process(self, folder: Path, program: subprocess.Popen[str]) -> None:
        done = run_hookery("list", "--process", str(program.pid), folder=folder)
        assert ["worker", "json.dumps", "AFTER", "sign", "my_hooks", "applied", "yes", "1"] in rows(done.stdout)
        plain = json.loads(run_hookery("list", "--process", str(program.pid), "--json", folder=folder).stdout)
        assert (plain["pid"], plain["role"], len(plain["records"])) == (program.pid, "worker", 3)

    def test_of_a_process_without_hooks(self, folder: Path) -> None:
        done = run_hookery("list", "--process", str(os.getpid()), folder=folder, status=1)
        assert "has no hooks that can be seen here" in done.stderr
        done = run_hookery("list", "--process", str(2**22 + 1), folder=folder, status=1)
        assert "there is no process" in done.stderr

    def test_without_any(self, folder: Path) -> None:
        done = run_hookery("list", folder=folder, environment={"HOOKERY_PLUGINS": ""})
        assert done.stdout.startswith("no hooks:")

    @pytest.mark.parametrize("arguments", [["--plugin", "nothing"], ["--hook", "nothing"]])
    def test_of_what_there_is_not(self, folder: Path, arguments: list[str]) -> None:
        for command in ("list", "check"):
            assert "nothing" in run_hookery(command, *arguments, folder=folder, status=2).stderr

    @pytest.mark.parametrize("columns", ["200", "60"])
    def test_on_a_terminal_it_is_drawn_if_it_fits(self, folder: Path, columns: str) -> None:
        pytest.importorskip("rich")
        ours, theirs = pty.openpty()
        variables = environment_of([], {"COLUMNS": columns, "TERM": "xterm-256color"})
        for name in ("NO_COLOR", "FORCE_COLOR"):
            variables.pop(name, None)
        command = [sys.executable, "-m", "hookery", "list", "--hook", "my_hooks"]
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=theirs)
        os.close(theirs)
        drawn = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            drawn += read
        os.close(ours)
        assert process.wait(timeout=60) == 0
        fits = columns == "200"
        assert (b"\x1b[32mapplied" in drawn) is fits
        assert ("─".encode() in drawn) is fits
        assert b"util.guess_scheme" in drawn  # in one piece
        assert b"my_hooks" in drawn

    def test_where_nothing_can_be_written(self, folder: Path) -> None:
        command = [sys.executable, "-m", "hookery", "list", "--hook", "my_hooks"]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, cwd=folder, env=environment_of([]), stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert done.stderr == b"hookery: the answer cannot be written: No space left on device\n"
        closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        done = subprocess.run(closed, cwd=folder, env=environment_of([]), stderr=subprocess.PIPE, check=True)
        assert done.stderr == b""


class TestPs:
    def test_every_process_with_hooks(self, folder: Path, program: subprocess.Popen[str]) -> None:
        done = run_hookery("ps", folder=folder)
        (row,) = rows(done.stdout)
        assert row[:8] == [str(program.pid), "worker", "2", "1", "0", "0", "2", "1"]
        (process,) = json.loads(run_hookery("ps", "--json", folder=folder).stdout)
        assert process["records"][0]["calls"] == 1

    def test_the_ended_on_request(self, folder: Path, program: subprocess.Popen[str]) -> None:
        program.communicate("end\n", timeout=60)
        assert run_hookery("ps", folder=folder).stdout == "no process of this user has hooks\n"
        (row,) = rows(run_hookery("ps", "--ended", folder=folder).stdout)
        assert (row[0], row[-1]) == (str(program.pid), "(ended)")

    def test_those_that_listen_are_asked(self, folder: Path) -> None:
        code = "import json; json.dumps(1); print('ready', flush=True); input()"
        process = subprocess.Popen(
            [sys.executable, "-m", "hookery", "run", "--hook", "my_hooks", "-c", code],
            cwd=folder,
            env=environment_of([], {"HOOKERY_SIGNAL": "SIGUSR2"}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            (found,) = json.loads(run_hookery("ps", "--json", folder=folder).stdout)
            assert [record["ran"] for record in found["records"]] == [True, True, False]
            process.communicate("\n", timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()

    def test_a_folder_that_is_not_the_users(self, folder: Path) -> None:
        (folder / "states").mkdir()
        (folder / "states").chmod(0o777)
        assert "is open to others" in run_hookery("ps", folder=folder, status=2).stderr

    def test_a_reader_that_has_seen_enough(self, folder: Path) -> None:
        command = f"{sys.executable} -m hookery list --hook my_hooks --json | head -1"
        done = subprocess.run(
            ["sh", "-c", command], cwd=folder, env=environment_of([]), capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.stderr) == ("[\n", "")


class TestExplain:
    def test_the_chain_with_its_lines(self, folder: Path) -> None:
        done = run_hookery("explain", "--hook", "my_hooks", "json.dumps", folder=folder)
        lines = [line.strip() for line in done.stdout.splitlines()]
        assert lines[0] == "json.dumps is hooked"
        assert any(line.startswith("engine: generated") for line in lines)
        first, second, last = lines[lines.index("a call runs, from the outside in:") + 1 :][:3]
        assert first.startswith("1. BEFORE my_hooks:note")
        assert second.startswith("2. AFTER my_hooks:sign")
        assert "because: sign what is written" in second
        assert f"({folder / 'my_hooks.py'}:4)" in second
        assert last == "3. the original"

    def test_the_targets_module_is_imported(self, folder: Path) -> None:
        done = run_hookery("explain", "wsgiref.util.guess_scheme", "--hook", "my_hooks", "--json", folder=folder)
        assert json.loads(done.stdout)["state"] == "hooked"

    @pytest.mark.parametrize(("target", "status"), [("json.dumsp", 1), ("nothing.f", 1), ("", 2), ("json..dumps", 2)])
    def test_what_does_not_exist(self, folder: Path, target: str, status: int) -> None:
        done = run_hookery("explain", target, folder=folder, status=status)
        assert ("is missed" in done.stdout) is (status == 1)

    def test_a_module_that_cannot_be_imported(self, folder: Path) -> None:
        (folder / "fails.py").write_text("raise OSError('no driver')")
        done = run_hookery("explain", "fails.f", folder=folder, path=[folder], status=1)
        assert "OSError: no driver" in done.stderr
        assert done.stdout == "fails.f is pending: fails is not imported yet\n"

    def test_a_lazy_attribute_that_there_is_not(self, folder: Path) -> None:
        (folder / "lazy.py").write_text("def __getattr__(name): raise AttributeError(name)")
        assert "'lazy' has no 'f'" in run_hookery("explain", "lazy.f", folder=folder, path=[folder], status=1).stderr


class TestCheck:
    def test_that_all_is_well(self, folder: Path) -> None:
        done = run_hookery("check", "--hook", "my_hooks", folder=folder)
        assert done.stdout.splitlines()[-1] == "3 hooks, 0 would not be applied"
        assert "shout" in done.stdout

    def check(self, folder: Path, source: str) -> dict[str, Any]:
        (folder / "bad.py").write_text("from hookery import HookType, plugin_hook\n" + textwrap.dedent(source))
        answer = json.loads(run_hookery("check", "--hook", "bad", "--json", folder=folder, status=1).stdout)
        assert answer["ok"] is False
        assert "would not be applied" in run_hookery("check", "--hook", "bad", folder=folder, status=1).stdout
        return dict(answer)

    def test_every_target_that_does_not_exist_is_found(self, folder: Path) -> None:
        done = run_hookery("check", "--hook", "broken", "--json", folder=folder, status=1)
        answer = json.loads(done.stdout)
        assert [problem["target"] for problem in answer["problems"]] == ["json.dumsp", "json.dumsp"]
        assert "did you mean 'dump' or 'dumps'" in answer["problems"][0]["detail"]

    def test_a_hook_that_does_not_fit_the_targets_signature(self, folder: Path) -> None:
        answer = self.check(folder, "@plugin_hook('json.loads', HookType.BEFORE)\ndef typed(nothing): ...\n")
        assert [problem["kind"] for problem in answer["problems"]] == ["undone"]
        assert "typed" in answer["errors"][0]

    def test_a_plugin_that_raises(self, folder: Path) -> None:
        assert "ZeroDivisionError" in self.check(folder, "1 / 0")["errors"][0]

    def test_a_target_whose_module_cannot_be_imported(self, folder: Path) -> None:
        (folder / "fails.py").write_text("raise OSError('no driver')")
        answer = self.check(folder, "@plugin_hook('fails.f', HookType.BEFORE)\ndef hook(*args): ...\n")
        assert "no driver" in json.dumps(answer)

    def test_one_that_fails_does_not_hide_another(self, folder: Path) -> None:
        (folder / "raises.py").write_text("1 / 0")
        done = run_hookery("check", "--hook", "raises", "--hook", "broken", "--json", folder=folder, status=1)
        answer = json.loads(done.stdout)
        assert (len(answer["errors"]), len(answer["problems"])) == (1, 2)

    def test_skipped_hooks_are_counted(self, folder: Path) -> None:
        (folder / "two.py").write_text(
            "from hookery import HookType, plugin_hook\n"
            "@plugin_hook('textwrap.dedent', HookType.REPLACE)\ndef outranked(text): ...\n"
            "@plugin_hook('textwrap.dedent', HookType.REPLACE, priority=1)\ndef wins(text): ...\n"
        )
        done = run_hookery("check", "--hook", "two", folder=folder)
        assert done.stdout.splitlines()[-1] == "2 hooks, 0 would not be applied, 1 skipped"

    def test_a_check_of_nothing_is_no_success(self, folder: Path) -> None:
        done = run_hookery("check", folder=folder, environment={"HOOKERY_PLUGINS": ""}, status=1)
        assert "nothing to check" in done.stdout


def test_without_a_command_it_says_which_there_are(folder: Path) -> None:
    assert "COMMAND" in run_hookery(folder=folder, status=2).stderr
    help_text = run_hookery("--help", folder=folder).stdout
    assert all(command in help_text for command in ("run", "list", "ps", "explain", "check"))
    assert "hookery run [--plugin NAME]" in run_hookery("run", "--help", folder=folder).stdout
