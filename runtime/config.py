"""What an engine is started with: frozen arguments, one `resolve()`, and the environment the runtime reads.

Imports no torch: the process that only takes requests and passes them on stays light.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

from runtime import platforms
from runtime.core.errors import ConfigError, ModelLoadError
from runtime.platforms import host_threads

CHECK_ENV = "RUNTIME_CHECK_INTEGRITY"
"""Environment variable that makes the scheduler check its pools."""

GRAPH_CHECK_ENV = "RUNTIME_CHECK_GRAPHS"
"""Environment variable that makes graph runners check, at every replay, that no buffer has moved."""

ENVIRONMENT: Mapping[str, str] = {
    platforms.PLATFORM_ENV: "the platform to run on: an in-tree name or that of a platform plugin; unset: find out",
    platforms.CPU_ENV: "1: with no platform named and no plugin active, run on the CPU whatever torch sees",
    host_threads.WAIT_POLICY_ENV: "how OpenMP threads wait for each other; unset means PASSIVE in the scheduler",
    CHECK_ENV: "1: whenever nothing runs, the scheduler checks that no KV slot has leaked; costs a pass over the pool",
    GRAPH_CHECK_ENV: "1: graph runners check at every replay that all they have recorded is still where it was",
    "HOOKERY_PLUGINS": "the installed hook plugins to load, comma-separated; unset: all but unselected platforms'",
}
"""Every environment variable the runtime or its plugin loading reads, and what it is for."""

DTYPES: dict[str, str] = {
    "auto": "auto",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
"""Accepted spellings of a dtype and their torch names; auto is what the checkpoint says."""


KV_CACHE_DTYPES: Mapping[str, str] = DTYPES | {
    "fp8_e4m3": "float8_e4m3fn",
    "float8_e4m3fn": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "float8_e5m2": "float8_e5m2",
}
"""Accepted spellings of the KV cache's dtype and their torch names; auto is the dtype of the activations."""

DECODE_GRAPHS = ("off", "on")
"""What `decode_graph` may be."""

PREFILL_GRAPHS = ("off", "piecewise", "breakable")
"""What `prefill_graph` may be."""

MAX_PAGE_SIZE = 64
"""Slots of a page at most."""


