"""Graph runners change nothing of what a model says: every size, every kind of attention, every way to record."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from runtime.config import GRAPH_CHECK_ENV
from runtime.core.errors import ConfigError, EngineError
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.layers import recording
from runtime.layers.moe import Experts
from runtime.mem_cache.memory_pool import AttentionKind
from runtime.model_executor import capture_sizes
from runtime.model_executor.breakable_cuda_graph_runner import BreakableCudaGraphRunner
from runtime.model_executor.bucketed_graph_runner import BucketedGraphRunner, ShapeKey
from runtime.model_executor.cuda_graph_runner import CudaGraphRunner
from runtime.model_executor.model_runner import ModelRunner
from runtime.model_executor.piecewise_cuda_graph_runner import PiecewiseCudaGraphRunner
from runtime.platforms.cpu import CpuSRTPlatform
from tests.runtime.checkpoints import random_prompts
from tests.runtime.graph_runs import (
    FAMILIES,
    LENGTHS,
    NEW_TOKENS,
    PREFILL_SIZES,
    counted,
    generate,
    make_runner,
    poison,
    surroundings,
)
from tests.runtime.tape_backend import TapeGraphBackend

__all__ = ["surroundings"]

pytestmark = pytest.mark.usefixtures("surroundings")


Replays = Counter[tuple[type, ShapeKey]]
Pair = Callable[..., tuple[ModelRunner, ModelRunner, Replays]]


# What is left of Python where a step is replayed in earnest is least, so that is where padding is poisoned.
@pytest.mark.parametrize(("backend", "poisoned"), [("tape", True), ("plain", False)], ids=["tape-poisoned", "plain"])
@pytest.mark.parametrize("kind", FAMILIES)
class TestSameTokens:
    @pytest.fixture
    def pair(
        self,
        family: Callable[[str], Path],
        mocker: MockerFixture,
        kind: AttentionKind,
        backend: str,
        poisoned: bool,
    ) -> Pair:
        """Makes a runner without graphs, one with those asked for, and what counts its replays."""

        def make(**graphs: str) -> tuple[ModelRunner, ModelRunner, Replays]:
            directory = family(FAMILIES[kind])
            plain = make_runner(directory)
            if poisoned:
                poison(mocker)
            return plain, make_runner(directory, graph_backend=backend, **graphs), counted(mocker)

        return make

    def test_decodes_of_every_batch_size(self, pair: Pair) -> None:
        plain, runner, seen = pair(decode_graph="on")
        assert plain.graph_runners == []
        prompts = random_prompts(LENGTHS[:6], vocab_size=100)
        # Down and up again: what a larger batch has left in the buffers must not show.
        for size in (5, 4, 3, 2, 1, 4):
            arrivals = [prompts[:size]]
            assert generate(runner, arrivals) == generate(plain, arrivals), f"batch of {size}"
        steps = NEW_TOKENS - 1
        assert seen == {
            (CudaGraphRunner, ShapeKey(4, 256)): 3 * steps,
            (CudaGraphRunner, ShapeKey(2, 256)): 2 * steps,
        }

    @pytest.mark.parametrize("runner_kind", ["breakable", "piecewise"])
    def test_prompts_of_every_length(self, pair: Pair, runner_kind: str) -> None:
        plain, runner, seen = pair(prefill_graph=runner_kind)
        for prompt in random_prompts(LENGTHS, vocab_size=100):
            assert generate(runner, [[prompt]], 2) == generate(plain, [[prompt]], 2), f"{len(prompt)} tokens"
        cls = PiecewiseCudaGraphRunner if runner_kind == "piecewise" else BreakableCudaGraphRunner
        assert seen == {(cls, ShapeKey(8)): 3, (cls, ShapeKey(16)): 3}

    def test_prompts_that_join_decodes_and_come_in_pieces(self, pair: Pair) -> None:
        plain, runner, seen = pair(decode_graph="on", prefill_graph="breakable")
        a, b, c, d = random_prompts((5, 6, 12, 2), vocab_size=100, seed=1)
        arrivals = [[a, b], [c], [], [d, a]]
        assert generate(runner, arrivals) == generate(plain, arrivals)
        assert {cls for cls, _ in seen} == {CudaGraphRunner, BreakableCudaGraphRunner}
        assert in_pieces(runner, c) == in_pieces(plain, c)


def in_pieces(runner: ModelRunner, prompt: list[int]) -> list[int]:
    """What follows a prompt that runs in two steps, the second with a prefix in the pool."""
    request = Request("pieces", prompt[:5], SamplingParams(max_new_tokens=1, ignore_eos=True))
    for end in (5, len(prompt)):
        request.input_ids = prompt[:end]
        logits = runner.forward(runner.prepare_forward_batch([request], []))
    runner.release(request)
    return [int(logits.argmax()), *logits.topk(5).indices.flatten().tolist()]


class TestCapture:
    def test_the_largest_comes_first_and_every_step_is_warm(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        order: list[ShapeKey] = []
        steps: Counter[int] = Counter()
        real = CudaGraphRunner.step_for

        def step_for(self: Any, key: ShapeKey) -> Any:
            order.append(key)
            step = real(self, key)

            def noted() -> Any:
                steps[key.size] += 1
                assert TapeGraphBackend.log.count("begin") == len(order) - (steps[key.size] <= 2)
                return step()

            return noted

        mocker.patch.object(CudaGraphRunner, "step_for", step_for)
        synchronize = mocker.spy(CpuSRTPlatform, "synchronize")
        make_runner(family("llama"), decode_graph="on", decode_graph_sizes=(1, 4, 2))
        assert order == [ShapeKey(4, 256), ShapeKey(2, 256), ShapeKey(1, 256)]
        assert steps == {4: 3, 2: 3, 1: 3}, "two to warm up, one recorded"
        assert synchronize.call_count >= 6
        assert TapeGraphBackend.log == ["begin", "end"] * 3

    def test_a_step_that_fails_leaves_nothing_behind(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        import gc

        calls = Counter[str]()
        real = CudaGraphRunner.step_for

        def step_for(self: Any, key: ShapeKey) -> Any:
            step = real(self, key)

            def failing() -> Any:
                calls["steps"] += 1
                if calls["steps"] == 3:
                    step().sum().item()  # asks the device while it records
                return step()

            return failing

        mocker.patch.object(CudaGraphRunner, "step_for", step_for)
        with pytest.raises(ConfigError, match=r"CudaGraphRunner cannot record .*size=4.*not permitted.*smaller sizes"):
            make_runner(family("llama"), decode_graph="on")
        assert TapeGraphBackend.log == ["begin", "abort"]
        assert recording.current() is None
        assert gc.isenabled()

    def test_a_piece_that_fails_leaves_nothing_behind(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        runner = make_runner(family("llama"), prefill_graph="breakable")
        TapeGraphBackend.log.clear()
        prefill = runner.prefill_graph_runner
        assert isinstance(prefill, BreakableCudaGraphRunner)
        mlp = prefill.model.layers[1].mlp
        passing = [torch.zeros(16, 64)] * 2
        mocker.patch.object(mlp, "forward", side_effect=[*passing, RuntimeError("out of memory")])
        with pytest.raises(ConfigError, match=r"BreakableCudaGraphRunner cannot record .*size=16.*out of memory"):
            prefill.capture()
        assert TapeGraphBackend.log == ["begin", "end"] * 2 + ["begin", "abort"]
        assert prefill.breaks.parts is None
        assert recording.current() is None

    def test_a_prefill_is_recorded_in_one_piece_more_than_it_has_layers(self, family: Callable[[str], Path]) -> None:
        make_runner(family("llama"), prefill_graph="breakable")
        assert TapeGraphBackend.log == ["begin", "end"] * (3 + 1) * len(PREFILL_SIZES)

    def test_all_sizes_and_layers_hand_over_in_the_same_buffers(self, family: Callable[[str], Path]) -> None:
        runner = make_runner(family("llama"), prefill_graph="breakable", prefill_graph_sizes=(4, 8, 16))
        prefill = runner.prefill_graph_runner
        assert isinstance(prefill, BreakableCudaGraphRunner)
        given, *taken = sorted((key.place, tuple(buffer.shape)) for key, buffer in prefill.breaks.buffers.items())
        assert given == (-1, (16, 64))
        assert [place for place, _ in taken] == [0, 1, 2], "queries, keys and values"
        assert {shape[0] for _, shape in taken} == {16}
        assert "break 0 (4, 16) torch.float32" in prefill.addresses()

    def test_the_breaks_read_what_holds_at_replay(self, family: Callable[[str], Path], mocker: MockerFixture) -> None:
        runner, plain = make_runner(family("llama"), prefill_graph="breakable"), make_runner(family("llama"))
        arrivals = [random_prompts((13,), vocab_size=100)]
        as_captured = generate(runner, arrivals, 1)
        backend: Any = runner.attention_backend
        assert [metadata.extends[0].length for metadata in backend.layer_metadata] == [13] * 3
        # What the layers read of the backend changes: a scale, and which pool keeps keys and values.
        pools = []
        for each in (runner, plain):
            pools.append(copy.deepcopy(each.token_to_kv_pool))
            for tensor in pools[-1].storage():
                tensor.zero_()
            mocker.patch.object(each.attention_backend, "scale", 40.0)
            mocker.patch.object(each.attention_backend, "kv_pool", pools[-1])
        assert generate(runner, arrivals, 1) == generate(plain, arrivals, 1) != as_captured
        assert [int(pool.storage()[0].any(dim=(1, 2)).sum()) for pool in pools] == [13, 13]

    def test_what_asks_the_device_is_left_out_or_done_without(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        spies = {name: mocker.spy(Experts, name) for name in ("sorted", "dense")}
        make_runner(family("deepseek-v2"), decode_graph="on", decode_graph_sizes=(2,))
        assert spies["dense"].call_count == 3 * 2
        assert not spies["sorted"].called
        runner = make_runner(family("deepseek-v2"), prefill_graph="breakable", prefill_graph_sizes=(8,))
        captured = spies["sorted"].call_count
        assert captured == 2 * 2, "to warm up; there is nothing to be sorted while it is recorded"
        runner.forward(
            runner.prepare_forward_batch([Request("r", list(range(3, 10)), SamplingParams(max_new_tokens=1))], [])
        )
        assert spies["sorted"].call_count == captured + 2
        assert spies["sorted"].call_args.args[1].shape[0] == 7, "padding is cut off"


class TestChoice:
    def test_sizes_and_lengths_are_those_of_capture_sizes(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        mocker.patch.object(capture_sizes, "filter_for_gather", return_value=[3])
        mocker.patch.object(capture_sizes, "decode_capture_lengths", return_value=[16, 64, 256])
        runner = make_runner(family("llama"), decode_graph="on", prefill_graph="breakable", max_total_tokens=192)
        decode, prefill = runner.graph_runner, runner.prefill_graph_runner
        assert isinstance(decode, CudaGraphRunner)
        assert isinstance(prefill, BreakableCudaGraphRunner)
        assert sorted(decode.recorded) == [ShapeKey(3, 16), ShapeKey(3, 64)], "not larger than the pool"
        assert sorted(prefill.recorded) == [ShapeKey(3)]

    def test_ranks_that_share_rows_have_their_counts_and_an_alignment(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        plain = make_runner(family("llama"))
        alone = make_runner(family("llama"), decode_graph="on").graph_runner
        assert isinstance(alone, CudaGraphRunner)
        counts = ("num_token_non_padded", "global_num_tokens_gpu", "global_num_tokens_for_logprob_gpu")
        assert not any(alone.registry.has_slot(name) for name in counts)
        # Four ranks, two for the attention of each of two batches; this is the second of its two.
        ranks = capture_sizes.ParallelSizes(tp_size=4, dp_size=2, enable_dp_attention=True, attn_tp_rank=1)
        mocker.patch.object(BucketedGraphRunner, "parallel_sizes", return_value=ranks)
        args = {"decode_graph": "on", "prefill_graph": "breakable", "decode_graph_sizes": (1, 5)}
        runner = make_runner(family("llama"), **args, prefill_graph_sizes=(7, 16))
        decode, prefill = runner.graph_runner, runner.prefill_graph_runner
        assert isinstance(decode, CudaGraphRunner)
        assert isinstance(prefill, BreakableCudaGraphRunner)
        assert (decode.capture_sizes, prefill.capture_sizes) == ([2, 6], [8, 16])
        arrivals = [random_prompts((2, 2, 2, 1), vocab_size=100)]
        assert generate(runner, arrivals, 1) == generate(plain, arrivals, 1)
        assert [prefill.registry.buffers()[name].tolist() for name in counts] == [[3], [8, 8], [8, 8]], "rows 4 to 7"
        assert generate(runner, arrivals) == generate(plain, arrivals)
        assert [decode.registry.buffers()[name].tolist() for name in counts] == [[1], [6, 6], [6, 6]], "rows 3 to 5"

    def test_without_a_list_sizes_go_up_to_the_largest_batch(self, family: Callable[[str], Path]) -> None:
        runner = make_runner(
            family("llama"),
            decode_graph="on",
            prefill_graph="breakable",
            graph_backend="plain",
            decode_graph_sizes=None,
            prefill_graph_sizes=None,
            chunked_prefill_size=20,
        )
        decode, prefill = runner.graph_runner, runner.prefill_graph_runner
        assert isinstance(decode, CudaGraphRunner)
        assert isinstance(prefill, BreakableCudaGraphRunner)
        assert decode.capture_sizes == [1, 2, 4, 8]
        assert prefill.capture_sizes == [4, 8, 12, 16, 20, 24, 28], "20 of prompts, and 8 decodes"

    def test_batches_that_are_too_large_run_as_written(self, family: Callable[[str], Path]) -> None:
        runner = make_runner(family("llama"), decode_graph="on", prefill_graph="breakable")
        decode, prefill = runner.graph_runner, runner.prefill_graph_runner
        assert decode is not None
        assert prefill is not None
        prompts = random_prompts((3, 17, 9, 2, 2), vocab_size=100)
        requests = [Request(str(i), p, SamplingParams(max_new_tokens=3)) for i, p in enumerate(prompts)]
        taken = [prefill.can_run(runner.prepare_forward_batch([request], [])) for request in requests]
        assert taken == [False, False, True, False, False], "3 would be padded to 8, 17 is above 16"
        for request in requests:
            request.output_ids.append(1)
        five = runner.prepare_forward_batch([], requests)
        assert not decode.can_run(five)
        assert not prefill.can_run(five)
        with pytest.raises(EngineError, match="no recorded step for a batch of 5 requests and 5 tokens"):
            decode.replay(five)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"decode_graph": "on", "graph_backend": "paper"}, "graph_backend='paper' .* plain, compiled, tape"),
            ({"prefill_graph": "breakable", "graph_backend": "compiled"}, "choose prefill_graph='piecewise'"),
            ({"decode_graph": "yes"}, "decode_graph='yes' is not known: use one of off, on"),
            ({"prefill_graph": "on"}, "prefill_graph='on' is not known: use one of off, piecewise, breakable"),
            ({"decode_graph_sizes": ()}, "decode_graph_sizes"),
            ({"decode_graph_sizes": [1]}, "decode_graph_sizes"),
            ({"prefill_graph_sizes": (0,)}, "prefill_graph_sizes"),
            ({"graph_backend": ""}, "graph_backend"),
        ],
    )
    def test_what_cannot_be_chosen_is_refused(
        self, family: Callable[[str], Path], args: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            make_runner(family("llama"), **args)

    def test_an_attention_backend_without_metadata_for_replays_is_refused(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        from runtime.layers.attention.base import AttentionBackend
        from runtime.layers.attention.torch_backend import TorchAttentionBackend

        mocker.patch.object(TorchAttentionBackend, "reserve", AttentionBackend.reserve)
        with pytest.raises(ConfigError, match=r"TorchAttentionBackend cannot be recorded.*decode_graph off"):
            make_runner(family("llama"), decode_graph="on")

    def test_a_runner_of_the_platforms_own_stands_in_for_the_in_tree_one(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        capabilities = dataclasses.replace(CpuSRTPlatform().capabilities, graph_capture=True)
        mocker.patch.object(CpuSRTPlatform, "capabilities", capabilities)
        mocker.patch.object(CpuSRTPlatform, "get_graph_runner_cls", return_value=OwnDecodes)
        factory = mocker.patch.object(CpuSRTPlatform, "get_prefill_graph_runner_cls", return_value=OwnPrompts)
        runner = make_runner(family("llama"), prefill_graph="breakable")
        assert [type(each) for each in runner.graph_runners] == [OwnDecodes, OwnPrompts]
        factory.assert_called_once_with("breakable")
        assert make_runner(family("llama"), decode_graph="off").graph_runners == []

    def test_a_prefill_runner_needs_the_capability(self, family: Callable[[str], Path], mocker: MockerFixture) -> None:
        mocker.patch.object(CpuSRTPlatform, "get_prefill_graph_runner_cls", return_value=OwnPrompts)
        with pytest.raises(ConfigError, match=r"get_prefill_graph_runner_cls.*graph_capture"):
            make_runner(family("llama"), prefill_graph="breakable")


class OwnDecodes(CudaGraphRunner):
    pass


class OwnPrompts(BreakableCudaGraphRunner):
    pass


class TestAddresses:
    @pytest.mark.parametrize("what", ["input_ids", "attention metadata 0", "KV buffer 1", "output"])
    def test_what_has_moved_is_named_before_a_replay(self, family: Callable[[str], Path], what: str) -> None:
        runner = make_runner(family("llama"), decode_graph="on")
        decode = runner.graph_runner
        assert isinstance(decode, CudaGraphRunner)
        generate(runner, [random_prompts((3,), vocab_size=100)])
        if what == "input_ids":
            slot = decode.registry.slot("input_ids")
            assert slot.buffer is not None
            slot.buffer = slot.buffer.clone()
        elif what == "output":
            assert decode._output is not None
            decode._output = decode._output.clone()
        elif what == "KV buffer 1":
            pool: Any = runner.token_to_kv_pool
            pool.k_buffer[1] = pool.k_buffer[1].clone()
        else:
            backend: Any = runner.attention_backend
            builder = next(iter(backend.builders.values()))
            builder.slots = builder.slots.clone()
        with pytest.raises(EngineError, match=f"CudaGraphRunner: {what} moved"):
            generate(runner, [random_prompts((3,), vocab_size=100)])

    def test_it_is_checked_only_on_request(
        self, family: Callable[[str], Path], mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(GRAPH_CHECK_ENV)
        check = mocker.spy(BucketedGraphRunner, "check_addresses")
        generate(make_runner(family("llama"), decode_graph="on"), [random_prompts((3,), vocab_size=100)])
        assert not check.called

    def test_runners_of_one_size_share_their_buffers(self, family: Callable[[str], Path]) -> None:
        runner = make_runner(
            family("llama"),
            decode_graph="on",
            prefill_graph="breakable",
            decode_graph_sizes=(8,),
            prefill_graph_sizes=(8,),
        )
        decode, prefill = runner.graph_runner, runner.prefill_graph_runner
        assert isinstance(decode, CudaGraphRunner)
        assert isinstance(prefill, BreakableCudaGraphRunner)
        shared = decode.registry.addresses().items() & prefill.registry.addresses().items()
        assert {name for name, _ in shared} == {"input_ids", "positions", "out_cache_loc"}
