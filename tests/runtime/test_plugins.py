"""An installed plugin on the runtime: what its hooks do in the scheduler is seen from what that process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugin_distributions import install_plugin

ROOT = Path(__file__).resolve().parents[2]
SCHEDULER_PLUGIN = ROOT / "tests" / "plugins" / "scheduler_plugin"
FORCED_TOKEN = 7


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the plugin's distribution installed in it, as pip installs it."""
    directory = tmp_path_factory.mktemp("installed")
    install_plugin(SCHEDULER_PLUGIN, directory)
    return directory


def generate(installed: Path, model: Path, log: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the plugin's distribution on the path; nothing on the command line names the plugin."""
    flags = ["--model", str(model), "--max-new-tokens", "6", "--json"]
    return subprocess.run(
        [sys.executable, "-m", "runtime", "generate", "x", "y", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)]),
            "SCHEDULER_TEST_PLUGIN_LOG": str(log),
            **environment,
        },
    )


def test_hooks_of_an_installed_plugin_run_in_the_spawned_scheduler(
    installed: Path, llama_checkpoint: Path, tmp_path: Path
) -> None:
    done = generate(installed, llama_checkpoint, tmp_path / "log")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert [output["token_ids"] for output in printed["outputs"]] == [[FORCED_TOKEN] * 6] * 2
    steps = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sum(step["tokens"] for step in steps) == 12
    assert len({step["pid"] for step in steps}) == 1, "only the scheduler steps"


def test_the_listing_agrees_with_what_the_plugin_did(installed: Path, llama_checkpoint: Path, tmp_path: Path) -> None:
    done = generate(installed, llama_checkpoint, tmp_path / "log")
    steps = (tmp_path / "log").read_text().splitlines()
    records = json.loads(done.stdout)["hooks"]
    (step,) = [r for r in records["scheduler"] if r["target"] == "runtime.managers.scheduler.Scheduler.step"]
    assert (step["source"], step["distribution"]) == ("scheduler_test", "hookery-scheduler-test-plugin")
    assert (step["state"], step["ran"], step["calls"]) == ("applied", True, len(steps))
    assert all((r["state"], r["ran"]) == ("pending", False) for r in records["main"])


def test_the_allow_list_keeps_an_installed_plugin_out(installed: Path, llama_checkpoint: Path, tmp_path: Path) -> None:
    done = generate(installed, llama_checkpoint, tmp_path / "log", HOOKERY_PLUGINS="")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "log").exists()
    assert json.loads(done.stdout)["hooks"] == {"main": [], "scheduler": []}


def test_the_allow_list_names_the_plugins_that_load(installed: Path, llama_checkpoint: Path, tmp_path: Path) -> None:
    done = generate(installed, llama_checkpoint, tmp_path / "log", HOOKERY_PLUGINS="scheduler_test")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").exists()


def test_a_plugin_on_the_allow_list_that_is_not_installed_is_one_clear_line(
    installed: Path, llama_checkpoint: Path, tmp_path: Path
) -> None:
    done = generate(installed, llama_checkpoint, tmp_path / "log", HOOKERY_PLUGINS="vendor")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: HOOKERY_PLUGINS asks for the plugin 'vendor'")


SCRIPT = """
import json, sys
import hookery
from runtime.core.sampling_params import SamplingParams
from runtime.entrypoints.engine import Engine

def force(result, *args, **kwargs):
    return [7 for _ in result]

if __name__ == "__main__":
    if sys.argv[2] == "guarded":
        def force(result, *args, **kwargs):
            return [7 for _ in result]
        force.__qualname__ = "force_that_is_not_there"
        force_that_is_not_there = force
    hookery.registry.register("runtime.managers.scheduler.Scheduler.run_batch", force, hookery.HookType.AFTER)
    hookery.registry.apply_hooks()
    with Engine(model=sys.argv[1]) as engine:
        outputs = engine.generate(["x"], sampling_params=SamplingParams(max_new_tokens=3))
        print(json.dumps([output.token_ids for output in outputs]))
"""


def run_script(model: Path, tmp_path: Path, how: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(model), how],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_hook_of_the_main_script_reaches_the_scheduler(llama_checkpoint: Path, tmp_path: Path) -> None:
    done = run_script(llama_checkpoint, tmp_path, "top")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[FORCED_TOKEN] * 3]


def test_no_scheduler_serves_without_a_hook_of_the_main_script(llama_checkpoint: Path, tmp_path: Path) -> None:
    done = run_script(llama_checkpoint, tmp_path, "guarded")
    assert done.returncode == 1
    assert "its name leads to nothing in this process" in done.stderr.splitlines()[-1]