@dataclass(frozen=True)
class ServerArgs:
    """Arguments of an engine; picklable, so that every process starts from the same ones.

    Attributes:
        model: local directory of a checkpoint in the Hugging Face layout.
        dtype: dtype of weights and activations; see `DTYPES`.
        max_running_requests: requests in one batch at most; None for the platform's default.
        max_prefill_tokens: prompt tokens in one forward pass at most; None for the platform's default.
        context_length: tokens of one sequence at most, prompt and output; None for what the model was made for.
        max_total_tokens: KV slots, rounded down to whole pages; None for as many as all running requests can fill and
            the device's free memory has room for.
        page_size: KV slots per page, 1 to 64; None for the platform's default, which is 1 unless it says otherwise: a
            page is the unit of what requests share, so that single slots lose nothing of a common prefix and leave
            nothing unused at the end of a sequence. Larger pages are for attention kernels that want them.
        chunked_prefill_size: prompt tokens in one forward pass at most, longer prompts being cut to it; None lets every
            prompt run whole.
        disable_radix_cache: compute every prompt anew instead of keeping the keys and values of earlier ones.
        kv_cache_dtype: dtype that keys and values are stored in; see `KV_CACHE_DTYPES`.
        decode_graph: "on" to record decodes and replay them, "off" to run each as it is written; None for what the
            platform does by itself.
        prefill_graph: how steps with prompts are recorded, attention always left out: "breakable", "piecewise"
            (compiled as well) or "off"; None is off.
        graph_backend: how steps are recorded: the name of one of the platform's ways; None for its first.
        decode_graph_sizes: batch sizes to record decodes at; None for a list up to `max_running_requests`.
        prefill_graph_sizes: token counts to record steps with prompts at; None for a list up to the most tokens of a
            step.
        plugins: dotted names of plugin modules to load besides the installed ones.
        random_seed: seed of the default generators, which requests without a seed draw theirs from; None leaves
            them as the process started.
    """

    model: str
    dtype: str = "auto"
    max_running_requests: int | None = None
    max_prefill_tokens: int | None = None
    context_length: int | None = None
    max_total_tokens: int | None = None
    page_size: int | None = None
    chunked_prefill_size: int | None = None
    disable_radix_cache: bool = False
    kv_cache_dtype: str = "auto"
    decode_graph: str | None = None
    prefill_graph: str | None = None
    graph_backend: str | None = None
    decode_graph_sizes: tuple[int, ...] | None = None
    prefill_graph_sizes: tuple[int, ...] | None = None
    plugins: tuple[str, ...] = ()
    random_seed: int | None = None

    def resolve(self) -> ServerArgs:
        """Validated arguments with normal forms: an absolute model path, a dtype by its torch name or "auto".

        Raises:
            ConfigError: an argument is of the wrong type or out of range.
            ModelLoadError: the model directory is missing or has no `config.json`.
        """
        _check_str("model", self.model)
        _check_str("dtype", self.dtype)
        dtype = DTYPES.get(self.dtype.lower())
        if dtype is None:
            raise ConfigError(f"dtype={self.dtype!r} is not known: use one of {', '.join(DTYPES)}")
        _check_str("kv_cache_dtype", self.kv_cache_dtype)
        kv_cache_dtype = KV_CACHE_DTYPES.get(self.kv_cache_dtype.lower())
        if kv_cache_dtype is None:
            known = ", ".join(KV_CACHE_DTYPES)
            raise ConfigError(f"kv_cache_dtype={self.kv_cache_dtype!r} is not known: use one of {known}")
        for field in (
            "max_running_requests",
            "max_prefill_tokens",
            "context_length",
            "max_total_tokens",
            "page_size",
            "chunked_prefill_size",
        ):
            if getattr(self, field) is not None:
                _check_count(field, getattr(self, field))
        if self.page_size is not None and self.page_size > MAX_PAGE_SIZE:
            raise ConfigError(f"page_size={self.page_size} is not valid: it must be at most {MAX_PAGE_SIZE}")
        if not isinstance(self.disable_radix_cache, bool):
            raise ConfigError(
                f"disable_radix_cache={self.disable_radix_cache!r} is not valid: it must be true or false"
            )
        for field, kinds in (("decode_graph", DECODE_GRAPHS), ("prefill_graph", PREFILL_GRAPHS)):
            if getattr(self, field) not in (None, *kinds):
                raise ConfigError(
                    f"{field}={getattr(self, field)!r} is not known: use one of {', '.join(kinds)}, or None"
                )
        if self.graph_backend is not None:
            _check_str("graph_backend", self.graph_backend)
        for field in ("decode_graph_sizes", "prefill_graph_sizes"):
            sizes = getattr(self, field)
            if sizes is not None:
                if not isinstance(sizes, tuple) or not sizes:
                    raise ConfigError(f"{field}={sizes!r} is not valid: it must be a tuple of at least one size")
                for size in sizes:
                    _check_count(field, size)
        if self.random_seed is not None:
            _check_count("random_seed", self.random_seed, minimum=0)
        if not isinstance(self.plugins, tuple):
            raise ConfigError(f"plugins={self.plugins!r} is not valid: it must be a tuple of dotted module names")
        for plugin in self.plugins:
            _check_str("plugins", plugin)
        return dataclasses.replace(self, model=_model_directory(self.model), dtype=dtype, kv_cache_dtype=kv_cache_dtype)

    def with_platform_defaults(self) -> ServerArgs:
        """Resolved arguments in which the current platform has filled what was left open.

        Raises:
            ConfigError: an argument is not valid, the platform changed one that was given, or it left
                `max_running_requests`, `max_prefill_tokens` or `page_size` open.
            ModelLoadError: as `resolve`.
            PlatformError: no platform can be chosen.
        """
        given = self.resolve()
        platform = platforms.current_platform
        filled = platform.apply_server_args_defaults(given)
        if not isinstance(filled, ServerArgs):
            raise ConfigError(
                f"platform {platform.device_name}: apply_server_args_defaults has to return ServerArgs, not {filled!r}"
            )
        filled = filled.resolve()
        for field in dataclasses.fields(given):
            before, after = getattr(given, field.name), getattr(filled, field.name)
            if before is not None and before != after:
                raise ConfigError(
                    f"platform {platform.device_name} changed {field.name} from {before!r} to {after!r}:"
                    " apply_server_args_defaults may only fill arguments that are None"
                )
        for name in ("max_running_requests", "max_prefill_tokens", "page_size"):
            if getattr(filled, name) is None:
                raise ConfigError(
                    f"platform {platform.device_name} left {name} open: its apply_server_args_defaults has to call"
                    " super()"
                )
        return filled


def _model_directory(model: str) -> str:
    path = os.path.abspath(os.path.expanduser(model))
    if not os.path.isdir(path):
        raise ModelLoadError(f"model directory {path} does not exist: give a local checkpoint directory")
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise ModelLoadError(f"model directory {path} has no config.json: give a Hugging Face checkpoint directory")
    return path


def _check_str(field: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{field}={value!r} is not valid: it must be a non-empty string")


def _check_count(field: str, value: object, minimum: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{field}={value!r} is not valid: it must be an integer >= {minimum}")
