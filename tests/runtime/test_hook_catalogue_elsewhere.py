"""Hooks on what no run of `catalogue_run` reaches run too: each test here makes happen what it takes.

Together with those runs these are all of the catalogue, see `test_hook_catalogue`.
"""

from __future__ import annotations

import json
import pkgutil
import shutil
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture
from safetensors.torch import load_file, save_file

import hookery
from hookery import HookType
from runtime.config import CHECK_ENV, GRAPH_CHECK_ENV, ServerArgs
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.entrypoints import cli
from runtime.layers.layernorm import RMSNorm
from runtime.layers.moe import Experts
from runtime.mem_cache import memory_pool
from runtime.mem_cache.allocator import PagedTokenToKVPoolAllocator
from runtime.model_executor import capture_sizes, cuda_graph_buffer_registry, input_buffers, model_runner
from runtime.models import loader
from runtime.platforms import discovery
from runtime.platforms.graph_backend import AcceleratorGraphBackend, CudaGraphBackend
from runtime.platforms.multi_platform import MultiPlatformOp
from runtime.plugins import recorded_hooks
from runtime.plugins.catalogue import CATALOGUE
from runtime.plugins.hook_target import Part, Role, When
from tests.runtime import test_graph_backends
from tests.runtime.catalogue_elsewhere import ELSEWHERE, is_class
from tests.runtime.tape_backend import TapeGraphBackend
from tests.runtime.test_scheduler import FakeChannel

CPU = torch.device("cpu")
PLATFORM = "runtime.platforms.current_platform"

made: Counter[str] = Counter()
had: list[set[Part]] = []
"""What each model runner that a test has made has of the parts that a target may take."""


@pytest.fixture(autouse=True)
def surroundings(mocker: MockerFixture) -> Iterator[None]:
    mocker.patch.object(hookery.registry, "counting", True)
    input_buffers.forget_shared_buffers()
    made.clear()
    had.clear()
    yield
    hookery.registry.reset()
    input_buffers.forget_shared_buffers()


def passing(*args: Any, **kwargs: Any) -> None:
    """A hook that changes nothing."""


def tape_first(result: dict[str, Any], *args: Any) -> dict[str, Any]:
    """A hook that gives the platform a device that records."""
    return {"tape": TapeGraphBackend, **result}


def without_compiler(result: Any, *args: Any) -> str:
    """A hook that has steps traced and not compiled."""
    return "eager"


def counted(name: str) -> type:
    base: Any = pkgutil.resolve_name(name)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        made[name] += 1
        base.__init__(self, *args, **kwargs)

    return type(f"Counted{base.__name__}", (base,), {"__init__": __init__})


def hook(names: frozenset[str] | set[str]) -> None:
    """Put hooks on targets of the catalogue, and apply them together with what a test has registered itself."""
    for target in CATALOGUE:
        if target.name not in names:
            continue
        if is_class(target):
            hookery.registry.register(target.name, counted(target.name), HookType.REPLACE)
        else:
            hookery.registry.register(target.name, passing, HookType.BEFORE)
    hookery.registry.apply_hooks(strict=True, eager=True)


def ran() -> set[str]:
    """The targets whose hooks have run."""
    return {r.target for r in hookery.applied_hooks() if r.hook.endswith(":passing") and r.ran} | {*made}


@pytest.fixture
def all_run() -> Iterator[Callable[[str], None]]:
    """A function that hooks what a test of `ELSEWHERE` is to reach; when the test has ended, all of it has run, and
    nothing without the part that it is said to take."""
    wanted: set[str] = set()
    recorded_hooks._steps.clear()  # the steps of tests before

    def begin(test: str) -> None:
        wanted.update(ELSEWHERE[test])
        hook(wanted)

    yield begin
    assert wanted
    assert wanted - ran() == set()
    needed = {target.name: {*target.only_with.values()} for target in CATALOGUE if target.name in wanted}
    assert {name for name in needed if had and needed[name] - set().union(*had)} == set()


