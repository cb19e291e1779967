"""Plugins that start processes while `hookery run` loads them: none of these loads the plugin again, nor is one that
has no hooks silent about it."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hookery.support import run_hookery

# Each process that loads the plugin leaves a line. Were each to start the next, this ends it.
PLUGIN = """
    import multiprocessing, os, subprocess, sys
    from hookery import HookType, plugin_hook

    with open({record!r}, "a+") as record:
        print(os.getpid(), file=record, flush=True)
        record.seek(0)
        if len(record.readlines()) > 8:
            os._exit(99)

    {start}

    @plugin_hook("shop.price", HookType.AFTER)
    def loud(result, item):
        return result + "!"
"""
ASK = "import shop; print(shop.price('{}'), flush=True)"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program under `hookery run` with a plugin that does `start` while it is imported; returns how it ended,
    after checking how many processes have loaded the plugin."""

    def run(start: str, program: str, *, loaded_by: int, status: int = 0, **environment: str) -> object:
        record = tmp_path / "loaded"
        start = textwrap.indent(textwrap.dedent(start), "    ").strip()
        (tmp_path / "busy.py").write_text(textwrap.dedent(PLUGIN.format(record=str(record), start=start)))
        (tmp_path / "shop.py").write_text("def price(item): return item")
        (tmp_path / "program.py").write_text(textwrap.dedent(program))
        done = run_hookery(
            "run",
            "--hook",
            "busy",
            "program.py",
            folder=tmp_path,
            path=[tmp_path],
            status=status,
            environment=environment,
        )
        assert len(record.read_text().split()) == loaded_by, done.stderr
        return done

    return run


def test_a_lock_whose_resource_tracker_is_a_python_too(run: Run) -> None:
    done = run("lock = multiprocessing.get_context('spawn').Lock()", ASK.format("tea"), loaded_by=1)
    assert (done.stdout, done.stderr) == ("tea!\n", "")


@pytest.mark.parametrize(
    "start",
    [
        f"os.spawnv(os.P_WAIT, sys.executable, [sys.executable, '-c', {ASK.format('probe')!r}])",
        f"subprocess.run([sys.executable, '-c', {ASK.format('probe')!r}], env={{**os.environ, 'MORE': '1'}})",
    ],
    ids=["by a fork", "with an environment of its own"],
)
def test_another_python_says_that_it_has_no_hooks(run: Run, start: str) -> None:
    done = run(start, ASK.format("tea"), loaded_by=1)
    assert done.stdout == "probe\ntea!\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("hookery run: no hooks in process ")
    assert "it comes from a plugin that process " in line
    assert "let the plugin start it, and take its environment, in a function that is called later" in line


def test_where_hooks_must_not_be_lost_it_ends(run: Run) -> None:
    start = f"print(subprocess.run([sys.executable, '-c', {ASK.format('probe')!r}]).returncode, flush=True)"
    assert run(start, ASK.format("tea"), loaded_by=1, HOOKERY_STRICT="1").stdout == "2\ntea!\n"


def test_what_is_started_once_it_is_loaded_has_hooks(run: Run) -> None:
    done = run(
        f"def later(): subprocess.run([sys.executable, '-c', {ASK.format('child')!r}])",
        """
        import busy, os
        print("HOOKERY_RUN_LOADING" in os.environ, flush=True)
        busy.later()
        """,
        loaded_by=2,
    )
    assert (done.stdout, done.stderr) == ("False\nchild!\n", "")


@pytest.mark.parametrize(("method", "loaded_by"), [("spawn", 3), ("forkserver", 3), ("fork", 2)])
def test_children_of_multiprocessing(run: Run, method: str, loaded_by: int) -> None:
    """One is started by the plugin; the program's later one has its hooks, and so has a Python that this one starts."""
    done = run(
        f"""
        if multiprocessing.parent_process() is None:
            child = multiprocessing.get_context({method!r}).Process(target=os.getpid)
            child.start()
            child.join()
            assert child.exitcode == 0
        """,
        f"""
        import multiprocessing, subprocess, sys
        import shop

        def ask():
            started = [sys.executable, "-c", "import shop; print(shop.price('and its own'))"]
            return shop.price("child"), subprocess.run(started, capture_output=True, text=True).stdout

        if __name__ == "__main__":
            with multiprocessing.get_context({method!r}).Pool(1) as pool:
                print(*pool.apply(ask), end="")
        """,
        loaded_by=loaded_by,
    )
    assert (done.stdout, done.stderr) == ("child! and its own!\n", "")


def test_what_a_child_starts_that_a_plugin_has_started_says_so_too(run: Run) -> None:
    done = run(
        f"""
        if multiprocessing.parent_process() is None:
            command = [sys.executable, "-c", {ASK.format("probe")!r}]
            child = multiprocessing.get_context("fork").Process(target=subprocess.run, args=(command,))
            child.start()
            child.join()
        """,
        ASK.format("tea"),
        loaded_by=1,
    )
    assert done.stdout == "probe\ntea!\n"
    assert done.stderr.count("hookery run: no hooks in process ") == 1


def test_a_fork_that_goes_on_as_the_program(run: Run) -> None:
    done = run(
        """
        if "FORKED" not in os.environ:
            os.environ["FORKED"] = "1"
            child = os.fork()
            if child:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        f"""
        import subprocess, sys
        subprocess.run([sys.executable, "-c", {ASK.format("child")!r}])
        """,
        loaded_by=2,
    )
    assert (done.stdout, done.stderr) == ("child!\n", "")


def test_a_process_that_replaces_itself_is_still_the_program(run: Run) -> None:
    done = run(
        """
        if "AGAIN" not in os.environ:
            os.execve(sys.executable, sys.orig_argv, {**os.environ, "AGAIN": "1"})
        """,
        ASK.format("tea"),
        loaded_by=2,
    )
    assert (done.stdout, done.stderr) == ("tea!\n", "")


def test_a_run_within_it_is_refused(run: Run) -> None:
    start = """
        command = [sys.executable, "-m", "hookery", "run", "program.py"]
        print(subprocess.run(command).returncode, flush=True)
    """
    done = run(start, ASK.format("tea"), loaded_by=1)
    assert done.stdout == "2\ntea!\n"
    assert "program.py cannot be started with hooks: it comes from a plugin that process" in done.stderr
