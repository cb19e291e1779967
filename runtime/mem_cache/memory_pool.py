"""Pools: which slots a sequence owns, and the keys and values in the slots.

A *slot* holds the key and value of one token in every layer. Slot 0 and row 0 belong to nobody: they are the sink
that padding reads from and writes to.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import Literal, overload

import torch

from runtime import platforms
from runtime.core.errors import ConfigError, EngineError


class AttentionKind(enum.Enum):
    """Kinds of attention, by what they keep of a token."""

    MHA = "mha"
    """Keys and values of each head: multi-head and grouped-query attention."""
    MLA = "mla"
    """One compressed vector: multi-head latent attention."""
    NSA = "nsa"
    """MLA with an index of what is worth attending to: native sparse attention."""


class ReqToTokenPool:
    """For each running request, the slots of its tokens in order.

    Attributes:
        size: requests at most.
        max_context_len: tokens per request at most.
        req_to_token: [size + 1, max_context_len] int32 slot ids; row 0 is padding.
    """

    def __init__(self, size: int, max_context_len: int, device: torch.device) -> None:
        self.size = size
        self.max_context_len = max_context_len
        self.req_to_token = torch.zeros((size + 1, max_context_len), dtype=torch.int32, device=device)
        self._free_rows = list(range(size, 0, -1))

    def available_size(self) -> int:
        """Rows that are free."""
        return len(self._free_rows)

    def alloc(self) -> int | None:
        """A row in [1, size] for one request, or None when all are taken."""
        return self._free_rows.pop() if self._free_rows else None

    def free(self, index: int) -> None:
        """Take a row back.

        Raises:
            EngineError: `index` is no row, or is free already.
        """
        if not 1 <= index <= self.size:
            raise EngineError(f"request row {index} cannot be freed: rows are 1 to {self.size}")
        if index in self._free_rows:
            raise EngineError(f"request row {index} cannot be freed: it is free already")
        self._free_rows.append(index)

    def write(self, rows: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> None:
        """Record that token `positions[i]` of row `rows[i]` is in `slots[i]`; three [T] int64 tensors."""
        self.req_to_token[rows, positions] = slots.to(torch.int32)

    def clear(self) -> None:
        """Make every row free."""
        self._free_rows = list(range(self.size, 0, -1))


class KVCache(ABC):
    """Storage of keys and values for `size` slots, ids 1 to `size`, in `layer_num` layers.

    Attributes:
        size: slots that can be handed out.
        page_size: slots per page; the first page is the padding sink.
        dtype: dtype of what `get_key_buffer` and `get_value_buffer` return.
        layer_num: layers, ids from 0.
        device: where the buffers are.
    """

    def __init__(self, size: int, page_size: int, dtype: torch.dtype, layer_num: int, device: torch.device) -> None:
        self.size = size
        self.page_size = page_size
        self.dtype = dtype
        self.layer_num = layer_num
        self.device = device

    @abstractmethod
    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """Keys of one layer; dimension 0 is the slot."""

    @abstractmethod
    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """Values of one layer; dimension 0 is the slot."""

    def get_kv_buffer(self, layer_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer."""
        return self.get_key_buffer(layer_id), self.get_value_buffer(layer_id)

    @abstractmethod
    def set_kv_buffer(self, layer_id: int, loc: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put the keys and values of T tokens of one layer into the slots `loc` ([T] int64)."""


class MHATokenToKVPool(KVCache):
    """Keys and values of multi-head attention (grouped-query included): per layer two [size + page_size, heads, dim].

    A platform that wants another layout subclasses this, overrides `_create_buffers` and what reads and writes them,
    and returns it from `get_mha_kv_pool_cls`.
    """

    def __init__(
        self,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        head_num: int,
        head_dim: int,
        layer_num: int,
        device: torch.device,
    ) -> None:
        super().__init__(size, page_size, dtype, layer_num, device)
        self.head_num = head_num
        self.head_dim = head_dim
        self.k_buffer: list[torch.Tensor] = []
        self.v_buffer: list[torch.Tensor] = []
        self._create_buffers()

    def _create_buffers(self) -> None:
        shape = (self.size + self.page_size, self.head_num, self.head_dim)
        for _ in range(self.layer_num):
            for buffers in (self.k_buffer, self.v_buffer):
                # Not zeroed as a whole: a slot is written before it is read, and a host then commits memory only as
                # slots come into use. The sink is read by padding and has to be finite.
                buffer = torch.empty(shape, dtype=self.dtype, device=self.device)
                buffer[: self.page_size].zero_()
                buffers.append(buffer)

    @classmethod
    def bytes_per_token(cls, dtype: torch.dtype, head_num: int, head_dim: int, layer_num: int) -> int:
        """Bytes one slot takes in all layers, keys and values."""
        return 2 * layer_num * head_num * head_dim * dtype.itemsize

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, heads, dim] keys of one layer."""
        return self.k_buffer[layer_id]

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, heads, dim] values of one layer."""
        return self.v_buffer[layer_id]

    def set_kv_buffer(self, layer_id: int, loc: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put `k` and `v`, both [T, heads, dim] in the pool's dtype, into the slots `loc` ([T] int64)."""
        self.k_buffer[layer_id].index_copy_(0, loc, k)
        self.v_buffer[layer_id].index_copy_(0, loc, v)


IN_TREE_KV_POOLS: dict[AttentionKind, type[KVCache]] = {AttentionKind.MHA: MHATokenToKVPool}
"""The pools that the runtime has itself; the platform's must be a subclass where there is one."""


@overload
def resolve_kv_pool_cls(kind: Literal[AttentionKind.MHA]) -> type[MHATokenToKVPool]: ...
@overload
def resolve_kv_pool_cls(kind: AttentionKind) -> type[KVCache]: ...
def resolve_kv_pool_cls(kind: AttentionKind) -> type[KVCache]:
    """The pool class for one kind of attention: the current platform's or, if it brings none, the in-tree one.

    Raises:
        ConfigError: the platform's class cannot be imported or is of the wrong kind, or there is no class at all.
    """
    platform = platforms.current_platform
    if kind is AttentionKind.MHA:
        chosen, factory = platform.get_mha_kv_pool_cls(), "get_mha_kv_pool_cls"
    elif kind is AttentionKind.MLA:
        chosen, factory = platform.get_mla_kv_pool_cls(), "get_mla_kv_pool_cls"
    else:
        chosen, factory = platform.get_nsa_kv_pool_cls(), "get_nsa_kv_pool_cls"
    in_tree = IN_TREE_KV_POOLS.get(kind)
    if chosen is not None:
        base: type[KVCache] = in_tree or KVCache
        return platforms.resolve_class(chosen, base, f"KV pool from {factory}")
    if in_tree is None:
        raise ConfigError(
            f"there is no KV pool for {kind.value.upper()} attention: the runtime has none, and platform"
            f" {platform.device_name} brings none ({factory} returned None)"
        )
    return in_tree


def create_kv_pool(
    *,
    size: int,
    page_size: int,
    dtype: torch.dtype,
    head_num: int,
    head_dim: int,
    layer_num: int,
    device: torch.device,
) -> MHATokenToKVPool:
    """Make the KV pool of the current platform for multi-head attention; the arguments are those of `MHATokenToKVPool`.

    Raises:
        ConfigError: the platform's class cannot be imported or is no subclass of `MHATokenToKVPool`.
    """
    return resolve_kv_pool_cls(AttentionKind.MHA)(
        size=size,
        page_size=page_size,
        dtype=dtype,
        head_num=head_num,
        head_dim=head_dim,
        layer_num=layer_num,
        device=device,
    )
