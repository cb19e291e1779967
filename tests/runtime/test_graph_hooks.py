"""Hooks on graph runners: one chooses sizes, and one that was recorded is told about."""

from __future__ import annotations

import cProfile
import os
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

import hookery
from hookery import HookRegistry, HookType, publication, state_files
from runtime.config import ServerArgs
from runtime.core.errors import ConfigError
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.model_executor import input_buffers
from runtime.model_executor.model_runner import ModelRunner
from runtime.platforms.cpu import CpuSRTPlatform
from runtime.plugins import recorded_hooks
from tests.runtime.tape_backend import TapeGraphBackend

MODEL_FORWARD = "runtime.models.decoder.CausalLM.forward"
ATTENTION = "runtime.layers.attention.torch_backend.TorchAttentionBackend.forward"
FILTER = "runtime.model_executor.capture_sizes.filter_for_gather"
RUN_EAGERLY = "runtime.model_executor.breakable_cuda_graph_runner.BreakRecorder.run_eagerly"
NORM = "runtime.layers.layernorm.RMSNorm.forward"
REPLAY = "runtime.model_executor.cuda_graph_runner.CudaGraphRunner.replay"


@pytest.fixture(autouse=True)
def surroundings(mocker: MockerFixture) -> Iterator[None]:
    backends = {"tape": TapeGraphBackend, **CpuSRTPlatform().get_graph_backends()}
    mocker.patch.object(CpuSRTPlatform, "get_graph_backends", return_value=backends)
    mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value="eager")
    mocker.patch.object(hookery.registry, "counting", True)
    recorded_hooks._steps.clear()
    input_buffers.forget_shared_buffers()
    torch.compiler.reset()
    yield
    hookery.registry.reset()
    input_buffers.forget_shared_buffers()


def passing(*args: Any, **kwargs: Any) -> None:
    """A hook that changes nothing."""


def opening(*args: Any, **kwargs: Any) -> None:
    """A hook that no compiler can trace."""
    with open(os.devnull):
        pass


def failing(*args: Any, **kwargs: Any) -> None:
    raise LookupError("the hook's own")


times = [0]


def counting(*args: Any, **kwargs: Any) -> None:
    times[0] += 1