def parts_of(runner: model_runner.ModelRunner) -> set[Part]:
    """What an engine with this model runner has."""
    args = runner.server_args
    parts = {Part.SINGLE_SLOTS if runner.page_size == 1 else Part.PAGES}
    if runner.prefix_cache is not None:
        parts.add(Part.PREFIX_CACHE)
    if runner.graph_runners:
        parts.add(Part.GRAPH_RUNNER)
    if args.decode_graph == "on":
        parts.add(Part.DECODE_RUNNER)
    if args.prefill_graph is not None:
        compiled = args.prefill_graph == "piecewise"
        parts |= {Part.PREFILL_RUNNER, Part.PIECEWISE_RUNNER if compiled else Part.BREAKABLE_RUNNER}
    return parts


def make_runner(model: Path, **args: Any) -> model_runner.ModelRunner:
    args = {
        "decode_graph_sizes": (2,),
        "prefill_graph_sizes": (8,),
        "max_running_requests": 4,
        "dtype": "float32",
    } | args
    runner = model_runner.ModelRunner(ServerArgs(str(model), **args))
    had.append(parts_of(runner))
    return runner


def run(runner: model_runner.ModelRunner, length: int = 8) -> None:
    """A prompt of some tokens and a decode."""
    request = Request("r", [*range(3, 3 + length)], SamplingParams(max_new_tokens=4))
    runner.forward(runner.prepare_forward_batch([request], []))
    request.output_ids.append(5)
    runner.forward(runner.prepare_forward_batch([], [request]))
    runner.release(request)


def warned_about(seen: Iterable[warnings.WarningMessage]) -> set[str]:
    """The targets whose hooks sit in a step that was recorded, as the warnings say."""
    recorded = [str(each.message) for each in seen if each.category is recorded_hooks.RecordedHookWarning]
    return {said.partition(" on ")[2].partition(" ")[0] for said in recorded}


def said_to_be_recorded() -> set[str]:
    return {target.name for target in CATALOGUE if target.recorded}


