"""What a platform decides for the language-model runtime, beyond its device operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime.core.errors import ConfigError
from runtime.platforms.classes import ClassRef
from runtime.platforms.device_mixin import DeviceMixin

_GRAPH_BACKENDS = "runtime.platforms.graph_backend"

ServerArgsT = TypeVar("ServerArgsT", bound=Any)
"""The arguments of an engine: a frozen dataclass that lives below the platforms."""


@dataclass(frozen=True)
class PlatformCapabilities:
    """What a platform can do. Read before anything is constructed; what is not declared is not used.

    Attributes:
        dtypes: torch names of the dtypes a model may run in.
        float64: the device computes in double precision. Where it does not, random draws are made on the host.
        graph_capture: a step can be recorded and replayed; needed for a graph runner.
        share_input_buffers: input buffers of several graph runners may be the same memory.

    Raises:
        ConfigError: `dtypes` is no tuple of names.
    """

    dtypes: tuple[str, ...] = ("float32",)
    float64: bool = False
    graph_capture: bool = False
    share_input_buffers: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.dtypes, tuple) or not all(isinstance(name, str) for name in self.dtypes):
            # One name in parentheses is a string, in which a part of a name would be found too.
            raise ConfigError(f"dtypes={self.dtypes!r} of PlatformCapabilities has to be a tuple of names")


def fill_open(server_args: ServerArgsT, **values: object) -> ServerArgsT:
    """`server_args` with each of `values` in the place of an argument that is None."""
    open_ones = {name: value for name, value in values.items() if getattr(server_args, name) is None}
    return dataclasses.replace(server_args, **open_ones)


class SRTPlatform(DeviceMixin):
    """A platform of the serving runtime.

    In-tree and out-of-tree platforms go through the same methods; the core never asks which one it has. A factory
    that returns a class promises a subclass of the in-tree one, called with the same arguments. A scheduler reads
    `capabilities` first, then calls `apply_server_args_defaults` and asks which graph runner and KV pool there are, all
    of it before anything is made; then comes `init_backend`, the device, the model, `post_load_model`, the pools, the
    attention backend and the graph runner.
    """

    @property
    def capabilities(self) -> PlatformCapabilities:
        """What this platform can do; the least there is unless it says more."""
        return PlatformCapabilities()

    def init_backend(self) -> None:
        """Prepare the process, before the device is used.

        Sets products of float32 matrices to be computed in float32, so that a model's output does not depend on the
        device it runs on: an environment variable or a plugin may have allowed less.
        """
        import torch  # this module is read by processes that never compute

        torch.set_float32_matmul_precision("highest")

    def apply_server_args_defaults(self, server_args: ServerArgsT) -> ServerArgsT:
        """`server_args` with values for the arguments that were left open (None); what was given stays.

        A platform with values of its own fills them in and then calls this one: see `fill_open`.
        """
        return fill_open(server_args, max_running_requests=64, max_prefill_tokens=4096, page_size=1)

    def get_dispatch_key(self) -> str:
        """Which `forward_<key>` of a `MultiPlatformOp` this platform runs; `forward_native` where an op has none.

        The key is part of an identifier: a platform whose `device_name` is not has to return another.
        """
        return self.device_name

    def get_default_attention_backend(self) -> type | str:
        """The `AttentionBackend` to use, as a class or a dotted name; one written in torch operations by default."""
        return "runtime.layers.attention.torch_backend.TorchAttentionBackend"

    def get_mha_kv_pool_cls(self) -> ClassRef:
        """The KV pool for multi-head attention: a subclass of `MHATokenToKVPool`, or None for that class itself."""
        return None

    def get_mla_kv_pool_cls(self) -> ClassRef:
        """The KV pool for latent attention (MLA): a subclass of `MLATokenToKVPool`, or None for that class itself."""
        return None

    def get_nsa_kv_pool_cls(self) -> ClassRef:
        """The KV pool for native sparse attention: a subclass of `NSATokenToKVPool`, or None for that class itself."""
        return None

    def get_paged_allocator_cls(self) -> ClassRef:
        """The KV slot allocator: a subclass of `PagedTokenToKVPoolAllocator` (of `TokenToKVPoolAllocator` where pages
        have one slot), or None for that class itself."""
        return None

    def get_graph_runner_cls(self) -> ClassRef:
        """What replays recorded decodes: a subclass of `GraphRunner`, or None for `CudaGraphRunner` where decodes are
        asked to be recorded, and to run every step as it is written where they are not.

        Only a platform that declares `capabilities.graph_capture` may have one.
        """
        return None

    def get_prefill_graph_runner_cls(self, kind: str) -> ClassRef:
        """What replays recorded steps with prompts: a subclass of `GraphRunner`, or None for the in-tree class of that
        kind. Asked only where a kind other than "off" was asked for.

        Args:
            kind: "piecewise" or "breakable".
        """
        return None

    def get_graph_backends(self) -> Mapping[str, type | str]:
        """The ways to record a step on this platform, by name, the preferred one first: subclasses of `GraphBackend`
        or their dotted names.

        A platform that declares `capabilities.graph_capture` has, unless it says more, torch's graphs for any
        accelerator; every platform can run a step again over the same buffers, as it is written or compiled.
        """
        device = {"accelerator": f"{_GRAPH_BACKENDS}.AcceleratorGraphBackend"}
        plain = {"plain": f"{_GRAPH_BACKENDS}.PlainGraphBackend", "compiled": f"{_GRAPH_BACKENDS}.CompiledGraphBackend"}
        return device | plain if self.capabilities.graph_capture else plain

    def get_compile_backend(self) -> str | Callable[..., Any]:
        """What `torch.compile` takes as `backend` on this platform."""
        return "inductor"

    def post_load_model(self, model: Any) -> None:
        """Change the model after its weights are loaded, into a layout the device prefers for instance.

        Args:
            model: a model of `runtime.models`, on the device.
        """
