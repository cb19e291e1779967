"""Workers of Ray and torchrun have the hooks, or say why they cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hookery
from hookery import HookError, HookType, HookWarning, launchers
from tests.hookery.support import ROOT, environment_of, run_hookery, run_python

HOOKS = """
    from hookery import HookType, plugin_hook

    @plugin_hook("string.capwords", HookType.AFTER)
    def sign(result, *args, **kwargs):
        return result + "+"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_hooks.py").write_text(textwrap.dedent(HOOKS))
    return tmp_path


class TestSettingUpAWorker:
    def test_installed_plugins_and_modules_of_the_environment(self, folder: Path) -> None:
        out = run_python(
            """
            import string
            from hookery.processes import setup_worker
            setup_worker()
            setup_worker()
            print(string.capwords("x"))
            """,
            path=[folder],
            environment={"HOOKERY_HOOKS": "my_hooks", "HOOKERY_PLUGINS": ""},
        )
        assert out == "X+\n"

    def test_under_a_run_each_hook_is_there_once(self, folder: Path) -> None:
        code = "import string; from hookery.processes import setup_worker as s; s(); print(string.capwords('x'))"
        assert run_hookery("run", "--hook", "my_hooks", "-c", code, folder=folder).stdout == "X+\n"

    def test_a_plugin_that_is_not_installed_there(self) -> None:
        errors = run_python(
            "from hookery.processes import setup_worker; setup_worker()",
            environment={"HOOKERY_PLUGINS": "vendor"},
            fails=True,
        )
        assert (
            f" on {os.uname().nodename}: HOOKERY_PLUGINS asks for the plugin 'vendor', which is not installed" in errors
        )


