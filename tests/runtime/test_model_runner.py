"""What a model runner makes of its arguments, and how batches take and give back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from runtime import platforms
from runtime.config import ServerArgs
from runtime.core.errors import ConfigError, EngineError, PlatformError
from runtime.core.forward_batch import ForwardBatch
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.layers.attention.torch_backend import TorchAttentionBackend
from runtime.mem_cache import pool_selection
from runtime.mem_cache.memory_pool import MHATokenToKVPool
from runtime.model_executor.graph_runner import GraphRunner
from runtime.model_executor.model_runner import ModelRunner
from runtime.models import loader
from runtime.platforms import PlatformCapabilities
from runtime.platforms.cuda import CudaSRTPlatform
from runtime.platforms.rocm import RocmSRTPlatform


def make_runner(directory: Path, **args: object) -> ModelRunner:
    return ModelRunner(ServerArgs(str(directory), **args))  # type: ignore[arg-type]


def request(*input_ids: int) -> Request:
    return Request("r", list(input_ids), SamplingParams())


def test_sizes_follow_from_arguments_and_model(llama_checkpoint: Path) -> None:
    runner = make_runner(llama_checkpoint, max_running_requests=3)
    assert runner.context_length == runner.model_config.max_position_embeddings == 256
    assert runner.max_total_tokens == 3 * 256
    assert runner.vocab_size == runner.model_config.vocab_size
    assert runner.eos_token_ids == runner.model_config.eos_token_ids
    assert runner.req_to_token_pool.req_to_token.shape == (4, 256)
    smaller = make_runner(llama_checkpoint, max_running_requests=3, context_length=100, max_total_tokens=150)
    assert (smaller.context_length, smaller.max_total_tokens) == (100, 150)
    paged = make_runner(llama_checkpoint, max_running_requests=3, context_length=100, page_size=64)
    assert paged.max_total_tokens == 3 * 128, "each request ends in a page of its own"
    assert smaller.token_to_kv_pool_allocator.available_size() == 150
    assert smaller.token_to_kv_pool.get_key_buffer(0).shape[0] == 151


def test_the_pool_fits_the_memory_that_is_free(llama_checkpoint: Path, mocker: MockerFixture) -> None:
    config = make_runner(llama_checkpoint).model_config
    slot = MHATokenToKVPool.bytes_per_token(
        torch.float32, config.num_key_value_heads, config.head_dim, config.num_hidden_layers
    )
    free = mocker.patch.object(type(platforms.current_platform), "get_available_memory")
    free.return_value = (1000 * slot, 2000 * slot)
    assert make_runner(llama_checkpoint).max_total_tokens == 799
    with pytest.raises(ConfigError, match=r"max_total_tokens=5000 .* at most 799"):
        make_runner(llama_checkpoint, max_total_tokens=5000)
    free.return_value = (slot, 2000 * slot)
    with pytest.raises(PlatformError, match="no memory for a KV pool"):
        make_runner(llama_checkpoint)


def test_a_context_longer_than_the_model_was_made_for_is_refused(llama_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"context_length=257 .* at most 256"):
        make_runner(llama_checkpoint, context_length=257)


def test_a_dtype_the_platform_lacks_is_refused_before_loading(llama_checkpoint: Path, mocker: MockerFixture) -> None:
    cls = type(platforms.current_platform)
    mocker.patch.object(cls, "capabilities", PlatformCapabilities(dtypes=("float32",)))
    load = mocker.patch("runtime.models.loader.load_model")
    with pytest.raises(ConfigError, match="bfloat16 is not supported on cpu"):
        make_runner(llama_checkpoint, dtype="bf16")
    with pytest.raises(ConfigError, match="kv_cache_dtype bfloat16 is not supported on cpu: use one of float32 or"):
        make_runner(llama_checkpoint, kv_cache_dtype="bf16")
    load.assert_not_called()


def test_every_device_operation_goes_through_the_platform(llama_checkpoint: Path, mocker: MockerFixture) -> None:
    cls = type(platforms.current_platform)
    names = (
        "init_backend",
        "apply_server_args_defaults",
        "post_load_model",
        "get_graph_runner_cls",
        "is_pin_memory_available",
        "get_device",
        "set_device",
        "get_device_name",
        "get_device_total_memory",
        "get_available_memory",
        "get_current_memory_usage",
        "empty_cache",
        "synchronize",
        "seed_everything",
        "inference_mode",
        "get_mha_kv_pool_cls",
        "get_paged_allocator_cls",
        "get_default_attention_backend",
    )
    spies = {name: mocker.spy(cls, name) for name in names}
    runner = make_runner(llama_checkpoint, random_seed=7)
    runner.forward(runner.prepare_forward_batch([request(1, 2)], []))
    assert {name for name, spy in spies.items() if not spy.call_count} == set()
    spies["seed_everything"].assert_called_once_with(platforms.current_platform, 7)


def test_capabilities_are_read_before_anything_is_made(llama_checkpoint: Path, mocker: MockerFixture) -> None:
    cls = type(platforms.current_platform)
    order: list[str] = []

    def note(name: str, target: object, attribute: str) -> None:
        real = getattr(target, attribute)

        def noted(*args: Any, **kwargs: Any) -> Any:
            order.append(name)
            return real(*args, **kwargs)

        mocker.patch.object(target, attribute, noted)

    declared = platforms.current_platform.capabilities
    mocker.patch.object(
        cls,
        "capabilities",
        property(lambda self: order.append("capabilities") or declared),  # type: ignore[func-returns-value]
    )
    for name in ("init_backend", "get_device", "post_load_model", "get_graph_runner_cls"):
        note(name, cls, name)
    note("model", loader, "load_model")
    note("pool", pool_selection, "create_kv_pool")
    note("attention", TorchAttentionBackend, "__init__")
    make_runner(llama_checkpoint)
    assert order[0] == "capabilities"
    assert [name for name in order if name != "capabilities"] == [
        *("get_graph_runner_cls", "init_backend", "get_device", "model", "post_load_model", "pool", "attention")
    ]


class Recorder(GraphRunner):
    """Stands for a platform's graph runner: takes batches of one row."""

    replayed = 0

    def can_run(self, batch: ForwardBatch) -> bool:
        return batch.batch_size == 1

    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        self.replayed += 1
        assert torch.is_inference_mode_enabled()
        return self.model_runner.forward_eager(batch)


