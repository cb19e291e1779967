"""Installed platform distributions, as pip installs them: who is chosen, what is imported, and whose hooks run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin_distributions import PLUGINS, install_plugin
from tests.runtime.checkpoints import reference_greedy

ROOT = Path(__file__).resolve().parents[2]
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both distributions installed in it."""
    directory = tmp_path_factory.mktemp("installed")
    for name in ("toy_platform", "other_platform"):
        install_plugin(PLUGINS / name, directory)
    return directory


class Run:
    """A finished command, and what the distributions wrote while it ran."""

    def __init__(self, done: subprocess.CompletedProcess[str], trace: Path) -> None:
        self.returncode, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        self.trace = trace.read_text().splitlines() if trace.exists() else []


Runner = Callable[..., Run]


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Runner:
    """A function that runs Python on `arguments` with the distributions on its path and nothing else said."""

    def run_python(*arguments: str, **environment: str) -> Run:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RUNTIME_")}
        trace = tmp_path / "trace"
        trace.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={
                **inherited,
                "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)]),
                "PLATFORM_TRACE": str(trace),
                **environment,
            },
        )
        return Run(done, trace)

    return run_python


ASK = "from runtime.platforms import current_platform as p; print(p.device_name, p.is_out_of_tree())"


def ask(run: Runner, **environment: str) -> Run:
    """Ask for the platform and for nothing else."""
    return run("-c", ASK, **environment)


def last_line(done: Run) -> str:
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().splitlines()[-1]


class TestWhichOne:
    def test_the_active_one_is_chosen_without_a_word(self, run: Runner) -> None:
        done = ask(run, TOY_PLATFORM="yes")
        assert done.stdout == "toy True\n", done.stderr
        assert sorted(done.trace) == [
            "activate toy",
            "activate toy_second",
            "import other_platform",
            "import toy_platform",
        ]

    def test_a_name_chooses_and_imports_no_other(self, run: Runner) -> None:
        done = ask(run, TOY_PLATFORM="yes", OTHER_PLATFORM="yes", RUNTIME_PLATFORM="other")
        assert done.stdout == "other True\n", done.stderr
        assert done.trace == ["import other_platform"]

    def test_an_in_tree_name_imports_none(self, run: Runner) -> None:
        done = ask(run, TOY_PLATFORM="yes", RUNTIME_PLATFORM="cpu")
        assert (done.stdout, done.trace) == ("cpu False\n", [])

    def test_without_an_active_one_it_is_what_torch_sees(self, run: Runner) -> None:
        done = ask(run, RUNTIME_USE_CPU="1")
        assert done.stdout == "cpu False\n", done.stderr
        assert "activate toy" in done.trace

    def test_two_active_ones_are_an_error_that_names_both(self, run: Runner) -> None:
        line = last_line(ask(run, TOY_PLATFORM="yes", OTHER_PLATFORM="yes"))
        assert "platform plugin 'other' of other-platform" in line
        assert "platform plugin 'toy' of toy-platform" in line

    def test_one_that_is_named_and_not_there(self, run: Runner) -> None:
        line = last_line(ask(run, RUNTIME_PLATFORM="toy"))
        assert "RUNTIME_PLATFORM='toy': platform plugin 'toy' of toy-platform says that its hardware is not" in line

    def test_one_that_is_not_installed(self, run: Runner) -> None:
        assert "'tyo' names no platform" in last_line(ask(run, RUNTIME_PLATFORM="tyo"))

    @pytest.mark.parametrize("named", [{}, {"RUNTIME_PLATFORM": "toy"}], ids=["automatic", "named"])
    def test_one_that_fails_is_an_error_with_the_reason(self, run: Runner, named: dict[str, str]) -> None:
        line = last_line(ask(run, TOY_PLATFORM="fails", **named))
        assert line.startswith("runtime.core.errors.PlatformError: platform plugin 'toy' of toy-platform failed")
        assert "OSError: the toy's driver is too old" in line

    def test_one_that_fails_is_reported_when_another_is_active(self, run: Runner) -> None:
        done = ask(run, TOY_PLATFORM="fails", OTHER_PLATFORM="yes")
        assert done.stdout == "other True\n"
        assert "the toy's driver is too old; platform plugin 'other' of other-platform is used" in done.stderr

    @pytest.mark.parametrize("allowed", ["", "toy_hooks"])
    def test_the_allow_list_of_hook_plugins_hides_no_platform(self, run: Runner, allowed: str) -> None:
        done = ask(run, TOY_PLATFORM="yes", HOOKERY_PLUGINS=allowed)
        assert done.stdout == "toy True\n", done.stderr


