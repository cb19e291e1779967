"""`hookery run`: a program, and every Python that it starts, has the hooks, and is otherwise what it always was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import venv
from pathlib import Path
from typing import Any

import pytest

from hookery import command_lines
from tests.hookery.support import environment_of, run_hookery, start_python
from tests.plugin_distributions import PLUGINS, install_plugin

HOOKS = """
    from hookery import HookType, plugin_hook

    @plugin_hook("textwrap.dedent", HookType.AFTER)
    def sign(result, *args, **kwargs):
        return result + "+"
"""
WHAT_IT_IS = """
    import json, sys
    main = sys.modules["__main__"]
    print(json.dumps({
        "argv": sys.argv, "path": sys.path, "name": __name__, "file": globals().get("__file__"),
        "spec": getattr(__spec__, "name", None), "package": __package__, "flags": list(sys.flags),
        "site": getattr(sys.modules.get("sitecustomize"), "__file__", None), "executable": sys.executable,
        "main": vars(main) is globals(),
    }))
"""


def write(folder: Path, **sources: str) -> None:
    for name, source in sources.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The current folder, with a module of hooks in it; what is elsewhere is in `tmp_path` beside it."""
    made = tmp_path / "here"
    made.mkdir()
    write(made, my_hooks=HOOKS)
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two distributions of plugins in it."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("stdlib_plugin", "stdlib_plugin_twin"):
        install_plugin(PLUGINS / name, folder)
    return folder


class TestTheProgramIsWhatItAlwaysWas:
    @pytest.fixture
    def programs(self, folder: Path) -> Path:
        write(folder, prog=WHAT_IT_IS, pkg__tool=WHAT_IT_IS)
        (folder / "pkg" / "__init__.py").touch()
        (folder / "app").mkdir()
        (folder / "app" / "__main__.py").write_text(textwrap.dedent(WHAT_IT_IS))
        (folder / "odd name").write_text(textwrap.dedent(WHAT_IT_IS))
        shutil.make_archive(str(folder / "zipped"), "zip", folder / "app")
        (folder / "zipped.zip").rename(folder / "zipped.pyz")
        return folder

    @pytest.mark.parametrize(
        "command",
        [
            ["prog.py", "--flag", "a b", "--"],
            ["./prog.py"],
            ["app", "x"],
            ["zipped.pyz"],
            ["odd name"],
            ["-m", "pkg.tool", "-v"],
            ["-c", textwrap.dedent(WHAT_IT_IS), "-x"],
        ],
        ids=lambda command: Path(command[-1]).name if "\n" not in command[1:2] else "-c",
    )
    def test_as_it_sees_itself(self, programs: Path, command: list[str]) -> None:
        plainly = subprocess.run(
            [sys.executable, *command], cwd=programs, env=environment_of([]), capture_output=True, text=True, check=True
        )
        expected = json.loads(plainly.stdout)
        found = json.loads(run_hookery("run", "--hook", "my_hooks", *command, folder=programs).stdout)
        assert found.pop("path") in ([*expected["path"], str(programs)], expected["path"])
        assert expected.pop("path")
        assert found == expected

    @pytest.mark.parametrize(
        ("end", "status"),
        [
            ("sys.exit(7)", 7),
            ("raise ValueError('mine')", 1),
            ("os._exit(3)", 3),
            ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ],
    )
    def test_its_end_is_its_own(self, folder: Path, end: str, status: int) -> None:
        write(folder, prog=f"import os, signal, sys\n{end}")
        run_hookery("run", "--hook", "my_hooks", "prog.py", folder=folder, status=status)

    def test_it_is_the_process_that_was_started(self, folder: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "hookery", "run", "--hook", "my_hooks", "-c", "import os; print(os.getpid())"],
            cwd=folder,
            env=environment_of([]),
            stdout=subprocess.PIPE,
            text=True,
        )
        out, _ = process.communicate(timeout=60)
        assert int(out) == process.pid

    def test_its_standard_input_is_its_own(self, folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "hookery", "run", "--hook", "my_hooks", "python"],
            input="import textwrap; print(textwrap.dedent('read'))",
            cwd=folder,
            env=environment_of([]),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == "read+\n"

    def test_other_programs_know_nothing_of_it(self, folder: Path) -> None:
        code = "import sys; print('hookery' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment_of([folder]), capture_output=True, text=True
        )
        assert done.stdout == "False\n"


