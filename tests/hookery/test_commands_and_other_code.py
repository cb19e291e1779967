"""What commands do about the code that they import: it ends the program, prints, or is not theirs to judge."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hookery import HookApplyError, HookRegistry, HookSource, HookState, HookType, load_plugins
from tests.hookery.support import Modules, environment_of, run_hookery


def note(*args: object, **kwargs: object) -> None: ...


def write_hooks(folder: Path, *targets: str, name: str = "my_hooks") -> None:
    source = "from hookery import HookType, plugin_hook\n"
    for number, target in enumerate(targets):
        source += f"@plugin_hook({target!r}, HookType.BEFORE)\ndef note{number}(*args, **kwargs): ...\n"
    (folder / f"{name}.py").write_text(source)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOOKERY_STATE_DIR", str(tmp_path / "states"))
    return tmp_path


class TestAModuleThatEndsTheProgram:
    """`sys.exit()` at import is an error of the module like any other."""

    @pytest.fixture
    def exiting(self, folder: Path) -> Path:
        (folder / "exiting.py").write_text("import sys\ndef f(): ...\nsys.exit(0)\n")
        write_hooks(folder, "exiting.f")
        return folder

    def test_a_check_says_so_and_goes_on(self, exiting: Path) -> None:
        write_hooks(exiting, "json.dumsp", name="more_hooks")
        done = run_hookery("check", "--hook", "my_hooks", "--hook", "more_hooks", "--json", folder=exiting, status=1)
        answer = json.loads(done.stdout)
        (error,) = answer["errors"]
        assert "'exiting.f' cannot be resolved" in error
        assert "SystemExit: 0" in error
        kinds = {problem["target"]: problem["kind"] for problem in answer["problems"]}
        assert kinds == {"exiting.f": "undone", "json.dumsp": "missed"}

    def test_a_list_of_what_can_be_imported_says_so(self, exiting: Path) -> None:
        done = run_hookery("list", "--eager", "--hook", "my_hooks", folder=exiting, status=2)
        assert "SystemExit: 0" in done.stderr

    def test_an_explanation_says_so(self, exiting: Path) -> None:
        done = run_hookery("explain", "exiting.f", folder=exiting, path=[exiting], status=1)
        assert "SystemExit: 0" in done.stderr
        assert done.stdout.startswith("exiting.f is pending")

    def test_hooks_of_other_sources_stand(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(exiting="raise SystemExit('no device')", shop="def price(): ...")
        failing = registry.register("exiting.f", note, HookType.BEFORE, source=HookSource("failing"))
        standing = registry.register("shop.price", note, HookType.BEFORE, source=HookSource("standing"))
        with pytest.raises(HookApplyError, match=r"'exiting\.f' .* \(SystemExit: no device\)"):
            load_plugins(names=(), registry=registry, eager=True)
        assert (failing.state, standing.state) == (HookState.REVERTED, HookState.APPLIED)

    @pytest.mark.parametrize("asked", [1, 2])
    def test_a_lazy_attribute_that_does_so(self, modules: Modules, registry: HookRegistry, asked: int) -> None:
        """It is asked for when the name is resolved, and again when the hook is put in place."""
        modules.load(
            "lazy",
            f"""
            asked = []
            def __getattr__(name):
                asked.append(name)
                if name != "f" or asked.count(name) > {asked}:
                    raise SystemExit(3)
                return print
            """,
        )
        registry.register("lazy.f", note, HookType.BEFORE)
        with pytest.raises(HookApplyError, match=r"SystemExit: 3"):
            registry.apply_hooks(eager=True)

    def test_an_interrupt_still_ends_everything(self, modules: Modules, registry: HookRegistry) -> None:
        modules.write(interrupted="raise KeyboardInterrupt")
        registry.register("interrupted.f", note, HookType.BEFORE)
        with pytest.raises(KeyboardInterrupt):
            registry.apply_hooks(eager=True)


class TestAModuleThatPrints:
    """On standard output is the answer alone."""

    NOISY = """
        import atexit, io, sys, warnings

        warnings.warn("noise of a warning", FutureWarning)
        print("noise of a line")
        atexit.register(lambda: print("noise at the end"))
        # As some modules do to be sure of the encoding: the old stream cannot be used any more.
        sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8", line_buffering=True)
        print("noise of another stream")
        kept = sys.stdout
        atexit.register(lambda: print("noise of what was kept", file=kept))

        def f(): ...
    """

    @pytest.fixture
    def noisy(self, folder: Path) -> Path:
        (folder / "noisy.py").write_text(textwrap.dedent(self.NOISY))
        write_hooks(folder, "noisy.f")
        return folder

    COMMANDS = (["list", "--eager"], ["check"], ["explain", "noisy.f"])

    @pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
    def test_its_noise_goes_to_standard_error(self, noisy: Path, command: list[str]) -> None:
        done = run_hookery(*command, "--hook", "my_hooks", "--json", folder=noisy, path=[noisy])
        assert "noisy.f" in json.dumps(json.loads(done.stdout))
        for noise in ("of a warning", "of a line", "of another stream", "of what was kept", "at the end"):
            assert f"noise {noise}\n" in done.stderr, noise
        assert "noise of" not in run_hookery(*command, "--hook", "my_hooks", folder=noisy, path=[noisy]).stdout

    def test_without_a_standard_error_it_goes_nowhere(self, noisy: Path) -> None:
        command = [sys.executable, "-m", "hookery", "check", "--hook", "my_hooks", "--json"]
        closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        done = subprocess.run(closed, cwd=noisy, env=environment_of([]), stdout=subprocess.PIPE, check=True)
        assert json.loads(done.stdout)["ok"] is True


class TestTheMainModule:
    """What there will be in `__main__` under `hookery run` is not what the command has there itself."""

    SPELLINGS = ("__main__.main", "__main__:main", "__main__.work", "importer.__main__.main", "importer:__main__.main")

    @pytest.fixture
    def on_main(self, folder: Path) -> Path:
        (folder / "importer.py").write_text("import __main__\n")
        write_hooks(folder, *self.SPELLINGS)
        return folder

    def test_a_check_leaves_it_to_the_run(self, on_main: Path) -> None:
        done = run_hookery("check", "--hook", "my_hooks", folder=on_main)
        assert done.stdout.splitlines()[-1] == "5 hooks, 0 would not be applied, 5 left to `hookery run`"
        assert done.stdout.count("`hookery run` puts it in place") == len(self.SPELLINGS)

    def test_what_is_missed_beside_it_still_fails(self, on_main: Path) -> None:
        write_hooks(on_main, "__main__.work", "json.dumsp")
        done = run_hookery("check", "--hook", "my_hooks", "--json", folder=on_main, status=1)
        assert [problem["kind"] for problem in json.loads(done.stdout)["problems"]] == ["pending", "missed"]

    def test_a_list_shows_it_as_pending(self, on_main: Path) -> None:
        done = run_hookery("list", "--eager", "--hook", "my_hooks", "--json", folder=on_main)
        assert {(hook["target"], hook["state"]) for hook in json.loads(done.stdout)} == {
            (spelling, "pending") for spelling in self.SPELLINGS
        }

    def test_an_explanation_says_who_knows(self, on_main: Path) -> None:
        done = run_hookery("explain", "__main__.main", "--hook", "my_hooks", folder=on_main)
        assert done.stdout.startswith("__main__.main is pending: it stands on the main module of the program")