def generate(run: Runner, model: Path, **environment: str) -> Run:
    flags = ["--model", str(model), "--max-new-tokens", str(NEW_TOKENS), "--json"]
    return run("-m", "runtime", "generate", "some text", "more", "and more", *flags, **environment)


@pytest.fixture
def expected(llama_checkpoint: Path) -> list[list[int]]:
    from runtime.managers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(llama_checkpoint))
    return [
        reference_greedy(llama_checkpoint, tokenizer.encode(prompt).ids, NEW_TOKENS)
        for prompt in ("some text", "more", "and more")
    ]


@pytest.mark.parametrize("how", [{}, {"RUNTIME_PLATFORM": "toy"}], ids=["automatic", "named"])
def test_everything_the_platform_brings_is_used_and_the_output_stays_right(
    run: Runner, llama_checkpoint: Path, expected: list[list[int]], how: dict[str, str]
) -> None:
    done = generate(run, llama_checkpoint, TOY_PLATFORM="yes", **how)
    assert done.returncode == 0, done.stderr
    outputs = [output["token_ids"] for output in json.loads(done.stdout)["outputs"]]
    assert outputs == [tokens[: len(output)] for tokens, output in zip(expected, outputs, strict=True)]
    assert {
        *("init_backend", "post_load_model LlamaForCausalLM", "attention", "pool", "allocator", "forward_toy"),
        *("replay of 3 rows", "hook of toy_platform_hooks"),
    } <= set(done.trace)
    assert done.trace.index("init_backend") < done.trace.index("post_load_model LlamaForCausalLM")
    assert "import other_platform_hooks" not in done.trace


def test_a_dtype_that_is_not_declared_is_refused_before_anything_is_made(run: Runner, llama_checkpoint: Path) -> None:
    done = run(
        "-m", "runtime", "generate", "x", "--model", str(llama_checkpoint), "--dtype", "bf16", TOY_PLATFORM="yes"
    )
    assert last_line(done) == "error: dtype torch.bfloat16 is not supported on toy: use one of float32"
    assert not {"init_backend", "pool"} & set(done.trace)


class TestHooksBesideAPlatform:
    @pytest.mark.parametrize(
        ("environment", "ran"),
        [
            ({"RUNTIME_PLATFORM": "cpu"}, set()),
            ({"RUNTIME_USE_CPU": "1"}, set()),
            ({"TOY_PLATFORM": "yes"}, {"toy"}),
            ({"TOY_PLATFORM": "yes", "RUNTIME_PLATFORM": "toy"}, {"toy"}),
            ({"OTHER_PLATFORM": "yes"}, {"other"}),
            ({"TOY_PLATFORM": "yes", "OTHER_PLATFORM": "yes", "RUNTIME_PLATFORM": "other"}, {"other"}),
            ({"TOY_PLATFORM": "yes", "HOOKERY_PLUGINS": ""}, set()),
            ({"TOY_PLATFORM": "yes", "HOOKERY_PLUGINS": "toy_hooks"}, {"toy"}),
        ],
        ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
    )
    def test_they_run_where_their_platform_is_selected_and_nowhere_else(
        self, run: Runner, llama_checkpoint: Path, environment: dict[str, str], ran: set[str]
    ) -> None:
        done = generate(run, llama_checkpoint, **environment)
        assert done.returncode == 0, done.stderr
        imported = {line.split()[1] for line in done.trace if line.startswith("import ")}
        assert {name for name in imported if name.endswith("_hooks")} == {f"{name}_platform_hooks" for name in ran}
        hooks = [line for line in done.trace if line.startswith("hook of")]
        assert hooks == [f"hook of {name}_platform_hooks" for name in ran], "each runs, and runs once"

    def test_asking_for_hooks_of_a_platform_that_is_not_selected_is_an_error(
        self, run: Runner, llama_checkpoint: Path
    ) -> None:
        done = generate(run, llama_checkpoint, TOY_PLATFORM="yes", HOOKERY_PLUGINS="toy_hooks,other_hooks")
        assert last_line(done).startswith(
            "error: HOOKERY_PLUGINS asks for the plugin 'other_hooks' of other-platform, which belongs to a platform"
        )

    def test_a_platform_that_fails_ends_the_command_with_one_line(self, run: Runner, llama_checkpoint: Path) -> None:
        done = generate(run, llama_checkpoint, TOY_PLATFORM="fails")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: platform plugin 'toy' of toy-platform failed: OSError")