class TestTheUsersOwnSitecustomize:
    PROGRAM = """
        import sys, textwrap
        module = sys.modules.get("sitecustomize")
        print(textwrap.dedent("x"), getattr(module, "MINE", None), any("bootstrap" in entry for entry in sys.path))
    """

    def test_it_runs_and_is_the_one_that_is_seen(self, folder: Path, tmp_path: Path) -> None:
        write(folder, prog=self.PROGRAM)
        write(tmp_path / "own", sitecustomize="MINE = __file__")
        done = run_hookery("run", "--hook", "my_hooks", "prog.py", folder=folder, path=[tmp_path / "own"])
        assert done.stdout == f"x+ {tmp_path / 'own' / 'sitecustomize.py'} False\n"

    def test_without_one_there_is_none(self, folder: Path) -> None:
        write(folder, prog=self.PROGRAM)
        done = run_hookery("run", "--hook", "my_hooks", "prog.py", folder=folder)
        assert (done.stdout, done.stderr) == ("x+ None False\n", "")

    def test_one_that_fails_is_python_s_affair(self, folder: Path, tmp_path: Path) -> None:
        write(folder, prog=self.PROGRAM)
        write(tmp_path / "own", sitecustomize="raise RuntimeError('mine')")
        plainly = subprocess.run(
            [sys.executable, "prog.py"],
            cwd=folder,
            env=environment_of([tmp_path / "own"]),
            capture_output=True,
            text=True,
        )
        done = run_hookery("run", "--hook", "my_hooks", "prog.py", folder=folder, path=[tmp_path / "own"])
        assert done.stdout == "x+ None False\n"
        assert "RuntimeError: mine" in plainly.stderr
        assert done.stderr == plainly.stderr * 2  # the command itself is a Python with a sitecustomize too