def test_the_platform_command(all_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    all_run("python -m runtime platform --check")
    assert cli.main(["platform", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"]


def test_what_plugins_ask(all_run: Any) -> None:
    all_run("a plugin asks which platform this is")
    from runtime.platforms import current_platform

    questions = [name.rpartition(".")[2] for name in ELSEWHERE["a plugin asks which platform this is"]]
    answers = {name for name in questions if getattr(current_platform, name)()}
    assert answers == {"is_available", "is_cpu"}


def test_finding_a_platform(all_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    all_run("no platform is named")
    monkeypatch.delenv(discovery.PLATFORM_ENV)
    discovery.select_platform.cache_clear()
    try:
        assert discovery.create_platform().device_name in discovery.IN_TREE
    finally:
        discovery.select_platform.cache_clear()


def test_a_forward_of_a_plugin(all_run: Any) -> None:
    all_run("a platform brings a forward")

    class Double(MultiPlatformOp):
        def forward_native(self, x: int) -> int:
            return 2 * x

    def acme_double(double: Double, x: int) -> int:
        return x + x

    Double.register_oot_forward(acme_double, "acme")
    assert Double().forward_acme(4) == 8  # type: ignore[attr-defined]


def test_recording_on_a_device(all_run: Any, mocker: MockerFixture) -> None:
    all_run("a device records")
    test_graph_backends.FakeGraph.log = log = []
    for cls in (CudaGraphBackend, AcceleratorGraphBackend):
        mocker.patch.object(cls, "_graphs", weakref.WeakSet())
    for as_device in (test_graph_backends.as_cuda, test_graph_backends.as_accelerator):
        with as_device(mocker, log) as backend, backend.capture_session():
            backend.begin()
            backend.end()
            backend.begin()
            backend.abort()


def test_latent_attention(all_run: Any, family: Callable[[str], Path]) -> None:
    all_run("latent attention")
    run(make_runner(family("deepseek-v2")))


def test_sparse_attention_in_a_recorded_decode(
    all_run: Any, family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GRAPH_CHECK_ENV, "1")
    hookery.registry.register(f"{PLATFORM}.get_graph_backends", tape_first, HookType.AFTER)
    all_run("sparse attention, recorded")
    with pytest.warns(recorded_hooks.RecordedHookWarning) as seen:
        run(make_runner(family("deepseek-v32"), decode_graph="on"), length=20)
    assert warned_about(seen) == said_to_be_recorded() & ran()


def test_a_mixture_of_experts_on_another_platform(
    all_run: Any, family: Callable[[str], Path], mocker: MockerFixture
) -> None:
    hookery.registry.register(f"{PLATFORM}.get_dispatch_key", as_on_cuda, HookType.REPLACE)
    for op in (RMSNorm, Experts):
        for each in (op, *op.__subclasses__()):
            mocker.patch.object(each, "_forward_name", None)
    all_run("a mixture of experts on another platform")
    run(make_runner(family("qwen3-moe")))


def as_on_cuda(*args: Any) -> str:
    return "cuda"


def test_recorded_prompts_and_decodes(all_run: Any, llama_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a Llama model has is hooked: what the catalogue says is recorded is warned about, and no more."""
    monkeypatch.setenv(GRAPH_CHECK_ENV, "1")
    hookery.registry.register(f"{PLATFORM}.get_graph_backends", tape_first, HookType.AFTER)
    hook({target.name for target in CATALOGUE if not is_class(target)})
    all_run("prompts are recorded")
    with pytest.warns(recorded_hooks.RecordedHookWarning) as seen:
        runner = make_runner(llama_checkpoint, decode_graph="on", prefill_graph="breakable")
    recorded = warned_about(seen)
    assert recorded == said_to_be_recorded() & ran()
    at_capture = calls()
    run(runner)
    grown = {name for name, count in calls().items() if count > at_capture[name]}
    assert grown & recorded == NOT_IN_RECORDED_PROMPTS, "a replay runs no hook in what was recorded"
    moments = {t.name: t.runs.get(Role.SCHEDULER, frozenset()) for t in CATALOGUE if t.area == "graphs"}
    once = {name for name, when in moments.items() if when == {When.CAPTURE} and name in at_capture}
    again = {name for name, when in moments.items() if when & {When.STEP, When.PROMPT, When.DECODE, When.REPLAY}}
    assert {name for name in once if not at_capture[name]} == set()
    assert once & grown == set()
    assert again - recorded - grown == set()


NOT_IN_RECORDED_PROMPTS = frozenset(
    {
        "runtime.layers.attention.torch_backend.TorchAttentionBackend.forward",
        "runtime.mem_cache.memory_pool.KVCache.get_kv_buffer",
        "runtime.mem_cache.memory_pool.MHATokenToKVPool.set_kv_buffer",
        "runtime.mem_cache.memory_pool.MHATokenToKVPool.get_key_buffer",
        "runtime.mem_cache.memory_pool.MHATokenToKVPool.get_value_buffer",
        "runtime.models.decoder.CausalLM.compute_logits",
        "runtime.layers.vocab_embedding.VocabEmbedding.logits",
    }
)
"""What is recorded with a decode, and runs outside the recording of a step with prompts."""


def calls() -> dict[str, int]:
    return {record.target: record.calls or 0 for record in hookery.applied_hooks() if record.hook.endswith(":passing")}


def test_compiled_prompts(
    all_run: Any, llama_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture
) -> None:
    """What a prefill graph runner runs a compiling one runs too, for it inherits from the other."""
    monkeypatch.setenv(GRAPH_CHECK_ENV, "1")
    torch.compiler.reset()
    hookery.registry.register(f"{PLATFORM}.get_graph_backends", tape_first, HookType.AFTER)
    hookery.registry.register(f"{PLATFORM}.get_compile_backend", without_compiler, HookType.AFTER)
    of_prompts = {
        target.name
        for target in CATALOGUE
        if Part.PREFILL_RUNNER in target.only_with.values() and When.EVENT not in target.runs[Role.SCHEDULER]
    }
    of_breakable = {target.name for target in CATALOGUE if Part.BREAKABLE_RUNNER in target.only_with.values()}
    hook(of_prompts)
    for name in of_breakable:
        mocker.patch(name, None)  # whoever makes one of these fails
    all_run("prompts are compiled")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", recorded_hooks.RecordedHookWarning)
        runner = make_runner(llama_checkpoint, prefill_graph="piecewise")
    assert warned_about(seen) == said_to_be_recorded() & ran()
    at_capture = calls()
    run(runner)
    assert of_prompts - ran() == set()
    at_replay = calls()
    grown = {name for name in at_replay.keys() - of_prompts if at_replay[name] > at_capture[name]}
    grew = {name.rpartition(".")[2] for name in grown}
    assert grew == {
        *("can_run", "key_for", "fill", "build_replay_fb_view", "init_replay_metadata", "replay", "logits_of"),
        *("addresses", "check_addresses"),
    }


def test_checked_pages(all_run: Any, llama_checkpoint: Path) -> None:
    all_run("pages are checked")
    runner = make_runner(llama_checkpoint, page_size=4)
    run(runner)
    runner.batch_builder.check_integrity([])


def test_checked_pools(all_run: Any, llama_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.managers import scheduler
    from runtime.managers.io_struct import GenerateRequest, Shutdown

    monkeypatch.setenv(CHECK_ENV, "1")
    all_run("pools are checked")
    channel: Any = FakeChannel()
    served = scheduler.Scheduler(ServerArgs(str(llama_checkpoint), dtype="float32"), channel)
    channel.inbox = [GenerateRequest("r", [3, 4, 5], SamplingParams(max_new_tokens=1, ignore_eos=True))]
    mark = Shutdown()

    def receive(*, wait: bool) -> Any:
        return channel.inbox.pop(0) if channel.inbox else mark if wait else None

    channel.receive = receive
    served.event_loop()
    assert [output.request_id for output in channel.sent] == ["r"]


def test_checkpoints_with_more_than_the_model(all_run: Any, family: Callable[[str], Path], tmp_path: Path) -> None:
    all_run("checkpoints with more than the model")
    for name in ("mixtral", "deepseek-v2"):
        directory = tmp_path / name
        shutil.copytree(family(name), directory)
        weights = load_file(directory / "model.safetensors")
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        loader.load_model(str(directory), "float32", CPU)


def test_pools_in_use(all_run: Any, llama_checkpoint: Path) -> None:
    all_run("somebody uses the pools")
    run(make_runner(llama_checkpoint))
    pool = memory_pool.MLATokenToKVPool(4, 1, torch.float32, 4, 2, 1, CPU)
    slots = torch.tensor([1, 2])
    rows = torch.arange(12.0).view(2, 1, 6)
    pool.set_kv_buffer(0, slots, rows, rows[..., :4])
    pool.load_cpu_copy(pool.get_cpu_copy(slots), slots + 2)
    assert torch.equal(pool.get_value_buffer(0)[3:5], rows[..., :4])
    table = memory_pool.ReqToTokenPool(2, 8, CPU)
    table.alloc()
    table.clear()
    assert table.available_size() == 2
    pages = PagedTokenToKVPoolAllocator(8, CPU, page_size=4).alloc(4)
    assert pages is not None
    assert pages.tolist() == [4, 5, 6, 7]


def test_a_graph_runner_of_somebody(all_run: Any) -> None:
    all_run("somebody writes a graph runner")
    gathered = capture_sizes.require_gathered_buffer(tp_size=4, dp_size=2, enable_dp_attention=True)
    only_scattered = capture_sizes.require_gathered_buffer(tp_size=4, moe_all_to_all=True)
    assert gathered
    assert only_scattered
    registry = cuda_graph_buffer_registry.build_prefill_registry(
        device=CPU, max_bs=2, max_num_token=8, enable_num_token_non_padded=True
    )
    assert registry.has_slot("num_token_non_padded")
    assert registry.slot_names() == list(registry.addresses())
    batch = SimpleNamespace(**{name: torch.ones(3, dtype=torch.int64) for name in registry.slot_names()[:3]})
    registry.fill_from(batch, raw_bs=1, padded_bs=1, raw_num_tokens=3, padded_num_tokens=4)
    count = registry.slot("num_token_non_padded").buffer
    assert count is not None
    assert count.item() == 3
    first, second = SimpleNamespace(ids=torch.zeros(4)), SimpleNamespace(ids=torch.zeros(4))
    input_buffers.share_input_buffers_in(first)
    input_buffers.share_input_buffers_in(second)
    assert first.ids.data_ptr() == second.ids.data_ptr()
    input_buffers.forget_shared_buffers()