def instead(original_fn: Any, self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A hook that does not call what it is around."""
    return x


def zeros(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A hook in whose place nothing else runs."""
    return torch.zeros_like(x)


def make_runner(model: Path, **args: Any) -> ModelRunner:
    args = {"decode_graph_sizes": (2,), "prefill_graph_sizes": (8,), "max_running_requests": 4} | args
    return ModelRunner(ServerArgs(str(model), **args))


def run(runner: ModelRunner) -> None:
    """A prompt of 8 tokens and a decode."""
    request = Request("r", list(range(3, 11)), SamplingParams(max_new_tokens=4))
    runner.forward(runner.prepare_forward_batch([request], []))
    request.output_ids.append(5)
    runner.forward(runner.prepare_forward_batch([], [request]))
    runner.release(request)


def hook(*targets: str, engine: str = "auto") -> None:
    for target in targets:
        hookery.registry.register(target, passing, HookType.BEFORE, engine=engine)
    hookery.registry.apply_hooks(strict=True)


def notes(records: Iterable[hookery.HookRecord]) -> dict[str, tuple[str, ...]]:
    return {record.target: record.notes for record in records}


def calls() -> dict[str, int]:
    return {record.target: record.calls or 0 for record in hookery.applied_hooks()}


def test_a_hook_chooses_the_sizes(llama_checkpoint: Path) -> None:
    registry = HookRegistry()
    registry.register(FILTER, three_more, HookType.AFTER)
    registry.apply_hooks(strict=True)
    try:
        runner = make_runner(llama_checkpoint, decode_graph="on")
    finally:
        registry.revert()
    assert runner.graph_runner is not None
    assert runner.graph_runner.capture_sizes == [2, 3]  # type: ignore[attr-defined]


def three_more(result: list[int], *args: Any, **kwargs: Any) -> list[int]:
    return [*result, 3]


class TestRecordedHooks:
    def test_a_hook_in_what_is_recorded_is_warned_about_and_listed(
        self, llama_checkpoint: Path, mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        # As in a process of its own: what else runs in this one may have ended its publication.
        monkeypatch.setenv(state_files.FOLDER_VARIABLE, str(tmp_path / "state"))
        mocker.patch.object(publication, "_state", publication._State())
        mocker.patch.object(publication._state, "prepared_for_ending", True)
        hook(MODEL_FORWARD, FILTER, REPLAY)
        with pytest.warns(
            recorded_hooks.RecordedHookWarning, match=rf"passing on {MODEL_FORWARD} is in a step"
        ) as seen:
            runner = make_runner(llama_checkpoint, decode_graph="on")
        assert len([w for w in seen if issubclass(w.category, recorded_hooks.RecordedHookWarning)]) == 1
        before = calls()
        run(runner)
        after = calls()
        assert after[MODEL_FORWARD] == before[MODEL_FORWARD] + 1, "the prompt; the decode was a replay"
        assert after[REPLAY] == before[REPLAY] + 1
        noted = notes(hookery.applied_hooks())
        (note,) = noted[MODEL_FORWARD]
        assert note.startswith("is in a step that CudaGraphRunner has recorded")
        assert noted[FILTER] == noted[REPLAY] == ()
        assert f"passing {note}" in hookery.format_table({"scheduler": hookery.applied_hooks()})
        processes, _ = state_files.read_processes()
        (this,) = (process for process in processes if process.pid == os.getpid())
        assert notes(this.records)[MODEL_FORWARD] == (note,), "what `hookery list --process` shows"

    @pytest.mark.parametrize("engine", ["auto", "inplace"])
    def test_a_hook_that_comes_too_late_for_the_recording_is_too(self, llama_checkpoint: Path, engine: str) -> None:
        runner = make_runner(llama_checkpoint, decode_graph="on", prefill_graph="breakable")
        hook(REPLAY)
        with pytest.warns(recorded_hooks.RecordedHookWarning) as seen:
            hook(MODEL_FORWARD, ATTENTION, engine=engine)
        assert [w.category for w in seen] == [recorded_hooks.RecordedHookWarning] * 3
        run(runner)
        assert calls() == {MODEL_FORWARD: 0, REPLAY: 1, ATTENTION: 3}, "attention of the prompt is left out of it"
        noted = notes(hookery.applied_hooks())
        assert {target: len(said) for target, said in noted.items()} == {MODEL_FORWARD: 2, REPLAY: 0, ATTENTION: 1}
        assert "CudaGraphRunner recorded before: it does not run at replay" in noted[ATTENTION][0]

    def test_one_that_is_not_counted_is_warned_about_too(self, llama_checkpoint: Path) -> None:
        for target in (MODEL_FORWARD, ATTENTION, REPLAY):
            hookery.registry.register(target, passing, HookType.BEFORE, count=False)
        hookery.registry.register(NORM, zeros, HookType.REPLACE, count=False)
        hookery.registry.apply_hooks(strict=True)
        with pytest.warns(recorded_hooks.RecordedHookWarning):
            make_runner(llama_checkpoint, prefill_graph="breakable")
        noted = notes(hookery.applied_hooks())
        assert {target for target, said in noted.items() if said} == {MODEL_FORWARD, NORM}

    @pytest.mark.parametrize(
        ("target", "options"),
        [
            ("torch.nn.functional.linear", {}),
            ("torch.Tensor.index_select", {}),
            ("runtime.layers.attention.base.AttentionBackend.forward", {"subclasses": True}),
            ("runtime.layers.linear.Linear.forward", {"engine": "wrapt"}),
        ],
    )
    def test_what_is_written_in_c_or_overridden_is_known_too(
        self, llama_checkpoint: Path, target: str, options: dict[str, Any]
    ) -> None:
        early = hookery.registry.register(target, passing, HookType.BEFORE, count=False, **options)
        hookery.registry.apply_hooks(strict=True)
        with pytest.warns(recorded_hooks.RecordedHookWarning, match=f"{target} is in a step that CudaGraphRunner has"):
            runner = make_runner(llama_checkpoint, decode_graph="on")
        hookery.registry.revert()
        recorded_hooks._steps.pop(runner.graph_runner)
        assert early.notes
        runner = make_runner(llama_checkpoint, decode_graph="on")
        hookery.registry.register(target, passing, HookType.BEFORE, **options)
        with pytest.warns(recorded_hooks.RecordedHookWarning, match=f"{target} is on part of a step that CudaGraph"):
            hookery.registry.apply_hooks(strict=True)
        assert runner.graph_runner is not None
        assert not any("recorded_hooks" in problem.detail for problem in hookery.registry.problems())

    @pytest.mark.parametrize("hook_type", [HookType.REPLACE, HookType.AROUND])
    def test_a_late_hook_on_what_another_hook_replaced_is_warned_about(
        self, llama_checkpoint: Path, hook_type: HookType
    ) -> None:
        hookery.registry.register(NORM, zeros if hook_type is HookType.REPLACE else instead, hook_type)
        hookery.registry.apply_hooks(strict=True)
        with pytest.warns(recorded_hooks.RecordedHookWarning):
            runner = make_runner(llama_checkpoint, decode_graph="on")
        with pytest.warns(recorded_hooks.RecordedHookWarning, match=rf"passing on {NORM} is on part of a step"):
            hook(NORM)
        hookery.registry.revert()
        with pytest.warns(recorded_hooks.RecordedHookWarning, match=rf"passing on {NORM} is on part of a step"):
            hook(NORM)
        assert runner.graph_runner is not None

    def test_hooks_of_other_registries_are_warned_about(self, llama_checkpoint: Path) -> None:
        early, late = HookRegistry(), HookRegistry()
        try:
            first = early.register(MODEL_FORWARD, passing, HookType.BEFORE)
            early.apply_hooks(strict=True)
            with pytest.warns(recorded_hooks.RecordedHookWarning, match="is in a step"):
                runner = make_runner(llama_checkpoint, decode_graph="on")
            second = late.register(MODEL_FORWARD, passing, HookType.AFTER)
            with pytest.warns(recorded_hooks.RecordedHookWarning, match="is on part of a step"):
                late.apply_hooks(strict=True)
            assert [len(found.notes) for found in (first, second)] == [1, 1]
            assert runner.graph_runner is not None
        finally:
            early.reset()
            late.reset()

    def test_what_cannot_be_seen_is_said_to_be_so(self, llama_checkpoint: Path) -> None:
        runner = make_runner(llama_checkpoint, decode_graph="on")
        with pytest.warns(
            recorded_hooks.RecordedHookWarning, match=r"may be on part of .* whether it is cannot be seen"
        ):
            hook("torch.Tensor.__add__")
        with warnings.catch_warnings():
            warnings.simplefilter("error", recorded_hooks.RecordedHookWarning)
            hook("torch.linalg.svd", "torch.Tensor.cholesky", "textwrap.dedent")
        assert runner.graph_runner is not None

    def test_what_is_decided_once_is_no_part_of_the_step(self, llama_checkpoint: Path) -> None:
        hook("runtime.platforms.current_platform.get_dispatch_key")
        with warnings.catch_warnings():
            warnings.simplefilter("error", recorded_hooks.RecordedHookWarning)
            make_runner(llama_checkpoint, decode_graph="on")

    def test_a_hook_that_comes_too_late_never_fails_what_applies_it(
        self, llama_checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runner = make_runner(llama_checkpoint, decode_graph="on")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hook(MODEL_FORWARD)
        assert runner.graph_runner is not None
        assert f":passing on {MODEL_FORWARD} is on part of a step that CudaGraphRunner" in capsys.readouterr().err

    def test_somebody_s_profiler_is_left_alone(self, llama_checkpoint: Path) -> None:
        # Before CPython 3.12 one that is written in C cannot be put back.
        profiler = cProfile.Profile()
        profiler.enable()
        try:
            make_runner(llama_checkpoint, prefill_graph="breakable")
        finally:
            profiler.disable()
        seen = {entry.code.co_name for entry in profiler.getstats() if not isinstance(entry.code, str)}
        assert {"capture_one", "forward_add", "run_eagerly"} <= seen
        with pytest.warns(recorded_hooks.RecordedHookWarning, match="forward_add is on part of a step that Breakable"):
            hook("runtime.layers.linear.Linear.forward_add")
        assert sys.gettrace() is None

    def test_somebody_s_debugger_is_left_alone_too(self, llama_checkpoint: Path) -> None:
        seen = set()

        def trace(frame: types.FrameType, event: str, _: object) -> None:
            seen.add(frame.f_code.co_name)

        before = sys.gettrace()
        sys.settrace(trace)
        sys.setprofile(profile := lambda *call: None)
        try:
            make_runner(llama_checkpoint, prefill_graph="breakable")
            left_alone = (sys.gettrace(), sys.getprofile()) == (trace, profile)
        finally:
            sys.setprofile(None)
            sys.settrace(before)
        assert left_alone
        assert {"capture_one", "forward_add", "run_eagerly"} <= seen

    def test_a_hook_where_the_recording_is_left_is_not(self, llama_checkpoint: Path) -> None:
        hook(ATTENTION)
        with warnings.catch_warnings():
            warnings.simplefilter("error", recorded_hooks.RecordedHookWarning)
            runner = make_runner(llama_checkpoint, prefill_graph="breakable")
        before = calls()[ATTENTION]
        run(runner)
        assert calls()[ATTENTION] == before + 3 + 3, "three layers, for the prompt and for the decode"

    def test_a_hook_on_a_piece_between_is(self, llama_checkpoint: Path) -> None:
        hook(ATTENTION, "runtime.layers.linear.Linear.forward_add")
        with pytest.warns(recorded_hooks.RecordedHookWarning, match="forward_add is in a step that Breakable"):
            make_runner(llama_checkpoint, prefill_graph="breakable")
        noted = {target for target, said in notes(hookery.applied_hooks()).items() if said}
        assert noted == {"runtime.layers.linear.Linear.forward_add"}

    @pytest.mark.parametrize(
        "graphs", [{"decode_graph": "on", "graph_backend": "compiled"}, {"prefill_graph": "piecewise"}]
    )
    def test_a_hook_in_what_is_compiled_is_not_counted(
        self, llama_checkpoint: Path, mocker: MockerFixture, graphs: dict[str, Any]
    ) -> None:
        # A step that counts is another step each time, and would be compiled anew for each token.
        compiled = []

        def compiler(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
            compiled.append(graph)
            return graph

        mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value=compiler)
        hook(NORM, REPLAY, ATTENTION)
        runner = make_runner(llama_checkpoint, **{"graph_backend": "plain"} | graphs)
        at_capture, counted = len(compiled), calls()
        for _ in range(2):
            run(runner)
        assert len(compiled) == at_capture > 0
        (record,) = (record for record in hookery.applied_hooks() if record.target == NORM)
        assert (record.ran, record.calls) == (True, None)
        assert record.notes[0].endswith("GraphRunner has compiled: its calls are not counted")
        seen = REPLAY if "decode_graph" in graphs else ATTENTION
        assert calls()[seen] > counted[seen], "where the step is left, hooks are counted as ever"

    @pytest.mark.parametrize(
        "graphs", [{"decode_graph": "on", "graph_backend": "compiled"}, {"prefill_graph": "piecewise"}]
    )
    def test_a_hook_that_comes_too_late_for_the_compiler_is_warned_about(
        self, llama_checkpoint: Path, graphs: dict[str, Any]
    ) -> None:
        runner = make_runner(llama_checkpoint, **{"graph_backend": "plain"} | graphs)
        with pytest.warns(
            recorded_hooks.RecordedHookWarning, match=rf"{NORM} is on part .*GraphRunner compiled before"
        ):
            hook(NORM)
        (note,) = notes(hookery.applied_hooks())[NORM]
        assert note.endswith("it need not run there; apply it before the engine starts")
        assert runner.graph_runners

    def test_a_hook_that_counts_for_itself_is_told_of(
        self, llama_checkpoint: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # The compiler takes numbers for constants, and compiles anew where one has changed.
        hookery.registry.register(NORM, counting, HookType.BEFORE)
        hookery.registry.apply_hooks(strict=True)
        runner = make_runner(llama_checkpoint, decode_graph="on", graph_backend="compiled")
        caplog.clear()
        for _ in range(3):
            run(runner)
        (told,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
        assert "was compiled anew at replay, which takes long" in told
        assert "graph_hooks:counting on" in told

    def test_a_hook_that_the_compiler_cannot_trace_stops_the_start_and_is_named(self, llama_checkpoint: Path) -> None:
        hookery.registry.register(MODEL_FORWARD, opening, HookType.BEFORE)
        hookery.registry.apply_hooks(strict=True)
        with pytest.raises(ConfigError, match=rf"; hooks in it: BEFORE \S+:opening on {MODEL_FORWARD}; choose"):
            make_runner(llama_checkpoint, decode_graph="on", graph_backend="compiled")

    def test_an_error_of_a_hook_is_its_own(self, llama_checkpoint: Path) -> None:
        hookery.registry.register(MODEL_FORWARD, failing, HookType.BEFORE)
        hookery.registry.apply_hooks(strict=True)
        with pytest.raises(LookupError, match="the hook's own"):
            make_runner(llama_checkpoint, decode_graph="on")

    @pytest.mark.parametrize("kind", ["breakable", "piecewise"])
    def test_a_hook_on_what_leaves_the_recording_takes_later_too(self, llama_checkpoint: Path, kind: str) -> None:
        args = {"prefill_graph": kind, "graph_backend": "plain"}
        runner = make_runner(llama_checkpoint, **args)
        hook(RUN_EAGERLY)
        run(runner)
        assert calls() == {RUN_EAGERLY: 3}, "once for each layer, in the prompt"

    def test_nothing_is_recorded_where_steps_run_again(self, llama_checkpoint: Path) -> None:
        hook(MODEL_FORWARD)
        with warnings.catch_warnings():
            warnings.simplefilter("error", recorded_hooks.RecordedHookWarning)
            runner = make_runner(llama_checkpoint, decode_graph="on", graph_backend="plain")
        before = calls()[MODEL_FORWARD]
        run(runner)
        assert calls()[MODEL_FORWARD] == before + 2
        assert notes(hookery.applied_hooks()) == {MODEL_FORWARD: ()}