class TestAModuleThatIsTheProgram:
    """`python -m module` runs a module's code as `__main__`: what it defines is not what an import would give."""

    TOOL = """
        {first}
        def work(): return "done"
        class Worker:
            def work(self): return "work"
        if {guard}:
            print(work(), Worker().work())
    """
    HOOKS = """
        from hookery import HookType, plugin_hook
        {first}

        @plugin_hook("pkg.tool.work", HookType.AFTER)
        @plugin_hook("pkg.tool:Worker.work", HookType.AFTER)
        def sign(result, *args):
            return result + "+"
    """

    @pytest.mark.parametrize("first", ["", "import pkg.tool"])
    @pytest.mark.parametrize("guard", ['__name__ == "__main__"', "'__main__' == __name__"])
    @pytest.mark.filterwarnings("ignore")
    def test_its_own_functions_are_hooked(self, folder: Path, first: str, guard: str) -> None:
        write(folder, pkg__tool=self.TOOL.format(first="", guard=guard), tool_hooks=self.HOOKS.format(first=first))
        done = run_hookery("run", "--hook", "tool_hooks", "-m", "pkg.tool", folder=folder)
        assert done.stdout == "done+ work+\n"

    def test_where_that_cannot_be_it_is_said(self, folder: Path) -> None:
        write(folder, pkg__tool=self.TOOL.format(first="", guard="True"), tool_hooks=self.HOOKS.format(first=""))
        done = run_hookery("run", "--hook", "tool_hooks", "-m", "pkg.tool", folder=folder)
        assert done.stdout == "done work\n"
        assert "pkg.tool is run as the program, and hooks cannot be put on what it defines" in done.stderr

    def test_lines_of_its_errors_are_its_own(self, folder: Path) -> None:
        tool = textwrap.dedent(self.TOOL).format(first="", guard='__name__ == "__main__"') + "    raise ValueError\n"
        write(folder, pkg__tool=tool, tool_hooks=self.HOOKS.format(first=""))
        done = run_hookery("run", "--hook", "tool_hooks", "-m", "pkg.tool", folder=folder, status=1)
        raises = (folder / "pkg" / "tool.py").read_text().rstrip().count("\n") + 1
        assert f'tool.py", line {raises}, in <module>' in done.stderr

    @pytest.mark.parametrize(
        ("start", "name"),
        [
            (["-m", "tool"], "tool"),
            (["-m", "tool"], "__main__"),
            (["tool.py"], "tool"),
            (["tool.py"], "__main__"),
            (["."], "__main__"),
        ],
    )
    def test_hooks_on_what_it_defines_under_either_name(self, folder: Path, start: list[str], name: str) -> None:
        source = """
            import multiprocessing, other  # other is waited for: its import must not make hooks on this one be missed
            def work(): return "done"
            def ask(): return work(), other.work()
            if __name__ == "__main__":
                import hookery
                print(ask(), [(r.target, r.state, r.ran) for r in hookery.applied_hooks()])
                assert hookery.registry.never_imported() == hookery.registry.problems() == []
                if __spec__ is None or __spec__.name != "__main__":  # multiprocessing leaves that one out
                    with multiprocessing.get_context("spawn").Pool(1) as pool:
                        print(pool.apply(ask))
        """
        hooks = f"""
            from hookery import HookType, plugin_hook

            @plugin_hook("{name}.work", HookType.AFTER)
            @plugin_hook("other.work", HookType.AFTER)
            def sign(result): return result + "+"
        """
        file = {".": "__main__"}.get(start[0], "tool")
        write(folder, other='def work(): return "other"', tool_hooks=hooks)
        (folder / f"{file}.py").write_text(textwrap.dedent(source))
        done = run_hookery("run", "--hook", "tool_hooks", *start, folder=folder)
        rows = [("other.work", "applied", True), (f"{name}.work", "applied", True)]
        answer = ("done+", "other+")
        assert done.stdout == f"{answer} {rows}\n" + f"{answer}\n" * (start != ["."])
        assert done.stderr == ""

    def test_a_script_with_hooks_on_it_is_what_it_always_was(self, folder: Path) -> None:
        source = (
            textwrap.dedent(WHAT_IT_IS) + 'def work(): pass\nif __name__ == "__main__":\n    raise ValueError("mine")\n'
        )
        (folder / "prog.py").write_text(source)
        write(folder, prog_hooks="from hookery import plugin_hook\n@plugin_hook('prog.work')\ndef sign(result): pass")
        plainly = start_python([str(folder / "prog.py"), "-x"], folder=folder.parent)
        done = run_hookery(
            "run", "--hook", "prog_hooks", folder / "prog.py", "-x", folder=folder.parent, path=[folder], status=1
        )
        without_path = [{k: v for k, v in json.loads(each.stdout).items() if k != "path"} for each in (plainly, done)]
        assert without_path[0] == without_path[1]
        assert json.loads(done.stdout)["path"][0] == json.loads(plainly.stdout)["path"][0] == str(folder)
        assert done.stderr.splitlines()[-3:] == plainly.stderr.splitlines()[-3:]

    @pytest.mark.parametrize("strict", [True, False])
    def test_what_a_script_does_not_define_is_missed(self, folder: Path, strict: bool) -> None:
        write(folder, prog='print("first")\nif __name__ == "__main__":\n    print("second")')
        write(
            folder, prog_hooks="from hookery import plugin_hook\n@plugin_hook('__main__.work')\ndef sign(result): pass"
        )
        options = ["--strict"] if strict else []
        done = run_hookery("run", "--hook", "prog_hooks", *options, "prog.py", folder=folder, status=2 if strict else 0)
        assert done.stdout == ("first\n" if strict else "first\nsecond\n")
        assert done.stderr.count("hook target '__main__.work' does not exist: '__main__' has no 'work'") == 1

    def test_a_script_without_a_main_part_says_why_it_cannot_be_hooked(self, folder: Path) -> None:
        write(folder, prog='def work(): return "done"\nprint(work())')
        write(folder, prog_hooks="from hookery import plugin_hook\n@plugin_hook('prog.work')\ndef sign(result): pass")
        done = run_hookery("run", "--hook", "prog_hooks", "prog.py", folder=folder)
        assert done.stdout == "done\n"
        assert "prog is run as the program, and hooks cannot be put on what it defines" in done.stderr
        assert "define what is hooked in a module that it imports" in done.stderr


