"""The Acme accelerator of `tests/plugins`: the unchanged runtime on a device, a platform, a KV pool, an operation and
hooks that a package brings, which pip installs and takes away again."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugin_distributions import PLUGINS, Environment
from tests.runtime.test_vendor_mistakes import DEVICE_MISTAKES, HOST_MISTAKES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PROMPTS = ["If the argument is", "Return the", "A list of", "The number"]
FLAGS = ["--dtype", "float32", "--max-new-tokens", "12", "--json"]
GRAPHS = {
    "decode_graph": "on",
    "prefill_graph": "breakable",
    "decode_graph_sizes": (1, 2, 4),
    "prefill_graph_sizes": (16, 32),
}

pytestmark = pytest.mark.slow


class Run:
    """A finished process.

    Attributes:
        noted: what the plugin wrote while it ran, by what it is about.
    """

    def __init__(self, done: subprocess.CompletedProcess[str], trace: Path) -> None:
        self.returncode, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        self.noted: dict[str, list[dict[str, Any]]] = {}
        for line in trace.read_text().splitlines() if trace.exists() else ():
            note = json.loads(line)
            self.noted.setdefault(note.pop("what"), []).append(note)

    @property
    def tokens(self) -> list[list[int]]:
        """What each prompt was given."""
        assert self.returncode == 0, self.stderr
        return [output["token_ids"] for output in json.loads(self.stdout)["outputs"]]

    @property
    def device(self) -> dict[str, int]:
        """What the device counted, in the one process that has opened it."""
        (note,) = self.noted["device"]
        assert note["process"] == "scheduler"
        return note

    @property
    def hooks(self) -> list[dict[str, Any]]:
        """The records of the scheduler's hooks."""
        records: list[dict[str, Any]] = json.loads(self.stdout)["hooks"]["scheduler"]
        return records


def run(environment: Environment, folder: Path, *arguments: str | Path, **variables: str) -> Run:
    """Run Python of `environment`, no platform being named but by `variables`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTIME_", "ACME_"))}
    trace = folder / "trace"
    trace.unlink(missing_ok=True)
    done = subprocess.run(
        [environment.python, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**inherited, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "ACME_TRACE": str(trace), **variables},
    )
    return Run(done, trace)


def generate(environment: Environment, folder: Path, *flags: str, **variables: str) -> Run:
    return run(environment, folder, "-m", "runtime", "generate", *PROMPTS, *FLAGS, *flags, **variables)


@pytest.fixture(scope="module")
def expected(acme: Environment, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """The CPU's tokens, with the package installed; none of it is used then."""
    on_cpu = generate(acme, tmp_path_factory.mktemp("cpu"), RUNTIME_PLATFORM="cpu")
    assert on_cpu.noted == {}
    assert min(map(len, on_cpu.tokens)) > 3
    return on_cpu.tokens


def test_the_command_says_the_same_on_the_device_as_on_the_cpu(
    acme: Environment, expected: list[list[int]], tmp_path: Path
) -> None:
    on_acme = generate(acme, tmp_path, RUNTIME_PLATFORM="acme")
    assert on_acme.tokens == expected
    # The device, its memory and its kernels; the pool takes most of the memory.
    (pool,) = on_acme.noted["pool"]
    assert pool["layout"] == "heads first"
    heads, slots, dim = pool["shape"]
    assert on_acme.device["peak"] > 2 * heads * slots * dim * 4
    assert min(on_acme.device[name] for name in ("allocations", "operations", "rms_norm", "store_kv")) > 0
    # The hook, as the runtime and as the plugin tell it.
    (hook,) = on_acme.hooks
    assert (hook["hook"], hook["state"], hook["ran"]) == ("acme_accelerator.hooks:at_high_clock", "applied", True)
    assert hook["calls"] == len(on_acme.noted["batch"])
    assert sum(note["tokens"] for note in on_acme.noted["batch"]) == sum(map(len, expected))
    assert on_acme.device["operations_at_high_clock"] > on_acme.device["operations"] / 2
    assert (on_acme.device["captures"], on_acme.device["replays"]) == (0, 0), "nobody asked for graphs"


ENGINE = f"""
import json
from runtime.core.sampling_params import SamplingParams
from runtime.entrypoints.engine import Engine

if __name__ == "__main__":
    with Engine(dtype="float32", **{GRAPHS!r}) as engine:
        outputs = engine.generate({PROMPTS!r}, sampling_params=SamplingParams(max_new_tokens=12))
        print(json.dumps({{"outputs": [{{"token_ids": output.token_ids}} for output in outputs]}}))
"""


