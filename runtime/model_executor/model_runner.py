"""A model on a device with its pools: assembles a batch, runs it, samples from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

import runtime.mem_cache.memory_pool as memory_pool
import runtime.mem_cache.pool_selection as pool_selection
import runtime.mem_cache.radix_cache as radix_cache
import runtime.models.loader as loader
import runtime.sampling.logits_processor as logits_processor
import runtime.sampling.sampler as sampler
from runtime import platforms
from runtime.config import ServerArgs
from runtime.core.errors import ConfigError, PlatformError
from runtime.core.forward_batch import ForwardBatch
from runtime.core.request import Request
from runtime.layers.attention.base import AttentionBackend
from runtime.model_executor import (
    breakable_cuda_graph_runner,
    cuda_graph_runner,
    graph_runner,
    piecewise_cuda_graph_runner,
)
from runtime.model_executor.batch_builder import BatchBuilder
from runtime.model_executor.graph_runner import GraphRunner
from runtime.platforms import answers, probe, unused_forwards

logger = logging.getLogger(__name__)


class ModelRunner:
    """Everything between a scheduler and a device.

    Attributes:
        server_args: the resolved arguments, the platform's defaults filled in.
        max_running_requests: requests in one batch at most.
        max_prefill_tokens: prompt tokens in one forward pass at most.
        device: where the model runs.
        dtype: dtype of weights and activations.
        page_size: KV slots per page.
        kv_cache_dtype: dtype that keys and values are stored in.
        model, model_config: the loaded model and its configuration.
        context_length: tokens of one sequence at most.
        eos_token_ids: tokens that end a sequence.
        vocab_size: width of the logits.
        max_total_tokens: KV slots there are, in whole pages.
        req_to_token_pool, token_to_kv_pool, token_to_kv_pool_allocator: the pools.
        prefix_cache: what is kept of sequences that ran; None where that is switched off.
        batch_builder: gives requests their rows and slots.
        attention_backend: the platform's, shared by all layers.
        graph_runner: what replays recorded decodes; None where every decode runs as it is written.
        prefill_graph_runner: what replays recorded steps with prompts; None where each of them runs as it is written.

    Raises:
        ConfigError: an argument is out of range or does not fit the model or the platform.
        ModelLoadError: the checkpoint cannot be loaded.
        PlatformError: no platform, or no memory for the KV pool.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        platform = platforms.current_platform
        capabilities = platform.capabilities
        if not isinstance(capabilities, platforms.PlatformCapabilities):
            raise ConfigError(
                f"platform {platform.device_name}: capabilities has to be PlatformCapabilities, not {capabilities!r}"
            )
        self.server_args = server_args.with_platform_defaults()
        assert self.server_args.max_running_requests is not None, "checked above"
        assert self.server_args.max_prefill_tokens is not None, "checked above"
        assert self.server_args.page_size is not None, "checked above"
        self.max_running_requests = self.server_args.max_running_requests
        self.max_prefill_tokens = self.server_args.max_prefill_tokens
        _, self.model_config = loader.load_config(self.server_args.model)
        self.dtype = loader.resolve_dtype(self.server_args.dtype, self.model_config, self.server_args.model)
        if self.dtype not in probe.declared_dtypes():
            raise ConfigError(
                f"dtype {self.dtype} is not supported on {platform.device_name}: use one of"
                f" {', '.join(capabilities.dtypes)}"
            )
        self.page_size = self.server_args.page_size
        self.kv_cache_dtype = self._resolve_kv_cache_dtype(capabilities)
        graph_runner_cls = self._graph_runner_cls(capabilities)
        prefill_graph_runner_cls = self._prefill_graph_runner_cls(capabilities)
        self.kv_pool_cls = pool_selection.resolve_kv_pool_cls(
            self.model_config.attention_kind, self.model_config.kv_pool_args()
        )
        pool_selection.resolve_allocator_cls(self.page_size)  # what is wrong with it is better known now
        self.attention_backend_cls = platforms.resolve_class(
            platform.get_default_attention_backend(),
            AttentionBackend,  # type: ignore[type-abstract]
            "attention backend from get_default_attention_backend",
            ("req_to_token_pool", "kv_pool", "config", "dtype"),
        )
        platform.init_backend()
        self.device = answers.get_device(0)
        platform.set_device(self.device)
        self._check_device(capabilities, [graph_runner_cls, prefill_graph_runner_cls])
        if self.server_args.random_seed is not None:
            platform.seed_everything(self.server_args.random_seed)
        self.context_length = self._resolve_context_length()
        self.eos_token_ids = self.model_config.eos_token_ids
        self.vocab_size = self.model_config.vocab_size
        self.model, _ = loader.load_model(self.server_args.model, self.dtype, self.device)
        platform.post_load_model(self.model)
        unused_forwards.warn()  # whatever registers forwards has run by now, and no operation has
        self.max_total_tokens = pool_selection.num_kv_slots(
            self.kv_pool_cls,
            dtype=self.kv_cache_dtype,
            page_size=self.page_size,
            kv_pool_args=self.model_config.kv_pool_args(),
            useful=self.max_running_requests * -(-self.context_length // self.page_size) * self.page_size,
            asked=self.server_args.max_total_tokens,
        )
        try:
            self._create_pools()
        except RuntimeError as error:  # torch says so when it cannot allocate
            raise PlatformError(
                f"no memory for {self.max_running_requests} requests of {self.context_length} tokens and"
                f" {self.max_total_tokens} KV slots; lower max_running_requests or max_total_tokens"
                f" (torch: {' '.join(str(error).split())[:200]})"
            ) from error
        self.graph_runner = None if graph_runner_cls is None else graph_runner_cls(self)
        self.prefill_graph_runner = None if prefill_graph_runner_cls is None else prefill_graph_runner_cls(self)
        self.graph_runners = [runner for runner in (self.graph_runner, self.prefill_graph_runner) if runner is not None]
        logger.info(
            "%s on %s (%.1f GiB, %.1f GiB in use): %s, context of %d tokens, %d KV slots",
            self.server_args.model,
            platforms.current_platform.get_device_name(),
            platforms.current_platform.get_device_total_memory() / 2**30,
            platforms.current_platform.get_current_memory_usage() / 2**30,
            self.dtype,
            self.context_length,
            self.max_total_tokens,
        )

    def prepare_forward_batch(
        self, extends: Sequence[Request], decodes: Sequence[Request], extend_lens: Sequence[int] | None = None
    ) -> ForwardBatch:
        """Assemble one forward pass and take what it needs from the pools; see `BatchBuilder.build`."""
        return self.batch_builder.build(extends, decodes, extend_lens)

    def release(self, request: Request) -> None:
        """Give back what a request holds of the pools; see `BatchBuilder.release`."""
        self.batch_builder.release(request)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """[B, vocab] logits after the last token of each row, in the model's dtype; valid until the next forward."""
        with platforms.current_platform.inference_mode():
            runner = graph_runner.runner_for(batch, self.graph_runners)
            return self.forward_eager(batch) if runner is None else runner.replay(batch)

    def forward_eager(self, batch: ForwardBatch) -> torch.Tensor:
        """[B, vocab] logits as `forward` gives them, computed operation by operation."""
        self.attention_backend.init_forward_metadata(batch)
        hidden_states = self.model.forward(batch.input_ids, batch.positions, self.attention_backend)
        return self.model.compute_logits(logits_processor.last_hidden_states(hidden_states, batch))

    def sample(self, logits: torch.Tensor, sampling_batch: sampler.SamplingBatch) -> list[int]:
        """One token id per row of `logits` ([B, vocab]); waits for the device."""
        with platforms.current_platform.inference_mode():
            return sampler.sample(logits, sampling_batch).tolist()

    def _check_device(
        self, capabilities: platforms.PlatformCapabilities, graph_runner_classes: Sequence[type[GraphRunner] | None]
    ) -> None:
        """Let the device show what the platform declares and this model relies on, before that is loaded."""
        answers.check_all()
        probe.check_dtype(self.dtype, self.device)
        if capabilities.float64:
            probe.check_float64(self.device)
        pool_selection.check_in_tree_pool(
            self.model_config.attention_kind,
            dtype=self.kv_cache_dtype,
            model_dtype=self.dtype,
            page_size=self.page_size,
            kv_pool_args=self.model_config.kv_pool_args(),
            device=self.device,
        )
        for graph_runner_cls in graph_runner_classes:
            if graph_runner_cls is not None:
                graph_runner_cls.check_device(self.server_args, self.device)

    def _graph_runner_cls(self, capabilities: platforms.PlatformCapabilities) -> type[GraphRunner] | None:
        asked = self.server_args.decode_graph
        chosen = platforms.current_platform.get_graph_runner_cls()
        if chosen is not None:
            own = self._platforms_graph_runner_cls(chosen, "get_graph_runner_cls", capabilities)
            return None if asked == "off" else own
        return cuda_graph_runner.CudaGraphRunner if asked == "on" else None

    def _prefill_graph_runner_cls(self, capabilities: platforms.PlatformCapabilities) -> type[GraphRunner] | None:
        kind = self.server_args.prefill_graph
        if kind in (None, "off"):
            return None
        chosen = platforms.current_platform.get_prefill_graph_runner_cls(kind)
        if chosen is not None:
            return self._platforms_graph_runner_cls(chosen, "get_prefill_graph_runner_cls", capabilities)
        if kind == "piecewise":
            return piecewise_cuda_graph_runner.PiecewiseCudaGraphRunner
        return breakable_cuda_graph_runner.BreakableCudaGraphRunner

    @staticmethod
    def _platforms_graph_runner_cls(
        chosen: type | str, factory: str, capabilities: platforms.PlatformCapabilities
    ) -> type[GraphRunner]:
        if not capabilities.graph_capture:
            raise ConfigError(
                f"platform {platforms.current_platform.device_name} has a graph runner ({factory}) but does not declare"
                " graph_capture in its capabilities"
            )
        base: type[GraphRunner] = GraphRunner  # type: ignore[type-abstract]
        return platforms.resolve_class(chosen, base, f"graph runner from {factory}", ["model_runner"])

    def _resolve_kv_cache_dtype(self, capabilities: platforms.PlatformCapabilities) -> torch.dtype:
        asked = self.server_args.kv_cache_dtype
        if asked == "auto":
            return self.dtype
        if asked in loader.DTYPES and asked not in capabilities.dtypes:
            raise ConfigError(
                f"kv_cache_dtype {asked} is not supported on {platforms.current_platform.device_name}: use one of"
                f" {', '.join(capabilities.dtypes)} or an 8-bit float"
            )
        dtype: torch.dtype = getattr(torch, asked)
        return dtype

    def _resolve_context_length(self) -> int:
        limit = self.model_config.max_context_length
        asked = self.server_args.context_length
        if asked is not None and asked > limit:
            raise ConfigError(f"context_length={asked} is more than the model was made for: at most {limit}")
        return self.model_config.max_position_embeddings if asked is None else asked

    def _create_pools(self) -> None:
        config = self.model_config
        self.req_to_token_pool = memory_pool.ReqToTokenPool(self.max_running_requests, self.context_length, self.device)
        self.token_to_kv_pool = pool_selection.create_kv_pool(
            self.kv_pool_cls,
            size=self.max_total_tokens,
            page_size=self.page_size,
            dtype=self.kv_cache_dtype,
            kv_pool_args=config.kv_pool_args(),
            device=self.device,
        )
        self.token_to_kv_pool_allocator = pool_selection.create_allocator(
            size=self.max_total_tokens, page_size=self.page_size, device=self.device
        )
        self.attention_backend = self.attention_backend_cls(
            self.req_to_token_pool,
            self.token_to_kv_pool,
            config.attention_config(),
            self.dtype,
        )
        self.prefix_cache = (
            None
            if self.server_args.disable_radix_cache
            else radix_cache.RadixCache(page_size=self.page_size, device=self.device)
        )
        self.batch_builder = BatchBuilder(
            self.req_to_token_pool, self.token_to_kv_pool_allocator, self.device, self.prefix_cache
        )