def declare(mocker: MockerFixture, graph_capture: bool, value: object) -> None:
    cls = type(platforms.current_platform)
    capabilities = PlatformCapabilities(dtypes=("float32",), float64=True, graph_capture=graph_capture)
    mocker.patch.object(cls, "capabilities", capabilities)
    mocker.patch.object(cls, "get_graph_runner_cls", return_value=value)


@pytest.mark.parametrize("value", [Recorder, f"{__name__}:Recorder"])
def test_a_graph_runner_replays_the_batches_it_takes(
    llama_checkpoint: Path, mocker: MockerFixture, value: object
) -> None:
    plain = make_runner(llama_checkpoint)
    assert plain.graph_runner is None
    declare(mocker, True, value)
    runner = make_runner(llama_checkpoint)
    assert isinstance(runner.graph_runner, GraphRunner)
    for prompts, replayed in (([(1, 2)], 1), ([(1, 2), (3,)], 1)):
        expected = plain.forward(plain.prepare_forward_batch([request(*prompt) for prompt in prompts], []))
        got = runner.forward(runner.prepare_forward_batch([request(*prompt) for prompt in prompts], []))
        assert torch.equal(got, expected)
        assert vars(runner.graph_runner).get("replayed") == replayed


@pytest.mark.parametrize(
    ("graph_capture", "value", "message"),
    [
        (False, Recorder, "has a graph runner .* but does not declare graph_capture"),
        (True, "collections.OrderedDict", "get_graph_runner_cls: collections.OrderedDict must be a subclass of"),
    ],
)
def test_a_graph_runner_that_cannot_be_used_is_refused_before_anything_is_made(
    llama_checkpoint: Path, mocker: MockerFixture, graph_capture: bool, value: object, message: str
) -> None:
    declare(mocker, graph_capture, value)
    load = mocker.patch("runtime.models.loader.load_model")
    with pytest.raises(ConfigError, match=message):
        make_runner(llama_checkpoint)
    load.assert_not_called()