def test_the_engine_records_and_replays_on_the_device_without_being_told_its_name(
    acme: Environment, expected: list[list[int]], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(ENGINE)
    checks = {"RUNTIME_CHECK_GRAPHS": "1", "RUNTIME_CHECK_INTEGRITY": "1"}
    recorded = run(acme, tmp_path, "program.py", **checks)
    assert recorded.tokens == expected
    device = recorded.device
    assert device["captures"] > len(GRAPHS["decode_graph_sizes"]) + len(GRAPHS["prefill_graph_sizes"])
    decodes = len(recorded.noted["batch"]) - 1
    assert device["replays"] > decodes, "one for each decode, and several for the step with prompts"
    assert device["replayed_operations"] > 10 * device["replays"]
    assert device["recorded_operations"] > 0


@pytest.mark.parametrize(
    ("flags", "variables", "gone"),
    [
        ([], {"HOOKERY_PLUGINS": ""}, {"batch", "operations_at_high_clock"}),
        (["--plugin", "without_the_pool"], {}, {"pool", "store_kv"}),
        (["--plugin", "without_the_op"], {}, {"rms_norm"}),
    ],
    ids=["hooks", "pool", "operation"],
)
def test_each_evidence_is_of_one_thing_and_goes_with_it(
    acme: Environment,
    expected: list[list[int]],
    tmp_path: Path,
    flags: list[str],
    variables: dict[str, str],
    gone: set[str],
) -> None:
    hook = "from hookery import HookType, plugin_hook\nplugin_hook({!r}, HookType.REPLACE)({})\n"
    for module, target, replacement in (
        ("without_the_pool", "runtime.platforms.current_platform.get_mha_kv_pool_cls", "lambda platform: None"),
        (
            "without_the_op",
            "runtime.layers.layernorm.RMSNorm.register_oot_forward",
            "lambda cls, forward, key: None",
        ),
    ):
        replaced = f"def {module}(*args):\n    return ({replacement})(*args)\n\n"
        (tmp_path / f"{module}.py").write_text(replaced + hook.format(target, module))
    without = generate(acme, tmp_path, *flags, RUNTIME_PLATFORM="acme", **variables)
    assert without.tokens == expected
    evidence = {"init_backend", "pool", "batch", "operations_at_high_clock", "rms_norm", "store_kv", "allocations"}
    present = without.noted.keys() | {name for name, count in without.device.items() if count}
    assert evidence - present == gone


def test_taking_the_package_away_leaves_the_runtime_as_it_was(
    acme_wheel: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    environment = Environment(tmp_path_factory.mktemp("environment"))

    before = generate(environment, tmp_path, RUNTIME_USE_CPU="1")
    assert (before.hooks, before.noted) == ([], {})
    environment.install(acme_wheel)
    chosen = run(environment, tmp_path, "-m", "runtime", "platform", "--json", RUNTIME_USE_CPU="1")
    assert json.loads(chosen.stdout)["platform"] == "acme", chosen.stderr
    environment.uninstall("acme-accelerator")
    after = generate(environment, tmp_path, RUNTIME_USE_CPU="1")
    assert (after.tokens, after.hooks, after.noted) == (before.tokens, [], {})
    named = generate(environment, tmp_path, RUNTIME_PLATFORM="acme")
    assert (named.returncode, named.stderr) == (
        1,
        "error: RUNTIME_PLATFORM='acme' names no platform: set it to one of cuda, npu, rocm, xpu, musa, mps, cpu or of"
        " the installed plugins (none), or unset it\n",
    )


def test_the_packages_own_tests_pass_in_its_environment(
    acme: Environment, family: Callable[[str], Path], tmp_path: Path
) -> None:
    package = PLUGINS / "acme_accelerator"
    models = os.pathsep.join(str(family(name)) for name in ("deepseek-v2", "deepseek-v32"))
    done = run(
        acme,
        tmp_path,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", package / "pyproject.toml"),
        *(f"--rootdir={package}", f"--confcutdir={package}", package / "tests"),
        ACME_TEST_MODELS=models,
    )
    assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout


def page() -> str:
    """The README's page on bringing up a device."""
    (section,) = re.findall(
        r"^### Bring up your device\n(.*?)^##+ ", README.read_text() + "## ", re.DOTALL | re.MULTILINE
    )
    return section


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page(), re.DOTALL | re.MULTILINE)


def test_the_readmes_page_shows_the_packages_own_lines() -> None:
    package = PLUGINS / "acme_accelerator"
    lines = "\n".join(path.read_text() for path in [package / "pyproject.toml", *package.glob("acme_accelerator/*.py")])
    assert len(blocks("python")) == 8
    for block in [*blocks("python"), *blocks("toml")]:
        assert block in lines
    for name in re.findall(r"`(\w+\.(?:h|py))`", page()):
        assert list(package.rglob(name)), f"{name} is named, and there is no such file"
    called = re.findall(r'_operation\("(\w+)"\)', (ROOT / "runtime" / "platforms" / "accelerator.py").read_text())
    (listed,) = re.findall(r"what `torch.cuda` has too: (.*?)\.\n", page(), re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted({"is_available", *called})
    errors = {mistake.error for mistake in (*HOST_MISTAKES.values(), *DEVICE_MISTAKES.values())}
    assert len(errors.intersection("".join(blocks("text")).splitlines())) == 2


def test_the_readmes_commands_print_what_the_page_says(acme: Environment, tmp_path: Path) -> None:
    script = "".join(blocks("console"))
    installing, *commands = re.findall(r"^\$ (.*)$", script, re.MULTILINE)
    assert installing == "pip install --no-build-isolation tests/plugins/acme_accelerator", "as the fixture has done"
    expected = [line for line in script.splitlines() if not line.startswith("$ ")]
    (tmp_path / "script").write_text("\n".join(commands).replace("python -", f"{acme.python} -"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTIME_", "ACME_"))}
    done = subprocess.run(
        ["bash", "-e", "script"],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Counts are those of one release of torch, times those of one machine.
    without_numbers = [re.sub(r"\d[\d.e+-]*", "N", line) for line in done.stdout.splitlines()]
    assert without_numbers == [re.sub(r"\d[\d.e+-]*", "N", line) for line in expected]
