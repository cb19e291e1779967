"""The targets of the catalogue that no run of `catalogue_run` reaches, by the test that reaches them."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from runtime.plugins.hook_target import HookTarget

_PLATFORM = "runtime.platforms.current_platform"
_GRAPHS = "runtime.platforms.graph_backend"
_POOLS = "runtime.mem_cache.memory_pool"
_SLOTS = "runtime.mem_cache.allocator"
_TREE = "runtime.mem_cache.radix_cache.RadixCache"
_EXECUTOR = "runtime.model_executor"
_SIZES = f"{_EXECUTOR}.capture_sizes"
_BUFFERS = f"{_EXECUTOR}.cuda_graph_buffer_registry"
_LAYERS = "runtime.layers"
_DEEPSEEK = "runtime.models.deepseek"
_BACKEND = f"{_LAYERS}.attention.torch_backend.TorchAttentionBackend"
_PIECEWISE = f"{_EXECUTOR}.piecewise_cuda_graph_runner.PiecewiseCudaGraphRunner"


def is_class(target: HookTarget) -> bool:
    """Whether the target is a class, which can only be replaced."""
    return target.name.rpartition(".")[2][0].isupper()


def _at(prefix: str, names: str) -> list[str]:
    return [f"{prefix}.{name}" for name in names.split()]


def _all(*parts: Iterable[str]) -> frozenset[str]:
    return frozenset(name for part in parts for name in part)


ELSEWHERE = MappingProxyType(
    {
        "the questions about an engine": _all(
            ["runtime.entrypoints.engine.Engine.applied_hooks"],
            _at("runtime.managers.tokenizer_manager.TokenizerManager", "scheduler_hooks scheduler_pid"),
        ),
        "python -m runtime platform --check": _all(
            _at(
                _PLATFORM,
                "get_device_uuid get_device_capability get_cpu_architecture create_stream current_stream use_stream"
                " create_event get_torch_distributed_backend_str get_profiler_activity is_out_of_tree",
            ),
            _at("runtime.platforms.report", "describe check"),
        ),
        "a plugin asks which platform this is": _all(
            _at(
                _PLATFORM,
                "is_available is_cuda is_rocm is_cpu is_xpu is_npu is_musa is_mps is_cuda_alike",
            )
        ),
        "no platform is named": _all(["runtime.platforms.accelerator.AcceleratorDeviceMixin.is_available"]),
        "a platform brings a forward": _all(
            ["runtime.platforms.multi_platform.MultiPlatformOp.register_oot_forward"],
        ),
        "a device records": _all(
            _at(f"{_GRAPHS}.DeviceGraphBackend", "capture_session begin end abort"),
            _at(f"{_GRAPHS}.CudaGraphBackend", "synchronize side_stream new_graph"),
            _at(f"{_GRAPHS}.AcceleratorGraphBackend", "synchronize side_stream new_graph"),
        ),
        "latent attention": _all(
            [f"{_PLATFORM}.get_mla_kv_pool_cls", f"{_POOLS}.MLATokenToKVPool"],
            _at(f"{_POOLS}.MLATokenToKVPool", "bytes_per_token set_mla_kv_buffer get_key_buffer"),
            _at(f"{_DEEPSEEK}.DeepseekForCausalLM", "make_layer make_attention"),
            _at(
                "runtime.models.deepseek_config.DeepseekConfig",
                "fields_from_hf kv_pool_args attention_config",
            ),
        ),
        "sparse attention, recorded": _all(
            [f"{_PLATFORM}.get_nsa_kv_pool_cls", f"{_POOLS}.NSATokenToKVPool", f"{_POOLS}.MLATokenToKVPool.storage"],
            _at(
                f"{_POOLS}.NSATokenToKVPool",
                "bytes_per_token storage get_index_k_buffer set_index_k_buffer",
            ),
            _at(f"{_EXECUTOR}.cuda_graph_runner.CudaGraphRunner", "record addresses check_addresses"),
            [f"{_LAYERS}.layernorm.LayerNorm.forward", f"{_LAYERS}.moe.GroupLimitedRouter.forward"],
            _at(f"{_LAYERS}.moe.Experts", "forward forward_cpu dense sorted"),
            _at(_DEEPSEEK, "DeepseekMoE.forward LatentAttention.forward Indexer.forward"),
            [f"{_DEEPSEEK}.DeepseekV32ForCausalLM.make_attention"],
            [f"{_LAYERS}.attention.latent.index_scores", f"{_BACKEND}.forward_mla", f"{_BACKEND}.reserved_tensors"],
        ),
        "a mixture of experts on another platform": _all(
            [f"{_LAYERS}.layernorm.HeadNorm.forward_native", f"{_LAYERS}.layernorm.RMSNorm.forward_cuda"],
            _at("runtime.models.qwen", "Qwen3ForCausalLM.make_attention Qwen3MoeForCausalLM.make_layer"),
            _at(f"{_LAYERS}.moe", "SoftmaxRouter.forward SparseMLP.forward Experts.forward_native Experts.gathered"),
        ),
        "prompts are recorded": _all(
            _at(
                f"{_EXECUTOR}.breakable_cuda_graph_runner.BreakableCudaGraphRunner",
                "record addresses check_addresses",
            ),
            [f"{_POOLS}.MHATokenToKVPool.storage", "runtime.platforms.probe.check_graph_capture"],
        ),
        "prompts are compiled": _all(
            [f"{_PLATFORM}.get_compile_backend", "runtime.platforms.probe.check_compiler", _PIECEWISE],
            _at(
                _PIECEWISE,
                "check_device make_backend parallel_sizes aligned gather_options choose_capture_sizes build_registry"
                " make_recorder capture_keys capture capture_one step_for fill build_replay_fb_view replay logits_of"
                " init_replay_metadata record addresses"
                " check_addresses can_run key_for",
            ),
        ),
        "pages are checked": _all(
            [f"{_SLOTS}.PagedTokenToKVPoolAllocator.check_integrity"],
        ),
        "pools are checked": _all(
            [f"{_SLOTS}.TokenToKVPoolAllocator.check_integrity"],
            _at(_TREE, "all_slots check_integrity protected_size"),
            [f"{_EXECUTOR}.batch_builder.BatchBuilder.check_integrity"],
        ),
        "checkpoints with more than the model": _all(
            ["runtime.models.decoder.CausalLM.ignorable_tensor"],
            [
                f"{_DEEPSEEK}.DeepseekForCausalLM.ignorable_tensor",
                "runtime.models.mixtral.MixtralForCausalLM.make_layer",
            ],
        ),
        "somebody uses the pools": _all(
            [f"{_POOLS}.ReqToTokenPool.clear"],
            _at(f"{_POOLS}.KVCache", "get_cpu_copy load_cpu_copy"),
            _at(f"{_POOLS}.MLATokenToKVPool", "get_value_buffer set_kv_buffer"),
            [f"{_SLOTS}.PagedTokenToKVPoolAllocator.alloc", f"{_EXECUTOR}.model_runner.ModelRunner.release"],
        ),
        "somebody writes a graph runner": _all(
            [f"{_BUFFERS}.local_num_token_non_padded"],
            _at(f"{_BUFFERS}.CudaGraphBufferRegistry", "has_slot slot_names slot addresses"),
            _at(f"{_EXECUTOR}.input_buffers", "share_input_buffers_in forget_shared_buffers"),
        ),
    }
)
"""Test, in words, to the targets that it reaches and no run does."""