def test_the_model_is_the_platforms_to_change_after_loading(llama_checkpoint: Path, mocker: MockerFixture) -> None:
    hook = mocker.patch.object(type(platforms.current_platform), "post_load_model")
    runner = make_runner(llama_checkpoint)
    hook.assert_called_once_with(runner.model)


@pytest.mark.parametrize("pinned", [True, False])
def test_host_tensors_are_page_locked_where_the_platform_can(
    llama_checkpoint: Path, mocker: MockerFixture, pinned: bool
) -> None:
    mocker.patch.object(type(platforms.current_platform), "is_pin_memory_available", return_value=pinned)
    runner = make_runner(llama_checkpoint)
    real, asked = torch.tensor, []

    def tensor(values: Any, *, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return real(values, **kwargs)

    mocker.patch.object(torch, "tensor", tensor)
    batch = runner.prepare_forward_batch([request(1, 2, 3)], [])
    assert batch.input_ids.tolist() == [1, 2, 3]
    assert asked
    assert set(asked) == {pinned}


def test_open_arguments_get_the_platforms_defaults_and_given_ones_stay(
    llama_checkpoint: Path, mocker: MockerFixture
) -> None:
    assert make_runner(llama_checkpoint).max_running_requests == 64
    assert make_runner(llama_checkpoint).max_prefill_tokens == 4096
    for cls, rows, tokens in ((CudaSRTPlatform, 256, 8192), (RocmSRTPlatform, 64, 4096)):
        made = cls().apply_server_args_defaults(ServerArgs("x"))
        assert (made.max_running_requests, made.max_prefill_tokens) == (rows, tokens)
        made = cls().apply_server_args_defaults(ServerArgs("x", max_running_requests=5))
        assert (made.max_running_requests, made.max_prefill_tokens) == (5, tokens)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"max_running_requests": None}, "platform cpu left max_running_requests open: .* super"),
        ({"context_length": 9}, "platform cpu changed context_length from 20 to 9: .* only fill arguments that are"),
        ({"max_prefill_tokens": 0}, "max_prefill_tokens=0 is not valid"),
        (None, "apply_server_args_defaults has to return ServerArgs, not None"),
    ],
)
def test_a_platform_that_does_anything_else_with_arguments_is_refused(
    llama_checkpoint: Path, mocker: MockerFixture, returned: dict[str, object] | None, message: str
) -> None:
    given = ServerArgs(str(llama_checkpoint), context_length=20).resolve()
    filled = dataclasses.replace(given, max_running_requests=1, max_prefill_tokens=1)
    value = None if returned is None else dataclasses.replace(filled, **returned)  # type: ignore[arg-type]
    mocker.patch.object(type(platforms.current_platform), "apply_server_args_defaults", return_value=value)
    with pytest.raises(ConfigError, match=message):
        ModelRunner(given)


