"""What a platform decides for the language-model runtime, beyond its device operations."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeAlias

from runtime.platforms.device_mixin import DeviceMixin

if TYPE_CHECKING:
    import torch

ClassRef: TypeAlias = "type | str | None"
"""A class, its dotted name (so that a platform need not import what lies above it), or None for the in-tree class."""


class SRTPlatform(DeviceMixin):
    """A platform of the serving runtime.

    In-tree and out-of-tree platforms go through the same methods; the core never asks which one it has. A factory
    that returns a class promises a subclass of the in-tree one, called with the same arguments.
    """

    @property
    @abstractmethod
    def supported_dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes a model may run in, the preferred one first."""

    @abstractmethod
    def get_default_attention_backend(self) -> type | str:
        """The `AttentionBackend` to use, as a class or a dotted name."""

    def get_mha_kv_pool_cls(self) -> ClassRef:
        """The KV pool for multi-head attention: a subclass of `MHATokenToKVPool`, or None for that class itself."""
        return None

    def get_paged_allocator_cls(self) -> ClassRef:
        """The KV slot allocator: a subclass of `TokenToKVPoolAllocator`, or None for that class itself."""
        return None
