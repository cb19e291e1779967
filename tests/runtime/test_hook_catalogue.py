"""The catalogue of hook targets tells the truth: everything in it exists and runs where and when it says, and no seam
is missing from it.

What no run of `catalogue_run` reaches has tests of its own, in `test_hook_catalogue_elsewhere`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hookery
from runtime.entrypoints import cli
from runtime.platforms.device_mixin import DeviceMixin
from runtime.platforms.interface import SRTPlatform
from runtime.platforms.multi_platform import MultiPlatformOp
from runtime.plugins import catalogue
from runtime.plugins.catalogue import CATALOGUE
from runtime.plugins.hook_target import HookTarget, Part, Role, When, only_with
from tests.runtime import catalogue_check, catalogue_run
from tests.runtime.catalogue_check import Steps
from tests.runtime.catalogue_elsewhere import ELSEWHERE
from tests.runtime.catalogue_run import ASKED, ENGINES, EVERY_RUNNER, LAYERS, NO_RUNNER, REGULAR, Run
from tests.runtime.checkpoints import make_llama_checkpoint

ROOT = Path(__file__).resolve().parents[2]
NAMES = frozenset(target.name for target in CATALOGUE)
BY_TEST = frozenset().union(*ELSEWHERE.values())
PROMPTS = {Steps.REPLAYED_PROMPTS, Steps.OTHER_PROMPTS}
DECODES = {Steps.REPLAYED_DECODES, Steps.OTHER_DECODES}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A function from one of `ENGINES` to what it ran with a hook on every target: once for all processes of a test
    run, however tests are spread."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def of(engine: str) -> Run:
        finished = shared / f"catalogue-{engine}.json"
        with open(finished.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                directory = tmp_path_factory.mktemp("model")
                model = make_llama_checkpoint(directory, num_hidden_layers=LAYERS, hidden_size=32, intermediate_size=32)
                finished.write_text(json.dumps(dataclasses.asdict(catalogue_run.run(model, engine))))
        return Run(**json.loads(finished.read_text()))

    return of


@pytest.mark.parametrize("engine", ENGINES)
def test_every_hook_runs_in_the_processes_and_at_the_moments_that_the_catalogue_says(
    engine: str, run: Callable[[str], Run]
) -> None:
    assert catalogue_check.faults(run(engine), CATALOGUE) == []


def test_every_target_is_reached(run: Callable[[str], Run]) -> None:
    runs = [run(engine) for engine in ENGINES]
    reached = set().union(*(catalogue_check.reached(each, CATALOGUE) for each in runs))
    questions = ELSEWHERE["the questions about an engine"]
    assert [each.engine for each in runs if questions - each.main[ASKED].keys()] == []
    assert NAMES - reached - BY_TEST == set(), "no test reaches these"
    assert reached & BY_TEST == set(), "a run reaches these: they need no test of their own"


def test_a_catalogue_that_said_anything_else_of_what_was_reached_would_not_pass(run: Callable[[str], Run]) -> None:
    runs = [run(engine) for engine in ENGINES]
    assert catalogue_check.kinds_of(run(EVERY_RUNNER)) == {*Steps}
    reached = set().union(*(catalogue_check.reached(each, CATALOGUE) for each in runs))
    unnoticed = [
        f"{wrong.name}: {wrong.moments}, only with {wrong.needs or 'nothing'}"
        for target in CATALOGUE
        if target.name in reached
        for wrong in (*wrong_claims(target), *wrong_parts(target))
        if not any(catalogue_check.faults(each, [wrong]) for each in runs)
    ]
    assert unnoticed == []


def wrong_claims(target: HookTarget) -> Iterator[HookTarget]:
    """The target with another moment, a moment less, another process, a process more, and a process less."""
    part = target.always_with

    def at(runs: dict[Role, frozenset[When]]) -> HookTarget:
        moments = frozenset().union(*runs.values())
        parts = {when: part or target.only_with.get(when) for when in moments}
        return dataclasses.replace(target, runs=runs, only_with={when: p for when, p in parts.items() if p})

    for role, moments in target.runs.items():
        for when in set(When) - moments:
            yield at({**target.runs, role: frozenset({when})})
        if len(moments) > 1:
            for when in moments - {When.EVENT}:  # what comes up need not
                yield at({**target.runs, role: moments - {when}})
        yield at({other: m for other, m in target.runs.items() if other is not role})
    for other in set(Role) - target.runs.keys():
        moments = next(iter(target.runs.values()))
        if moments != {When.EVENT}:
            yield at({other: moments})
            yield at({**target.runs, other: moments})


def wrong_parts(target: HookTarget) -> Iterator[HookTarget]:
    """The target said to need another part, for all its moments and for each of them."""
    moments = frozenset().union(*target.runs.values())
    if moments == {When.EVENT} and target.only_with:
        return  # what comes up need not, whatever the engine has
    for part in (None, *Part):
        for parts in (
            dict.fromkeys(moments, part),
            *({**target.only_with, when: part} for when in moments - {When.EVENT}),
        ):
            wrong = dataclasses.replace(target, only_with={when: p for when, p in parts.items() if p is not None})
            if needed(wrong) != needed(target):
                yield wrong


def needed(target: HookTarget) -> dict[When, Part | None]:
    """What each moment takes: the same of two targets whose claims say the same of these engines."""
    moments = frozenset().union(*target.runs.values())
    parts = {when: target.only_with.get(when) for when in moments}
    for when in moments:
        if parts[when] is Part.BREAKABLE_RUNNER:
            parts[when] = Part.PREFILL_RUNNER  # they have no other
        if when in (When.CAPTURE, When.REPLAY) and parts[when] is None and target.always_with is None:
            parts[when] = Part.GRAPH_RUNNER
        if when is When.PROMPT and When.EAGER in moments and parts[When.EAGER] is None:
            # A step with a prompt is eager where nothing replays it.
            parts[when] = None if parts[when] in (Part.GRAPH_RUNNER, Part.PREFILL_RUNNER) else parts[when]
    return parts


def test_every_test_that_is_said_to_reach_something_is_there() -> None:
    source = (Path(__file__).parent / "test_hook_catalogue_elsewhere.py").read_text()
    assert [test for test in list(ELSEWHERE)[1:] if f'all_run("{test}")' not in source] == []
    assert BY_TEST <= NAMES


class TestTheCheck:
    """What the counts of a run are taken for."""

    @staticmethod
    def run_of(
        counts: Callable[[dict[str, Any]], int], start: int = 0, capture: int = 0, engine: str = EVERY_RUNNER
    ) -> Run:
        """A run in whose steps, start and capture something ran so many times."""
        windows: list[dict[str, Any]] = [{"kind": "start", "ran": {"x": start} if start else {}}]
        windows.append({"kind": "capture", "ran": {"x": capture} if capture else {}})
        for number, request in enumerate((REGULAR[0], *REGULAR)):
            pieces = -(-len(request.prompt) // catalogue_run.CHUNK)
            for step in range(pieces + request.new_tokens - 1):
                window = {
                    "kind": "step",
                    "requests": [f"request-{number}"],
                    "prompt": step < pieces,
                    "replayed": number != 3 and engine == EVERY_RUNNER,
                    "tokens": int(step >= pieces - 1),
                    "first": step == 0,
                    "number": number,
                }
                count = counts(window)
                windows.append({**window, "ran": {"x": count} if count else {}})
        return Run(engine, windows, [{} for _ in range(8)])

    @pytest.mark.parametrize(
        ("counts", "moments"),
        [
            (lambda step: 1, {When.STEP}),
            (lambda step: 3 * step["tokens"], {When.STEP}),
            (lambda step: 2 * LAYERS, {When.LAYER}),
            (lambda step: int(step["prompt"]), PROMPTS),
            (lambda step: LAYERS * step["prompt"], PROMPTS),
            (lambda step: int(not step["prompt"]), DECODES),
            (lambda step: int(step["replayed"]), {Steps.REPLAYED_PROMPTS, Steps.REPLAYED_DECODES}),
            (lambda step: int(step["prompt"] or not step["replayed"]), PROMPTS | {Steps.OTHER_DECODES}),
            (lambda step: int(step["prompt"] and step["replayed"]), {Steps.REPLAYED_PROMPTS}),
            (lambda step: int(step["first"]), {When.REQUEST}),
            (lambda step: int(step["number"] == 2 and step["first"]), {When.EVENT}),
            (lambda step: int(step["number"] == 0), {When.EVENT}),
        ],
    )
    def test_moments_are_told_by_counting(
        self, counts: Callable[[dict[str, Any]], int], moments: set[When | Steps]
    ) -> None:
        assert catalogue_check.observed(self.run_of(counts), "x") == {Role.SCHEDULER: moments}

    def test_the_start_and_the_capture_are_moments(self) -> None:
        run = self.run_of(lambda step: 0, start=2, capture=1)
        assert catalogue_check.observed(run, "x") == {Role.SCHEDULER: frozenset({When.ONCE, When.CAPTURE})}

    @pytest.mark.parametrize(
        ("counts", "moment"), [((2, 2, 2), When.REQUEST), ((6, 12, 6), When.STEP), ((0, 3, 0), When.EVENT)]
    )
    def test_the_main_process_tells_steps_by_tokens(self, counts: tuple[int, ...], moment: When) -> None:
        run = self.run_of(lambda step: 0)
        run.main[2:5] = [{"x": count} if count else {} for count in counts]
        assert catalogue_check.observed(run, "x") == {Role.MAIN: frozenset({moment})}

    def test_what_only_an_engine_with_a_graph_runner_runs_is_a_fault_unless_that_is_said(self) -> None:
        target = HookTarget("x", "", {Role.SCHEDULER: frozenset({When.REPLAY})})
        with_all, with_none = (
            self.run_of(lambda step: int(step["replayed"])),
            self.run_of(lambda step: 0, engine=NO_RUNNER),
        )
        assert catalogue_check.faults(with_all, [target]) == []
        assert catalogue_check.faults(with_none, [target]) == [
            "x: the catalogue does not say that an engine with no graph runner never runs it"
        ]
        (of_all,) = only_with(Part.GRAPH_RUNNER, [target])
        assert catalogue_check.faults(with_all, [of_all]) == catalogue_check.faults(with_none, [of_all]) == []
        (of_decodes,) = only_with(Part.DECODE_RUNNER, [target])
        assert catalogue_check.faults(with_all, [of_decodes]) == [
            "x in scheduler of an engine with both graph runners and pages: the catalogue says replayed decodes, it ran"
            " replayed decodes, replayed prompts"
        ]

    def test_what_is_said_to_need_a_graph_runner_is_a_fault_if_it_runs_without(self) -> None:
        (target,) = only_with(Part.GRAPH_RUNNER, [HookTarget("x", "", {Role.SCHEDULER: frozenset({When.STEP})})])
        assert catalogue_check.faults(self.run_of(lambda step: 1), [target]) == []
        assert catalogue_check.faults(self.run_of(lambda step: 1, engine=NO_RUNNER), [target]) == [
            "x in scheduler of an engine with no graph runner: the catalogue says never, it ran step"
        ]

    def test_what_never_ran_is_a_fault_unless_it_comes_up_or_is_asked_for(self) -> None:
        run = self.run_of(lambda step: 0)
        for when in When:
            target = HookTarget("x", "", {Role.SCHEDULER: frozenset({when})})
            assert bool(catalogue_check.faults(run, [target])) == (when not in (When.EVENT, When.DEMAND))
        (fault,) = catalogue_check.faults(run, [HookTarget("x", "", {Role.MAIN: frozenset({When.ONCE})})])
        assert fault == f"x in main of an engine with {run.engine}: the catalogue says once, it ran never"


MODULES = (
    "runtime.plugins.bootstrap",
    "runtime.mem_cache.pool_selection",
    "runtime.model_executor.capture_sizes",
    "runtime.model_executor.cuda_graph_buffer_registry",
    "runtime.model_executor.graph_runner",
    "runtime.model_executor.input_buffers",
    "runtime.models.hf_config",
    "runtime.models.loader",
    "runtime.models.registry",
    "runtime.sampling.logits_processor",
    "runtime.sampling.sampler",
    "runtime.managers.batch_policy",
    "runtime.managers.scheduler_process",
    "runtime.managers.tokenizer",
)
"""Every public function of these is in the catalogue."""

NO_SEAMS_OF_PLATFORMS = {
    "runtime.platforms.answers": "look at what a platform's methods return: hook these",
    "runtime.platforms.host_memory": "what the CPU's device operations read: hook these",
    "runtime.platforms.unused_forwards": "looks for forwards that never run: hook what registers them",
    "runtime.platforms.host_threads": "run before plugins are loaded, or around the start of another process",
}
"""Every public function of the other modules of `runtime.platforms` is too; why not of these."""

CLASSES = (
    "runtime.config.ServerArgs",
    "runtime.platforms.multi_platform.MultiPlatformOp",
    "runtime.platforms.graph_backend.DeviceGraphBackend",
    "runtime.platforms.graph_backend.CudaGraphBackend",
    "runtime.platforms.graph_backend.AcceleratorGraphBackend",
    "runtime.models.model_config.ModelConfig",
    "runtime.models.model_config.LlamaConfig",
    "runtime.mem_cache.memory_pool.ReqToTokenPool",
    "runtime.mem_cache.memory_pool.KVCache",
    "runtime.mem_cache.memory_pool.MHATokenToKVPool",
    "runtime.mem_cache.memory_pool.MLATokenToKVPool",
    "runtime.mem_cache.memory_pool.NSATokenToKVPool",
    "runtime.mem_cache.allocator.TokenToKVPoolAllocator",
    "runtime.mem_cache.allocator.PagedTokenToKVPoolAllocator",
    "runtime.mem_cache.radix_cache.RadixCache",
    "runtime.layers.attention.torch_backend.TorchAttentionBackend",
    "runtime.layers.attention.metadata.MetadataBuilder",
    "runtime.model_executor.batch_builder.BatchBuilder",
    "runtime.model_executor.cuda_graph_buffer_registry.CudaGraphBufferRegistry",
    "runtime.model_executor.model_runner.ModelRunner",
    "runtime.managers.batch_policy.BatchPolicy",
    "runtime.managers.io_struct.Channel",
    "runtime.managers.scheduler.Scheduler",
    "runtime.managers.tokenizer.IncrementalDetokenizer",
    "runtime.managers.tokenizer_manager.TokenizerManager",
    "runtime.entrypoints.engine.Engine",
)
"""Every public method and property of these is in the catalogue."""

GRAPH_RUNNERS = (
    "runtime.model_executor.cuda_graph_runner.CudaGraphRunner",
    "runtime.model_executor.breakable_cuda_graph_runner.BreakableCudaGraphRunner",
    "runtime.model_executor.piecewise_cuda_graph_runner.PiecewiseCudaGraphRunner",
)
"""Of these also what they inherit."""

MODEL_PARTS = ("runtime.layers", "runtime.models")
"""Of every class in these packages, the forwards and what makes layers."""


def members_of(cls: type) -> set[str]:
    """The public methods and properties that a class defines, abstract ones aside."""
    return {
        name
        for name, value in vars(cls).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod, property)))
        and not getattr(value, "__isabstractmethod__", False)
    }


def modules_in(package: str) -> Iterator[ModuleType]:
    found = import_module(package)
    yield found
    for info in pkgutil.walk_packages(found.__path__, f"{package}."):
        yield import_module(info.name)


def classes_in(package: str) -> Iterator[type]:
    for module in modules_in(package):
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield value


def functions_of(module: ModuleType) -> set[str]:
    """The public functions that a module defines."""
    return {
        function
        for function, value in vars(module).items()
        if not function.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
        if not isinstance(value, type) and hasattr(value, "__name__")
    }


def missing(prefix: str, members: Iterable[str]) -> set[str]:
    return {f"{prefix}.{member}" for member in members} - NAMES


class TestNothingIsMissing:
    def test_every_device_operation_and_factory(self) -> None:
        abstract = DeviceMixin.__abstractmethods__ | SRTPlatform.__abstractmethods__
        members = members_of(DeviceMixin) | members_of(SRTPlatform) | abstract
        assert len(members) > 40
        assert missing("runtime.platforms.current_platform", members) == set()

    @pytest.mark.parametrize("name", MODULES)
    def test_every_function_of_a_module_that_decides(self, name: str) -> None:
        functions = functions_of(import_module(name))
        assert functions
        assert missing(name, functions) == set()

    def test_every_function_of_platforms(self) -> None:
        found = {module.__name__: functions_of(module) for module in modules_in("runtime.platforms")}
        assert [name for name in NO_SEAMS_OF_PLATFORMS if not found[name]] == []
        assert {"check_dtype", "check_compiler"} <= found["runtime.platforms.probe"]
        members = [missing(name, found[name]) for name in found.keys() - NO_SEAMS_OF_PLATFORMS.keys()]
        assert set().union(*members) == set()

    @pytest.mark.parametrize("name", CLASSES)
    def test_every_method_of_a_class_that_decides(self, name: str) -> None:
        members = members_of(pkgutil.resolve_name(name))
        assert members
        assert missing(name, members) == set()

    @pytest.mark.parametrize("name", GRAPH_RUNNERS)
    def test_every_method_of_a_graph_runner(self, name: str) -> None:
        lines = [cls for cls in pkgutil.resolve_name(name).__mro__ if cls.__module__.startswith("runtime.")]
        assert missing(name, set().union(*map(members_of, lines))) == set()

    @pytest.mark.parametrize("package", MODEL_PARTS)
    def test_every_forward_of_a_layer_and_whatever_makes_layers(self, package: str) -> None:
        found = {
            f"{cls.__module__}.{cls.__qualname__}.{name}"
            for cls in classes_in(package)
            if not getattr(cls, "_is_protocol", False) and cls.__name__ != "AttentionBackend"
            for name in members_of(cls)
            if name.startswith(("forward", "make_")) or name in ("logits", "compute_logits", "ignorable_tensor")
        }
        assert len(found) > 10
        assert found - NAMES == set()

    def test_every_forward_of_an_operation(self) -> None:
        for package in ("runtime.layers", "runtime.sampling"):
            list(modules_in(package))
        found = {
            f"{op.__module__}.{op.__qualname__}.{name}"
            for op in MultiPlatformOp.__subclasses__()
            if op.__module__.startswith("runtime.")
            for name in op._own_forwards
        }
        assert "runtime.sampling.sampler.KeepTopP.forward_native" in found
        assert found - NAMES == set()


class TestEntries:
    def test_each_is_there_once_and_says_what_it_is_for(self) -> None:
        assert len(NAMES) == len(CATALOGUE)
        assert [t.name for t in CATALOGUE if not t.purpose or not t.runs or not t.area] == []
        assert [t.name for t in CATALOGUE if not all(t.runs.values())] == []
        assert [t.name for t in CATALOGUE if not t.only_with.keys() <= frozenset().union(*t.runs.values())] == []

    def test_each_exists_and_its_signature_is_the_code_s(self) -> None:
        described = {each.target.name: each for each in catalogue.describe(CATALOGUE)}
        step = described["runtime.managers.scheduler.Scheduler.step"]
        assert (step.kind, step.signature, step.names) == ("method", "(self) -> int", "(self)")
        device = described["runtime.platforms.current_platform.get_available_memory"]
        assert device.defined_in == "runtime.platforms.cpu.CpuDeviceMixin"
        assert device.signature == "(self, device_id: int | None = None) -> tuple[int, int]"
        assert described["runtime.platforms.current_platform.capabilities"].kind == "property"
        assert described["runtime.platforms.current_platform.is_available"].names == "(cls)"
        assert described["runtime.mem_cache.memory_pool.MHATokenToKVPool"].kind == "class"

    def test_one_that_does_not_exist_is_an_error_that_names_what_does(self) -> None:
        wrong = HookTarget("runtime.managers.scheduler.Scheduler.stop", "", {Role.SCHEDULER: frozenset({When.ONCE})})
        with pytest.raises(hookery.TargetNotFoundError, match="'step'"):
            catalogue.describe([wrong])

    def test_reading_the_list_imports_no_torch(self) -> None:
        code = "import sys, runtime.plugins.catalogue; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ}).returncode == 0


class TestTheCommand:
    def test_it_lists_every_target_with_what_is_known_of_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["hooks"]) == 0
        head, _, *lines = capsys.readouterr().out.splitlines()
        assert head.split()[:6] == ["target", "process", "when", "only", "with", "purpose"]
        rows, notes = lines[: len(CATALOGUE)], lines[len(CATALOGUE) :]
        assert [row.split()[0] for row in rows] == [target.name for target in CATALOGUE]
        assert notes[0].startswith(f"{len(CATALOGUE)} targets; ")
        (row,) = [row for row in rows if row.startswith("runtime.managers.batch_policy.BatchPolicy.admit ")]
        assert row.split()[1:3] == ["scheduler", "request"]
        assert row.endswith("(self, demand, room, ratio)")

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            (["choose_retraction"], {"runtime.managers.batch_policy.BatchPolicy.choose_retraction"}),
            (["PLATFORM --CHECK"], {"runtime.platforms.report.check"}),
            (["io_struct", "--process", "main", "--when", "step"], {"runtime.managers.io_struct.Channel.receive"}),
            (["channel", "--when", "request"], {"runtime.managers.io_struct.Channel.send"}),
        ],
    )
    def test_it_finds_by_text_process_and_moment(
        self, arguments: list[str], names: set[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["hooks", *arguments, "--json"]) == 0
        targets = json.loads(capsys.readouterr().out)["targets"]
        assert {target["name"] for target in targets} >= names
        assert all(target["purpose"] and target["signature"] and target["runs"] for target in targets)
        assert len(targets) < 5

    def test_in_full_it_says_which_class_does_it_on_this_platform(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["hooks", "current_platform.get_device_name", "--long"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "runtime.platforms.current_platform.get_device_name",
            "  what the device is called in the log",
            "  scheduler, once; method in runtime.platforms.cpu.CpuDeviceMixin",
            "  (self, device_id: int | None = None) -> str",
        ]

    def test_what_takes_a_graph_runner_says_which(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["hooks", "TorchAttentionBackend.init_replay"]) == 0
        head, _, row, *notes = capsys.readouterr().out.splitlines()
        assert "only with" in head
        assert "capture, replay  a decode graph runner  what all layers" in row
        assert notes[1] == (
            "only with: an engine without it never runs the target, or never at the moment that is named; with a graph"
            " runner, capture and replay are that runner's"
        )
        assert cli.main(["hooks", "io_struct"]) == 0
        assert "only with" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("target", "said", "line"),
        [
            (
                "build_fixed",
                {"capture": "a decode graph runner", "replay": "a decode graph runner"},
                "only with a decode graph runner",
            ),
            (
                "init_forward_metadata",
                {"capture": "a prefill graph runner"},
                "capture only with a prefill graph runner",
            ),
            (
                "find_capture_size",
                {"prompt": "a prefill graph runner", "decode": "a decode graph runner"},
                "prompt only with a prefill graph runner; decode only with a decode graph runner",
            ),
            ("last_hidden_states", {}, None),
        ],
    )
    def test_each_moment_may_take_its_own(
        self, target: str, said: dict[str, str], line: str | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["hooks", target, "--json"]) == 0
        (described,) = json.loads(capsys.readouterr().out)["targets"]
        assert described["only_with"] == said
        assert said.keys() <= {*described["runs"]["scheduler"]}
        assert cli.main(["hooks", target, "--long"]) == 0
        assert capsys.readouterr().out.splitlines()[3:-1] == [f"  {line}"] * (line is not None)

    def test_the_readme_shows_what_it_prints(self, capsys: pytest.CaptureFixture[str]) -> None:
        readme = (ROOT / "README.md").read_text()
        shown = re.findall(r"^\$ python -m runtime hooks (.*)\n((?:(?![$`]).+\n)+)", readme, flags=re.MULTILINE)
        assert len(shown) == 2
        for arguments, output in shown:
            assert cli.main(["hooks", *arguments.split()]) == 0
            assert capsys.readouterr().out == output

    def test_its_help_says_what_moments_and_areas_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["hooks", "--help"])
        printed = capsys.readouterr().out
        assert all(each.value in printed and each.meaning in printed for each in (*When, *Part))
        assert "platform, memory, graphs, model, serving" in printed

    def test_finding_nothing_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["hooks", "no such thing"]) == 1
        assert capsys.readouterr() == ("", "no hook target is like that\n")