class TestWhoHasTheHooks:
    def test_children_and_grandchildren_in_other_folders(self, folder: Path) -> None:
        write(
            folder,
            prog="""
            import subprocess, sys, textwrap
            print(textwrap.dedent(f"{len(sys.argv)}"), flush=True)
            if len(sys.argv) < 3:
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "more"], cwd="/", check=True)
            """,
        )
        done = run_hookery("run", "--hook", "my_hooks", folder / "prog.py", folder=folder)
        assert done.stdout == "1+\n2+\n3+\n"

    def test_a_child_whose_path_is_another(self, folder: Path, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere", their_hooks=HOOKS)
        write(
            folder,
            prog=f"""
            import os, subprocess, sys
            path = os.environ["PYTHONPATH"].replace({str(tmp_path / "elsewhere")!r} + os.pathsep, "")
            child = "import sys, textwrap; print(textwrap.dedent('child'), sys.path[-1])"
            subprocess.run([sys.executable, "-c", child], cwd="/", check=True, env={{**os.environ, "PYTHONPATH": path}})
            """,
        )
        done = run_hookery("run", "--hook", "their_hooks", "prog.py", folder=folder, path=[tmp_path / "elsewhere"])
        assert done.stdout == f"child+ {tmp_path / 'elsewhere'}\n"

    def test_a_folder_of_hooks_with_spaces_around_its_name(self, tmp_path: Path) -> None:
        odd = tmp_path / " two words "
        odd.mkdir()
        write(odd, my_hooks=HOOKS)
        program = ["-c", "import textwrap; print(textwrap.dedent('x'))"]
        assert run_hookery("run", "--hook", "my_hooks", *program, folder=odd).stdout == "x+\n"

    @pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
    def test_multiprocessing(self, folder: Path, method: str) -> None:
        write(
            folder,
            prog=f"""
            import multiprocessing, textwrap
            if __name__ == "__main__":
                with multiprocessing.get_context({method!r}).Pool(1) as pool:
                    print(pool.map(textwrap.dedent, ["a"]))
            """,
        )
        assert run_hookery("run", "--hook", "my_hooks", "prog.py", folder=folder).stdout == "['a+']\n"

    def test_a_run_within_a_run_applies_each_hook_once(self, folder: Path) -> None:
        write(
            folder,
            more="""
            from hookery import HookType, plugin_hook

            @plugin_hook("textwrap.dedent", HookType.AFTER)
            def more(result, *args, **kwargs):
                return result + "*"
            """,
        )
        inner = ["run", "--hook", "my_hooks", "--hook", "more", "-c", "import textwrap; print(textwrap.dedent('x'))"]
        done = run_hookery(
            "run", "--hook", "my_hooks", sys.executable, "-m", "hookery", "run", "--hook", "more",
            sys.executable, "-m", "hookery", *inner, folder=folder,
        )  # fmt: skip
        assert done.stdout == "x+*\n"

    def test_installed_plugins_by_name(self, folder: Path, installed: Path) -> None:
        dumps = ["-c", "import json; print(json.dumps(1))"]
        one = run_hookery("run", "--plugin", "by_function", *dumps, folder=folder, path=[installed])
        assert one.stdout == "1+function\n"
        every = run_hookery("run", *dumps, folder=folder, path=[installed])
        assert every.stdout == "1+twin+function+stdlib\n"

    @pytest.mark.parametrize(
        ("outer", "inner", "loaded"),
        [
            ([], [], "+twin+function+stdlib"),  # all that are installed
            ([], ["--plugin=by_function"], "+twin+function+stdlib"),
            (["--plugin=by_function"], [], "+function"),
            (["--plugin=by_function"], ["--plugin=stdlib"], "+twin+function+stdlib"),
            (["--plugin=stdlib"], ["--plugin=stdlib"], "+twin+stdlib"),
        ],
    )
    def test_a_run_within_a_run_has_the_plugins_of_both(
        self, folder: Path, installed: Path, outer: list[str], inner: list[str], loaded: str
    ) -> None:
        program = ["-c", "import json; print(json.dumps(1))"]
        within = [sys.executable, "-m", "hookery", "run", *inner, *program]
        done = run_hookery("run", *outer, *within, folder=folder, path=[installed])
        assert done.stdout == f"1{loaded}\n"

    def test_a_shell_between_them(self, folder: Path) -> None:
        code = 'import textwrap; print(textwrap.dedent("x"))'
        done = run_hookery("run", "--hook", "my_hooks", "sh", "-c", f"{sys.executable} -c '{code}'", folder=folder)
        assert done.stdout == "x+\n"

    def test_many_children_at_once(self, folder: Path) -> None:
        write(
            folder,
            prog="""
            import subprocess, sys
            child = "import sys, textwrap; sys.stdin.read(); print(textwrap.dedent('x'), end='')"
            children = [
                subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                for _ in range(20)
            ]
            print(b"".join(each.communicate()[0] for each in children).decode())
            """,
        )
        assert run_hookery("run", "--hook", "my_hooks", "prog.py", folder=folder).stdout == "x+" * 20 + "\n"


class TestBadInput:
    """Nothing of the program runs, the status is 2 and the message says what to do."""

    @pytest.fixture
    def ran(self, folder: Path) -> Path:
        """The file that exists if the program has run."""
        marker = folder / "ran"
        write(folder, prog=f"open({str(marker)!r}, 'w')", broken="import nothing_like_that")
        write(folder, raising="raise SystemExit(0)")
        write(folder, missing="import textwrap\n" + textwrap.dedent(HOOKS.replace("dedent", "deden")))
        return marker

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "no program to run"),
            (["--hook", "my_hooks"], "no program to run"),
            (["--hook", "my_hooks", "--"], "no program to run"),
            (["--hook", "my_hooks", "nothing.py"], "no program 'nothing.py'"),
            (["--hook", "my_hooks", "nothing"], "no program 'nothing'"),
            (["--hook", "my_hooks", "."], "a folder without a __main__.py"),
            (["--hook", "my_hooks", "-m"], "-m needs a module"),
            (["--hook", "my_hooks", "-u", "prog.py"], "-u is no option of `hookery run`"),
            (["--plugin", "nothing", "prog.py"], "--plugin asks for the plugin 'nothing', which is not installed"),
            (["--hook", "nothing", "prog.py"], "no module 'nothing'"),
            (["--hook", "no/thing", "prog.py"], "not the dotted name of a module"),
            (["--hook", "my_hooks.nothing", "prog.py"], "my_hooks.nothing"),
            (["--hook", "broken", "prog.py"], "No module named 'nothing_like_that'"),
            (["--hook", "raising", "prog.py"], "raising failed to load: SystemExit"),
            (["--hook", "missing", "--strict", "prog.py"], "did you mean 'dedent'"),
            (["--hook"], "expected one argument"),
        ],
    )
    def test_it(self, folder: Path, ran: Path, arguments: list[str], said: str) -> None:
        done = run_hookery("run", *arguments, folder=folder, status=None)
        assert said in done.stderr
        assert (done.returncode, done.stdout, ran.exists()) == (2, "", False)

    def test_a_folder_that_no_list_of_folders_can_hold(self, tmp_path: Path) -> None:
        odd = tmp_path / "one:two"
        odd.mkdir()
        write(odd, my_hooks=HOOKS)
        done = run_hookery("run", "--hook", "my_hooks", "-c", "print('ran')", folder=odd, status=2)
        assert done.stdout == ""
        assert f"no Python can be told to look in {str(odd)!r} for modules" in done.stderr

    def test_a_target_that_does_not_exist_is_warned_about(self, folder: Path, ran: Path) -> None:
        done = run_hookery("run", "--hook", "missing", "prog.py", folder=folder)
        assert "MissedHookWarning" in done.stderr
        assert ran.exists()

    def test_a_child_in_which_the_hooks_fail_ends_so_too(self, folder: Path) -> None:
        write(folder, sometimes="import os\nif 'CHILD' in os.environ: raise OSError('no driver here')")
        write(
            folder,
            prog="""
            import os, subprocess, sys
            os.environ["CHILD"] = "1"
            done = subprocess.run([sys.executable, "-c", "print('ran')"], capture_output=True, text=True)
            print(done.returncode, done.stdout, done.stderr)
            """,
        )
        done = run_hookery("run", "--hook", "sometimes", "prog.py", folder=folder)
        assert done.stdout.startswith("2  hookery run: no hooks in process ")
        assert "OSError: no driver here" in done.stdout

    @pytest.mark.parametrize("option", ["-I", "-S", "-E", "-Bs", "-Es"])
    def test_an_isolated_python(self, folder: Path, ran: Path, option: str) -> None:
        reachable = option == "-Bs"
        done = run_hookery("run", "--hook", "my_hooks", "python", option, "prog.py", folder=folder, status=None)
        assert (done.returncode, ran.exists()) == ((0, True) if reachable else (2, False))
        assert reachable or f"-{option[1]}" in done.stderr

    @pytest.mark.parametrize("interpreter", ["{python} -I", "/usr/bin/env -S python3 -E -u"])
    def test_a_script_that_asks_for_one(self, folder: Path, ran: Path, interpreter: str) -> None:
        script = folder / "tool"
        script.write_text(f"#!{interpreter.format(python=sys.executable)}\nopen({str(ran)!r}, 'w')\n")
        script.chmod(0o755)
        done = run_hookery("run", "--hook", "my_hooks", "./tool", folder=folder, status=2)
        assert "the first line of" in done.stderr
        assert not ran.exists()

    @pytest.mark.parametrize("strict", [False, True])
    def test_a_python_that_hookery_is_not_installed_for(self, folder: Path, tmp_path: Path, strict: bool) -> None:
        venv.create(tmp_path / "bare", symlinks=True)
        write(
            folder,
            prog=f"""
            import os, subprocess
            first = os.environ["PYTHONPATH"].split(os.pathsep)[0]
            bare = {{**os.environ, "PYTHONPATH": first, "HOOKERY_RUN_FOLDERS": ""}}
            done = subprocess.run([{str(tmp_path / "bare/bin/python")!r}, "-c", "print('ran')"], env=bare,
                                  capture_output=True, text=True)
            print(done.returncode, done.stdout, done.stderr)
            """,
        )
        settings = {"HOOKERY_STRICT": "1"} if strict else {}
        done = run_hookery("run", "--hook", "my_hooks", "prog.py", folder=folder, environment=settings)
        assert done.stdout.startswith("2  hookery run: no hooks" if strict else "0 ran\n hookery run: no hooks")
        assert "hookery cannot be imported there" in done.stdout

    def test_settings_that_were_taken_out_of_the_environment(self, folder: Path) -> None:
        write(
            folder,
            prog="""
            import os, subprocess, sys
            kept = {name: value for name, value in os.environ.items() if not name.startswith("HOOKERY_")}
            subprocess.run([sys.executable, "-c", "print('ran')"], env=kept, check=True)
            """,
        )
        done = run_hookery("run", "--hook", "my_hooks", "prog.py", folder=folder)
        assert done.stdout == "ran\n"
        assert "HOOKERY_RUN has been taken out of its environment" in done.stderr

    def test_a_file_that_is_no_program(self, folder: Path) -> None:
        (folder / "data").write_bytes(b"\x7fELF")
        (folder / "data").chmod(0o755)
        done = run_hookery("run", "--hook", "my_hooks", "./data", folder=folder, status=2)
        assert "cannot be executed" in done.stderr