def test_the_command_shows_the_platform_of_the_plugin(run: Runner) -> None:
    done = run("-m", "runtime", "platform", "--json", "--check", TOY_PLATFORM="yes")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["platform"], report["class"]) == ("toy", "toy_platform.platform.ToyPlatform")
    assert (report["out_of_tree"], report["dispatch_key"]) == (True, "toy")
    assert report["check"]["max_relative_error"] < 1e-5


PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "1.0"

[project.entry-points."runtime.platforms"]
{entry_point} = "{module}:activate"

[tool.setuptools]
py-modules = ["{module}"]
"""
FAULTY = {
    "one-greedy": ("cuda", "raise AssertionError('imported')"),
    "one-twin": ("twin", "raise AssertionError('imported')"),
    "two-twin": ("twin", "raise AssertionError('imported')"),
    "one-broken": ("broken", "import a_driver_that_is_not_installed"),
    "one-strange": ("strange", "def activate():\n    return int"),
    "one-partial": (
        "partial",
        "from runtime.platforms import PlatformEnum, SRTPlatform\n\n\nclass Partial(SRTPlatform):\n"
        "    _enum = PlatformEnum.OOT\n    device_name = device_type = 'partial'\n\n\n"
        "def activate():\n    return Partial",
    ),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with each of the faulty distributions installed in a directory of its own."""
    installed = tmp_path_factory.mktemp("faulty")
    for distribution, (entry_point, code) in FAULTY.items():
        source = tmp_path_factory.mktemp("source")
        module = distribution.replace("-", "_")
        fields = {"distribution": distribution, "entry_point": entry_point, "module": module}
        (source / "pyproject.toml").write_text(PYPROJECT.format(**fields))
        (source / f"{module}.py").write_text(code)
        install_plugin(source, installed / distribution)
    return installed


@pytest.mark.parametrize(
    ("distributions", "named", "message"),
    [
        (["one-greedy"], "", "platform plugin 'cuda' of one-greedy: the names cuda, npu, "),
        (["one-greedy"], "cuda", "platform plugin 'cuda' of one-greedy: the names cuda, npu, "),
        (["one-twin", "two-twin"], "twin", "plugin 'twin' of one-twin, platform plugin 'twin' of two-twin; uninstall"),
        (["one-broken"], "", "'broken' of one-broken failed: ModuleNotFoundError: No module named 'a_driver_that"),
        (["one-broken"], "broken", "'broken' of one-broken failed: ModuleNotFoundError: No module named 'a_driver"),
        (["one-strange"], "strange", "'strange' of one-strange: builtins.int must be a subclass of runtime.platforms"),
        (["one-partial"], "", "'partial' of one-partial: one_partial.Partial lacks create_event, create_stream, "),
    ],
)
def test_a_faulty_distribution_is_an_error_that_names_it(
    faulty: Path, run: Runner, distributions: list[str], named: str, message: str
) -> None:
    path = os.pathsep.join([*(str(faulty / name) for name in distributions), str(ROOT)])
    line = last_line(ask(run, PYTHONPATH=path, RUNTIME_PLATFORM=named))
    assert line.startswith("runtime.core.errors.PlatformError: ")
    assert message in line
