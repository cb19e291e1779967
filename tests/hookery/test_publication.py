"""What processes say about their hooks, and that it is true: while they live, when they end, when they are killed."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from hookery import asking, state_files
from hookery.listing import HookRecord
from hookery.state_files import PublishedProcess, StateFolderError, read_processes
from tests.hookery.support import environment_of

# Runs one piece of code after the other, when the test wants it to.
INTERPRETER = """
import sys
import hookery
from hookery import HookType

def note(*args, **kwargs): ...
def register(target, type=HookType.BEFORE, **options):
    hookery.registry.register(target, note, type, **options)

for line in sys.stdin:
    exec(line.replace("\\x00", "\\n"), globals())
    print("done", flush=True)
"""


class Program:
    """A process of its own."""

    def __init__(self, folder: Path, settings: dict[str, str], options: tuple[str, ...] = ("-W", "error")) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", INTERPRETER],
            cwd=folder,
            env=environment_of([folder], settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, code: str) -> Program:
        """Run code and return when it has run."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(textwrap.dedent(code).strip().replace("\n", "\x00") + "\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        assert said == "done\n", said + self.process.communicate()[1]
        return self

    def end(self) -> str:
        """Let it end by itself, and return what it wrote to standard error."""
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return errors

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


Start = Callable[..., Program]


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the state files of this test, which does not exist yet."""
    monkeypatch.setenv("HOOKERY_STATE_DIR", str(tmp_path / "states"))
    return tmp_path / "states"


@pytest.fixture
def start(states: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[Program] = []

    def start(**settings: str) -> Program:
        started.append(Program(tmp_path, {"HOOKERY_PLUGINS": "", **settings}))
        return started[-1]

    yield start
    for program in started:
        program.kill()


def published(*, ended: bool = False) -> dict[int, PublishedProcess]:
    found, unreadable = read_processes(ended=ended)
    assert unreadable == []
    return {process.pid: process for process in found}


def hooks_of(process: PublishedProcess) -> dict[str, HookRecord]:
    return {record.target: record for record in process.records}


def states_of(pid: int) -> dict[str, str]:
    return {target: record.state for target, record in hooks_of(published()[pid]).items()}


class TestALiveProcess:
    def test_says_what_is_applied_pending_and_missed(self, start: Start) -> None:
        program = start(HOOKERY_COUNT="1")
        program.run("import textwrap, warnings; warnings.simplefilter('ignore')")
        program.run("for name in ('textwrap.dedent', 'textwrap.nothing', 'wsgiref.util.guess_scheme'): register(name)")
        program.run("hookery.registry.apply_hooks()")
        assert states_of(program.pid) == {
            "textwrap.dedent": "applied",
            "textwrap.nothing": "missed",
            "wsgiref.util.guess_scheme": "pending",
        }
        process = published()[program.pid]
        assert process.role == f"{Path(sys.executable).name} -c"
        assert process.command == (sys.executable, "-W", "error", "-c", INTERPRETER)
        assert process.parent == os.getpid()
        assert process.ended_at is None

    def test_says_all_that_it_would_say_itself(self, start: Start) -> None:
        program = start().run("import json, textwrap, warnings; warnings.simplefilter('ignore')")
        program.run("""
            from hookery import HookSource, state_files
            class Text(textwrap.TextWrapper):
                def wrap(self, text): return []
            def fail(result, *args, **kwargs): raise OSError("full")
            register('textwrap.dedent', reason='to see', priority=2, count=True)
            register('textwrap.fill', source=HookSource('mine', 'dist', '1'))
            register('textwrap.indent', HookType.REPLACE); register('wsgiref.util.guess_scheme')
            register('textwrap.TextWrapper.wrap'); register('textwrap.nothing')
            hookery.registry.register('textwrap.shorten', fail, HookType.AFTER, on_error='warn')
            hookery.registry.register('textwrap.TextWrapper', Text, HookType.REPLACE)
            hookery.registry.register('json.dumps', lambda *args, **kwargs: None, HookType.BEFORE)
            hookery.registry.apply_hooks()
            textwrap.dedent(''); textwrap.shorten('tea', 10)
            hookery.registry.revert('textwrap.fill')
            hookery.publish(unreached=False)
            """)
        program.run("""
            (process,), unreadable = state_files.read_processes()
            assert list(process.records) == hookery.applied_hooks(), (process.records, hookery.applied_hooks())
            assert len(process.records) == 9 and not unreadable
            """)

    def test_says_when_something_changes(self, start: Start) -> None:
        program = start().run("register('textwrap.dedent'); register('wsgiref.util.guess_scheme')")
        program.run("import textwrap; hookery.registry.apply_hooks()")
        program.run("import wsgiref.util")
        assert states_of(program.pid) == {"textwrap.dedent": "applied", "wsgiref.util.guess_scheme": "applied"}
        program.run("hookery.registry.revert('textwrap.dedent')")
        assert states_of(program.pid)["textwrap.dedent"] == "reverted"
        program.run("register('textwrap.shorten'); hookery.registry.apply_hooks()")
        assert states_of(program.pid)["textwrap.shorten"] == "applied"
        program.run("hookery.registry.reset()")
        assert states_of(program.pid) == {}

    def test_says_what_the_program_says_of_a_hook(self, start: Start) -> None:
        program = start().run("import textwrap; register('textwrap.dedent'); hookery.registry.apply_hooks()")
        program.run("hookery.add_note(hookery.registry.hooks()[0], 'runs at start only')")
        assert hooks_of(published()[program.pid])["textwrap.dedent"].notes == ("runs at start only",)

    def test_says_nothing_without_hooks(self, start: Start, states: Path) -> None:
        start().run("hookery.load_plugins()")
        assert published() == {}
        assert not states.exists()

    def test_says_nothing_of_registries_that_are_not_the_process_s(self, start: Start) -> None:
        program = start().run("import textwrap; mine = hookery.HookRegistry()")
        program.run("mine.register('textwrap.dedent', note, HookType.BEFORE); mine.apply_hooks()")
        assert published() == {}

    def test_says_nothing_if_it_is_told_to(self, start: Start, states: Path) -> None:
        start(HOOKERY_PUBLISH="0").run("register('textwrap.dedent'); hookery.registry.apply_hooks()")
        assert not states.exists()

    def test_says_whether_hooks_ran_and_who_is_not_reached_when_it_publishes(self, start: Start) -> None:
        program = start().run("import sys, textwrap, types; shop = sys.modules['shop'] = types.ModuleType('shop')")
        program.run("shop.table = [textwrap.dedent]; register('textwrap.dedent', count=True)")
        program.run("hookery.registry.apply_hooks(); textwrap.dedent('')")
        before = hooks_of(published()[program.pid])["textwrap.dedent"]
        assert (before.ran, before.calls, before.unreached) == (False, 0, None)
        program.run("hookery.publish(role='worker 7')")
        process = published()[program.pid]
        after = hooks_of(process)["textwrap.dedent"]
        assert (process.role, after.ran, after.calls, after.unreached) == ("worker 7", True, 1, ("shop.table[0]",))

    def test_its_history_does_not_grow_for_ever(self, start: Start, states: Path) -> None:
        program = start().run("from hookery import publication; publication.REWRITE_BYTES = 20_000")
        program.run("import textwrap; register('textwrap.dedent'); hookery.registry.apply_hooks()")
        program.run("""
            for _ in range(100):
                hookery.registry.revert('textwrap.dedent')
                register('textwrap.dedent')
                hookery.registry.apply_hooks()
            """)
        (file,) = states.iterdir()
        assert file.stat().st_size < 25_000
        assert states_of(program.pid) == {"textwrap.dedent": "applied"}

    def test_files_that_somebody_has_removed_come_back(self, start: Start, states: Path) -> None:
        program = start().run("import textwrap; register('textwrap.dedent'); hookery.registry.apply_hooks()")
        shutil.rmtree(states)
        assert published() == {}
        program.run("register('textwrap.shorten'); hookery.registry.apply_hooks()")
        assert set(states_of(program.pid)) == {"textwrap.dedent", "textwrap.shorten"}

    def test_from_several_threads_the_last_word_is_the_truth(self, start: Start) -> None:
        program = start().run("import textwrap, threading; names = ['dedent', 'fill', 'indent', 'shorten']")
        program.run("""
            def work(name):
                for _ in range(25):
                    register(f'textwrap.{name}'); hookery.registry.apply_hooks()
                    hookery.registry.revert(f'textwrap.{name}')
                register(f'textwrap.{name}'); hookery.registry.apply_hooks()
            threads = [threading.Thread(target=work, args=[name]) for name in names]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            """)
        assert states_of(program.pid) == dict.fromkeys(
            ["textwrap.dedent", "textwrap.fill", "textwrap.indent", "textwrap.shorten"], "applied"
        )


APPLY = "import os, textwrap; register('textwrap.dedent'); hookery.registry.apply_hooks()"


class TestTheEndOfAProcess:
    def test_leaves_what_ran(self, start: Start) -> None:
        program = start().run(APPLY).run("register('textwrap.fill'); hookery.registry.apply_hooks()")
        program.run("textwrap.dedent('')").end()
        assert published() == {}
        process = published(ended=True)[program.pid]
        assert process.ended_at is not None
        assert {target: record.ran for target, record in hooks_of(process).items()} == {
            "textwrap.dedent": True,
            "textwrap.fill": False,
        }

    def test_by_kill_leaves_nothing_that_a_reader_shows_or_keeps(self, start: Start, states: Path) -> None:
        program = start().run(APPLY)
        program.kill()
        assert list(states.iterdir()) != []
        assert published(ended=True) == {}
        assert list(states.iterdir()) == []

    def test_a_zombie_has_ended(self, start: Start) -> None:
        program = start().run(APPLY)
        os.kill(program.pid, signal.SIGKILL)
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert published() == {}

    def test_another_process_with_its_number_is_not_taken_for_it(self, start: Start, states: Path) -> None:
        program = start().run(APPLY)
        (file,) = states.iterdir()
        space, pid, started = file.stem.split("-")
        file.rename(states / f"{space}-{pid}-{int(started) - 1}.jsonl")
        assert published() == {}
        assert list(states.iterdir()) == []
        program.run("hookery.publish()")
        assert program.pid in published()

    def test_nor_is_one_that_is_given_its_number_while_the_files_are_read(
        self, start: Start, states: Path, mocker: MockerFixture
    ) -> None:
        start().run(APPLY)
        (file,) = states.iterdir()
        space, pid, started = file.stem.split("-")
        earlier = str(int(started) - 1)
        (states / f"{space}-{pid}-{earlier}.jsonl").write_text(
            file.read_text().replace(f'"start": {started}', f'"start": {earlier}')
        )
        file.unlink()
        # What has been seen to be the file of a living process is read when that has ended.
        mocker.patch.object(state_files, "remove_litter", side_effect=lambda directory, names: names)
        assert published() == {}

    def test_a_process_that_has_the_number_of_a_dead_one_has_no_hooks_to_be_listed(
        self, start: Start, states: Path, tmp_path: Path
    ) -> None:
        program = start().run(APPLY)
        (file,) = states.iterdir()
        program.kill()
        space, _, started = file.stem.split("-")
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            said = file.read_text().replace(f'"pid": {program.pid}', f'"pid": {other.pid}')
            file.unlink()
            (states / f"{space}-{other.pid}-{started}.jsonl").write_text(said)
            command = [sys.executable, "-m", "hookery", "list", "--process", str(other.pid)]
            listed = subprocess.run(
                command, env=environment_of([], {}), cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert (listed.returncode, listed.stdout) == (1, "")
            assert f"process {other.pid} has no hooks that can be seen here" in listed.stderr
            assert list(states.iterdir()) == []
            other.communicate(b"\n")

    def test_another_program_in_its_place_does_not_have_its_hooks(self, start: Start) -> None:
        program = start().run(APPLY)
        assert program.process.stdin is not None
        program.process.stdin.write("os.execv('/bin/sh', ['sh', '-c', 'echo other; read line'])\n")
        program.process.stdin.flush()
        assert program.process.stdout is not None
        assert program.process.stdout.readline() == "other\n"
        assert published() == {}

    def test_the_ended_are_a_fixed_number_of_files(self, start: Start, states: Path) -> None:
        for _ in range(3):
            start().run("from hookery import state_files; state_files.ENDED_FILES = 1").run(APPLY).end()
        assert len(list(states.iterdir())) == 1

    def test_files_of_another_namespace_are_left_alone(self, start: Start, states: Path) -> None:
        program = start().run(APPLY)
        (file,) = states.iterdir()
        other = states / ("1-" + file.name.partition("-")[2])
        file.rename(other)
        program.kill()
        assert published() == {}
        assert other.exists()


class TestForks:
    def test_a_forked_child_is_a_process_of_its_own(self, start: Start) -> None:
        program = start().run(APPLY).run("reads, writes = os.pipe(); child_reads, child_writes = os.pipe()")
        program.run("""
            child = os.fork()
            if child == 0:
                os.write(child_writes, b"x"); os.read(reads, 1); os._exit(0)
            os.read(child_reads, 1)
            hookery.registry.register("os.getpid", note, HookType.BEFORE)
            """)
        (child,) = published().keys() - {program.pid}
        assert published()[child].parent == program.pid
        assert states_of(child) == {"textwrap.dedent": "applied"}
        program.run("os.write(writes, b'x'); os.waitpid(child, 0)")
        assert set(published()) == {program.pid}

    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    def test_children_of_multiprocessing_say_what_ran(self, tmp_path: Path, states: Path, method: str) -> None:
        (tmp_path / "prog.py").write_text(
            textwrap.dedent(f"""
            import multiprocessing as mp, textwrap
            import hookery
            from hookery import HookType

            def note(*args, **kwargs): ...

            hookery.registry.register("textwrap.dedent", note, HookType.BEFORE)
            hookery.registry.apply_hooks()

            if __name__ == "__main__":
                child = mp.get_context({method!r}).Process(target=textwrap.dedent, args=[""], name="helper")
                child.start()
                child.join()
                print(child.pid)
            """)
        )
        done = subprocess.run(
            [sys.executable, "prog.py"], cwd=tmp_path, env=environment_of([tmp_path]), capture_output=True, text=True
        )
        assert done.stderr == ""
        child = published(ended=True)[int(done.stdout)]
        assert (child.role, [record.ran for record in child.records]) == ("helper", [True])

    def test_two_hundred_at_once(self, start: Start) -> None:
        program = start().run(APPLY).run("reads, writes = os.pipe(); ready, say = os.pipe()")
        program.run("""
            children = []
            for _ in range(200):
                pid = os.fork()
                if pid == 0:
                    os.close(writes); os.write(say, b"x"); os.read(reads, 1)
                    from hookery import publication; publication._end(); os._exit(0)
                children.append(pid)
            for _ in children: os.read(ready, 1)
            """)
        assert len(published()) == 201
        program.run("os.close(writes)").run("for pid in children: os.waitpid(pid, 0)")
        assert set(published()) == {program.pid}
        assert len(published(ended=True)) == 201

    def test_reading_while_processes_come_and_go(self, start: Start) -> None:
        program = start().run(APPLY)
        program.run("""
            parent = os.fork()
            if parent == 0:
                for _ in range(100):
                    if os.fork() == 0: os._exit(0)
                    os.wait()
                os._exit(0)
            """)
        looks = 0
        while os.path.exists(f"/proc/{program.pid}") and looks < 200:
            assert program.pid in published()
            looks += 1
        program.run("os.waitpid(parent, 0)")
        assert set(published()) == {program.pid}


class TestAsking:
    def test_a_process_that_listens_says_what_is_so_now(self, start: Start) -> None:
        program = start(HOOKERY_SIGNAL="SIGUSR2").run(APPLY).run("textwrap.dedent('')")
        process = published()[program.pid]
        assert process.signal == signal.SIGUSR2
        assert asking.ask([process], seconds=60) == set()
        (record,) = published()[program.pid].records
        assert (record.ran, record.unreached) == (True, ())

    def test_one_that_waits_in_a_system_call_goes_on_waiting(self, start: Start) -> None:
        program = start(HOOKERY_SIGNAL="USR2").run(APPLY)
        assert asking.ask(published().values(), seconds=60) == set()
        program.run("pass").end()

    def test_one_that_does_not_listen_is_not_signalled(self, start: Start) -> None:
        program = start().run(APPLY)
        assert asking.ask(published().values()) == set()
        program.run("pass")

    def test_a_handler_of_the_program_stays(self, start: Start) -> None:
        program = start(HOOKERY_SIGNAL="SIGUSR2").run("import signal, warnings; warnings.simplefilter('default')")
        program.run("mine = lambda *args: None; signal.signal(signal.SIGUSR2, mine)").run(APPLY)
        program.run("assert signal.getsignal(signal.SIGUSR2) is mine")
        assert published()[program.pid].signal is None
        assert "SIGUSR2 is not answered: the program has a handler for it" in program.end()

    def test_a_process_that_has_let_go_of_the_signal_is_not_ended_by_it(self, start: Start) -> None:
        program = start(HOOKERY_SIGNAL="SIGUSR2").run(APPLY)
        program.run("import signal; signal.signal(signal.SIGUSR2, signal.SIG_DFL)")
        assert asking.ask(published().values()) == set()
        program.run("pass")

    def test_a_signal_that_there_is_not(self, start: Start) -> None:
        assert "'SIGNOTHING', which is not the name of a signal" in start(HOOKERY_SIGNAL="SIGNOTHING").run(APPLY).end()

    def test_a_signal_that_nobody_can_answer(self, start: Start) -> None:
        program = start(HOOKERY_SIGNAL="SIGKILL").run(APPLY)
        assert published()[program.pid].signal is None
        assert "SIGKILL cannot be answered: Invalid argument; name another signal" in program.end()

    def test_during_its_own_work_it_answers_afterwards(self, start: Start) -> None:
        program = start(HOOKERY_SIGNAL="SIGUSR2").run(APPLY)
        program.run("""
            import signal
            from hookery import publication
            textwrap.dedent('')
            with publication._lock:
                signal.raise_signal(signal.SIGUSR2)
                assert publication._state.asked_meanwhile
            publication.changed(hookery.registry)
            """)
        assert published()[program.pid].records[0].ran is True


class TestTheFolder:
    def test_it_and_its_files_are_the_users_alone(self, start: Start, states: Path) -> None:
        start().run("import os; os.umask(0)").run(APPLY)
        (file,) = states.iterdir()
        assert stat.S_IMODE(states.stat().st_mode) == 0o700
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    @pytest.mark.parametrize("squat", ["open", "link", "file", "foreign"])
    def test_what_is_not_the_users_own_is_refused(self, start: Start, states: Path, tmp_path: Path, squat: str) -> None:
        if squat == "link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            states.symlink_to(tmp_path / "elsewhere")
        elif squat == "file":
            states.touch()
        else:
            states.mkdir(mode=0o700)
            states.chmod(0o777 if squat == "open" else 0o700)
        if squat == "foreign":
            if os.geteuid() != 0:
                pytest.skip("only root can make what belongs to another user")
            os.chown(states, 12345, -1)
        before = list(tmp_path.rglob("*"))
        program = start().run(APPLY).run("register('textwrap.fill'); hookery.registry.apply_hooks()")
        said = program.end()
        assert said.count("cannot publish its hooks") == 1
        assert str(states) in said
        assert list(tmp_path.rglob("*")) == before
        with pytest.raises(StateFolderError, match="neither reads nor writes there"):
            read_processes()

    def test_one_that_cannot_be_made_is_warned_about_once(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        missing = str(tmp_path / "missing" / "states")
        program = start(HOOKERY_STATE_DIR=missing).run(APPLY)
        program.run("register('textwrap.fill'); hookery.registry.apply_hooks()")
        program.run("assert {hook.state.value for hook in hookery.registry.hooks()} == {'applied'}")
        assert program.end().count("cannot publish its hooks") == 1
        monkeypatch.setenv("HOOKERY_STATE_DIR", missing)
        assert read_processes() == ([], [])

    def test_a_full_or_read_only_disk_is_warned_about_once(self, start: Start, states: Path) -> None:
        program = start().run("import hookery.state_files, errno")
        program.run("""
            def refuse(*args, **kwargs): raise OSError(errno.EROFS, "Read-only file system")
            hookery.state_files.write = refuse
            """)
        program.run(APPLY).run("register('textwrap.fill'); hookery.registry.apply_hooks()")
        assert program.end().count("Read-only file system") == 1

    def test_files_that_are_no_publications(self, start: Start, states: Path, tmp_path: Path) -> None:
        program = start().run(APPLY)
        (file,) = states.iterdir()
        (states / "notes.txt").write_text("mine")
        space = file.name.partition("-")[0]
        (states / f"{space}-ended-1.jsonl").write_text("not json\n")
        (states / f"{space}-ended-2.jsonl").write_text('{"format": 99}\n')
        (states / f"{space}-ended-3.jsonl").write_text("[]\n")
        (states / f"{space}-ended-4.jsonl").symlink_to(file)
        os.mkfifo(states / f"{space}-ended-5.jsonl")
        processes, unreadable = read_processes(ended=True)
        assert [process.pid for process in processes] == [program.pid]
        assert len(unreadable) == 5
        assert any("it has the format 99, this version of hookery reads 2" in what for what in unreadable)
        assert (states / "notes.txt").exists()

    def test_a_change_that_is_being_written_is_not_read_yet(self, start: Start, states: Path) -> None:
        program = start().run(APPLY)
        (file,) = states.iterdir()
        with file.open("a") as half:
            half.write('{"published_at": 1.0, "reco')
        assert states_of(program.pid) == {"textwrap.dedent": "applied"}

    def test_scratch_files_of_the_killed_are_removed(self, start: Start, states: Path) -> None:
        program = start().run(APPLY)
        (file,) = states.iterdir()
        (states / f"{file.stem}.3.tmp").write_text("half")
        assert states_of(program.pid) == {"textwrap.dedent": "applied"}
        program.kill()
        assert published() == {}
        assert list(states.iterdir()) == []

    def test_a_relative_one_stays_where_it_was_at_first(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        program = start(HOOKERY_STATE_DIR="here").run(APPLY).run("import os; os.mkdir('sub'); os.chdir('sub')")
        program.run("register('textwrap.fill'); hookery.registry.apply_hooks()")
        (kept,) = tmp_path.rglob("here")
        monkeypatch.setenv("HOOKERY_STATE_DIR", str(kept))
        assert states_of(program.pid) == {"textwrap.dedent": "applied", "textwrap.fill": "applied"}
        program.run("assert os.environ['HOOKERY_STATE_DIR'] == " + repr(str(kept)))

    def test_without_a_setting_it_is_one_for_all_programs_of_the_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HOOKERY_STATE_DIR", raising=False)
        monkeypatch.setenv("TMPDIR", "/var/tmp")
        assert state_files.folder() == f"/tmp/hookery-{os.geteuid()}"