class TestReadingCommandLines:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["prog.py", "-I"], ("script", "prog.py", None)),
            (["-m", "http.server", "-S"], ("-m", "http.server", None)),
            (["-mhttp.server"], ("-m", "http.server", None)),
            (["-Wignore", "-X", "dev", "-IB", "x.py"], ("script", "x.py", "-I")),
            (["-W", "-I", "x.py"], ("script", "x.py", None)),
            (["-uc", "print(1)", "-I"], ("-c", "print(1)", None)),
            (["-ES", "-"], ("", "", "-E")),
            (["--check-hash-based-pycs", "always", "x.py"], ("script", "x.py", None)),
            ([], ("", "", None)),
            (["-u"], ("", "", None)),
            (["-m"], ("-m", "", None)),
        ],
    )
    def test_what_python_runs(self, arguments: list[str], expected: tuple[Any, ...]) -> None:
        found = command_lines.parse(arguments)
        assert (found.how, found.what, found.isolating) == expected

    @pytest.mark.parametrize(
        ("name", "is_one"),
        [("python", True), ("/usr/bin/python3.12", True), ("python3.13t", True), ("pypy3", True), ("pythonic", False)],
    )
    def test_what_is_an_interpreter(self, name: str, is_one: bool) -> None:
        assert command_lines.is_interpreter(name) is is_one

    def test_the_helpers_of_multiprocessing_are_called_what_they_are(self) -> None:
        tracker = ["python", "-s", "-c", "from multiprocessing.resource_tracker import main;main(5)"]
        assert command_lines.short_name(tracker) == "multiprocessing resource tracker"
        server = ["python", "-c", "from multiprocessing.forkserver import main; main(4, 5, ['__main__'])"]
        assert command_lines.short_name(server) == "multiprocessing forkserver"
        assert command_lines.short_name(["python", "-c", "from multiprocessing import Pool"]) == "python -c"