class TestWhatRayIsGiven:
    """The runtime environment itself; that Ray does with it what is meant is tested below."""

    @pytest.fixture(autouse=True)
    def _process_registry(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOOKERY_PLUGINS", "")
        monkeypatch.setenv("HOOKERY_PUBLISH", "0")
        monkeypatch.syspath_prepend(str(folder))

    def test_an_existing_setup_hook_runs_after_the_hooks_are_applied(self, folder: Path) -> None:
        out = run_python(
            """
            import string
            import hookery
            from hookery import launchers
            hookery.load_plugins(modules=["my_hooks"])
            def setup(): print("setup", string.capwords("x"))
            given = {"worker_process_setup_hook": setup, "pip": ["x"]}
            environment = launchers.ray_runtime_env(given)
            assert given["worker_process_setup_hook"] is setup
            assert environment["pip"] == ["x"]
            hookery.registry.reset()
            environment["worker_process_setup_hook"]()
            named = launchers.ray_runtime_env({"worker_process_setup_hook": "os.getpid"})
            named["worker_process_setup_hook"]()
            """,
            path=[folder],
            environment={"HOOKERY_PLUGINS": ""},
        )
        assert out == "setup X+\n"

    @pytest.mark.parametrize("strict", [False, True])
    def test_hooks_that_workers_cannot_find_are_named(self, monkeypatch: pytest.MonkeyPatch, strict: bool) -> None:
        if strict:
            monkeypatch.setenv("HOOKERY_STRICT", "1")
        hookery.registry.register("string.capwords", lambda *args: None, HookType.BEFORE)
        try:
            hookery.registry.apply_hooks()
            with pytest.raises(HookError if strict else HookWarning, match=r"no worker will have the hook .*lambda"):
                launchers.ray_runtime_env()
        finally:
            hookery.registry.reset()


class TestTorchrun:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        pytest.importorskip("torch.distributed.run")

    SCRIPT = """
        import os, string, sys
        {setup}
        print(f"{{string.capwords('x')}} {{os.environ['RANK']}} of {{os.environ['WORLD_SIZE']}}\\n", end="", flush=True)
    """
    ARGUMENTS = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--standalone")

    def write(self, folder: Path, setup: str = "") -> None:
        (folder / "train.py").write_text(textwrap.dedent(self.SCRIPT).format(setup=setup))

    def test_under_a_run_nothing_is_needed_in_the_program(self, folder: Path) -> None:
        self.write(folder)
        done = run_hookery("run", "--hook", "my_hooks", *self.ARGUMENTS, "train.py", folder=folder)
        assert sorted(done.stdout.splitlines()) == ["X+ 0 of 2", "X+ 1 of 2"]
        ended = json.loads(run_hookery("ps", "--ended", "--json", folder=folder).stdout)
        roles = {process["role"] for process in ended if process["command"][-1] == "train.py"}
        assert roles >= {"train.py rank 0", "train.py rank 1"}

    def test_one_line_does_it_too(self, folder: Path) -> None:
        self.write(folder, "import hookery.processes; hookery.processes.setup_worker()")
        done = self.torchrun(folder, HOOKERY_HOOKS="my_hooks", HOOKERY_PLUGINS="")
        assert sorted(done.stdout.splitlines()) == ["X+ 0 of 2", "X+ 1 of 2"], done.stderr

    def test_a_plugin_that_is_not_installed_ends_the_job_with_its_name(self, folder: Path) -> None:
        self.write(folder, "import hookery.processes; hookery.processes.setup_worker()")
        done = self.torchrun(folder, HOOKERY_PLUGINS="vendor")
        assert done.returncode != 0
        assert done.stdout == ""
        assert "asks for the plugin 'vendor', which is not installed" in done.stderr

    def torchrun(self, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *self.ARGUMENTS, "train.py"],
            cwd=folder,
            env=environment_of([folder], settings),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.mark.slow
class TestRay:
    """Starts real clusters of one machine."""

    @pytest.fixture(autouse=True)
    def _ray(self) -> None:
        pytest.importorskip("ray")

    def drive(self, folder: Path, source: str, *, path: str, fails: bool = False) -> str:
        preamble = f"""
            import os, string
            import ray
            import hookery
            from hookery import launchers

            def start(runtime_env):
                variables = {{"PYTHONPATH": {path!r}, **runtime_env.pop("env_vars", {{}})}}
                ray.init(
                    num_cpus=1, include_dashboard=False, log_to_driver=True, configure_logging=False,
                    object_store_memory=80_000_000, runtime_env={{**runtime_env, "env_vars": variables}},
                )

            @ray.remote(max_retries=0)
            def task():
                return string.capwords("x") + os.environ.get("SET_UP", "")

            @ray.remote
            class Actor:
                def work(self):
                    return string.capwords("y")
            """
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "HOOKERY_PLUGINS": ""}
        program = textwrap.dedent(preamble) + textwrap.dedent(source)
        return run_python(program, path=[folder], environment=settings, options=(), fails=fails)

    def test_workers_have_the_drivers_hooks_and_its_setup_hook_runs(self, folder: Path) -> None:
        out = self.drive(
            folder,
            """
            def setup(): os.environ["SET_UP"] = string.capwords("ready")
            hookery.load_plugins(modules=["my_hooks"])
            start(launchers.ray_runtime_env({"worker_process_setup_hook": setup}))
            print(ray.get([task.remote(), Actor.remote().work.remote()]))
            """,
            path=f"{folder}{os.pathsep}{ROOT}",
        )
        assert out.splitlines()[-1] == "['X+Ready+', 'Y+']"

    def test_the_setup_hook_by_its_name(self, folder: Path) -> None:
        out = self.drive(
            folder,
            """
            start({
                "worker_process_setup_hook": "hookery.processes.setup_worker",
                "env_vars": {"HOOKERY_HOOKS": "my_hooks", "HOOKERY_PLUGINS": ""},
            })
            print(ray.get(task.remote()))
            """,
            path=f"{folder}{os.pathsep}{ROOT}",
        )
        assert out.splitlines()[-1] == "X+"

    def test_a_module_that_is_not_on_the_worker(self, folder: Path) -> None:
        errors = self.drive(
            folder,
            """
            hookery.load_plugins(modules=["my_hooks"])
            os.chdir("/")
            start(launchers.ray_runtime_env())
            ray.get(task.remote())
            """,
            path=str(ROOT),
            fails=True,
        )
        assert "WorkerCrashedError" in errors