def test_what_torch_says_when_pools_cannot_be_made_is_passed_on(llama_checkpoint: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(pool_selection, "create_kv_pool", side_effect=RuntimeError("the driver\nhas gone away"))
    with pytest.raises(PlatformError, match=r"no memory for 64 requests .* \(torch: the driver has gone away\)"):
        make_runner(llama_checkpoint)


class VendorBackend(TorchAttentionBackend):
    """Stands for a platform's own attention."""


def test_the_platform_brings_the_attention_backend(llama_checkpoint: Path, mocker: MockerFixture) -> None:
    hook = mocker.patch.object(type(platforms.current_platform), "get_default_attention_backend")
    hook.return_value = VendorBackend
    assert type(make_runner(llama_checkpoint).attention_backend) is VendorBackend
    hook.return_value = "collections.OrderedDict"
    with pytest.raises(ConfigError, match=r"get_default_attention_backend: collections\.OrderedDict must be"):
        make_runner(llama_checkpoint)


def test_a_mixed_batch_is_laid_out_extends_first(llama_checkpoint: Path) -> None:
    runner = make_runner(llama_checkpoint)
    old, new, newer = request(1, 2, 3), request(7, 8), request(9)
    runner.prepare_forward_batch([old], [])
    old.output_ids.append(4)
    batch = runner.prepare_forward_batch([new, newer], [old])
    assert batch.forward_mode.is_mixed()
    assert batch.input_ids.tolist() == [7, 8, 9, 4]
    assert batch.positions.tolist() == [0, 1, 0, 3]
    assert batch.seq_lens.tolist() == batch.seq_lens_cpu == [2, 1, 4]
    assert (batch.extend_lens_cpu, batch.num_extend, batch.num_extend_tokens) == ([2, 1, 1], 2, 3)
    assert batch.req_pool_indices.tolist() == [r.req_pool_index for r in (new, newer, old)]
    table = runner.req_to_token_pool.req_to_token
    assert table[old.req_pool_index, :4].tolist()[3] == batch.out_cache_loc[3]
    assert table[new.req_pool_index, :2].tolist() == batch.out_cache_loc[:2].tolist()
    assert [r.kv_len for r in (old, new, newer)] == [4, 2, 1]
    for r in (old, new, newer):
        runner.release(r)
        assert (r.req_pool_index, r.kv_len) == (None, 0)
        runner.release(r)
    assert runner.token_to_kv_pool_allocator.available_size() == runner.max_total_tokens


def test_running_out_of_slots_or_rows_takes_nothing(llama_checkpoint: Path) -> None:
    runner = make_runner(llama_checkpoint, max_running_requests=2, max_total_tokens=6)
    held = request(1, 2, 3)
    runner.prepare_forward_batch([held], [])
    held.output_ids.append(4)
    large = request(*range(1, 5))
    with pytest.raises(EngineError, match="out of KV slots: 5 needed, 3 free"):
        runner.prepare_forward_batch([large], [held])
    with pytest.raises(EngineError, match="out of request rows: 2 needed, 1 free"):
        runner.prepare_forward_batch([request(1), request(2)], [held])
    assert (large.req_pool_index, large.kv_len, held.kv_len) == (None, 0, 3)
    assert runner.token_to_kv_pool_allocator.available_size() == 3
    assert runner.req_to_token_pool.available_size() == 1
    slots = runner.req_to_token_pool.req_to_token[held.req_pool_index, :3]
    runner.token_to_kv_pool_allocator.check_integrity(slots)


def test_what_cannot_be_part_of_a_batch_is_refused(llama_checkpoint: Path) -> None:
    runner = make_runner(llama_checkpoint, context_length=4)
    fresh, done = request(1, 2), request(3)
    runner.prepare_forward_batch([done], [])
    for extends, decodes, message in (
        ([], [], "at least one"),
        ([], [fresh], "cannot decode: 2 tokens, 0 of them cached"),
        ([], [done], "cannot decode: 1 tokens, 1 of them cached"),
        ([done], [], "no new token"),
        ([request()], [], "no new token"),
        ([request(1, 2, 3, 4, 5)], [], "has 5 tokens, the context length is 4"),
    ):
        with pytest.raises(EngineError, match=message):
            runner.prepare_forward_batch(extends, decodes)


def test_a_padded_row_never_reads_the_slots_of_others(llama_checkpoint: Path) -> None:
    # A short row beside a long one is padded; what other requests have in slots must not reach it, not even as NaN.
    runner = make_runner(llama_checkpoint, max_running_requests=4)
    gone = request(*range(60))
    runner.prepare_forward_batch([gone], [])
    stale_row = gone.req_pool_index
    runner.release(gone)
    others = runner.token_to_kv_pool_allocator.alloc(60)
    for layer in range(runner.model_config.num_hidden_layers):
        for buffer in runner.token_to_kv_pool.get_kv_buffer(layer):
            buffer[others] = torch.nan
    short, long = request(5), request(*range(60))
    runner.forward(runner.prepare_forward_batch([short, long], []))
    assert short.req_pool_index == stale_row
    for r in (short, long):
        r.output_ids.append(3)
    logits = runner.forward(runner.prepare_forward_batch([], [short, long]))
    assert logits.isfinite().all()
