"""Pools: which slots a sequence owns, and the keys and values in the slots.

A *slot* holds what attention keeps of one token in every layer. Slots come in *pages* of `page_size`: page p is slots
p * page_size to (p + 1) * page_size - 1 (PagedAttention, Kwon et al. 2023, arXiv:2309.06180). Page 0 and row 0 belong
to nobody: they are the sink that padding reads from and writes to.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch

from runtime.config import MAX_PAGE_SIZE
from runtime.core.errors import ConfigError, EngineError


class AttentionKind(str, enum.Enum):
    """Kinds of attention, by what they keep of a token; each is equal to its value."""

    MHA = "mha"
    """Keys and values of each head: multi-head and grouped-query attention."""
    MLA = "mla"
    """One compressed vector: multi-head latent attention."""
    NSA = "nsa"
    """MLA with an index of what is worth attending to: native sparse attention."""


WORDS_FROM = 64
"""Tokens from which on they are written in 64-bit words, whatever their dtype."""

COPY_CHUNK = 8192
"""Slots that a copy to or from the host moves at a time, so that it needs little memory on the device."""


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
    """Storage of what attention keeps of `size` tokens, in slots from `page_size` on, in `layer_num` layers.

    Attributes:
        size: slots that can be handed out; a multiple of `page_size`.
        page_size: slots per page, 1 to 64; the first page is the padding sink.
        dtype: dtype of what the `get_` methods return.
        store_dtype: dtype of the memory; uint8 for the 8-bit floats, for which torch lacks indexed copies.
        layer_num: layers, ids from 0.
        device: where the buffers are.

    Raises:
        ConfigError: `page_size` is out of range, or `size` is not a multiple of it.
    """

    bytes_per_token: ClassVar[Callable[..., int]]
    """`bytes_per_token(dtype=..., **sizes)`: bytes one slot takes in all layers, before there is a pool."""

    def __init__(self, size: int, page_size: int, dtype: torch.dtype, layer_num: int, device: torch.device) -> None:
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise ConfigError(f"page_size={page_size} is not valid: a page has 1 to {MAX_PAGE_SIZE} slots")
        if size < 1 or size % page_size:
            raise ConfigError(f"a KV pool of {size} slots cannot be made: it must be whole pages of {page_size}")
        self.size = size
        self.page_size = page_size
        self.dtype = dtype
        self.store_dtype = torch.uint8 if dtype.itemsize == 1 else dtype
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

    @abstractmethod
    def storage(self) -> list[torch.Tensor]:
        """Every buffer there is, in `store_dtype`; dimension 0 is the slot. What host copies are made of."""

    def get_cpu_copy(self, indices: torch.Tensor) -> list[list[torch.Tensor]]:
        """What the slots `indices` ([N] int64) hold, in host memory: for each buffer of `storage`, its pieces.

        The copy is for `load_cpu_copy` and for a pool of the same class and shape.
        """
        return [
            [buffer.index_select(0, chunk).to("cpu") for chunk in indices.split(COPY_CHUNK)]
            for buffer in self.storage()
        ]

    def load_cpu_copy(self, copy: list[list[torch.Tensor]], indices: torch.Tensor) -> None:
        """Put what `get_cpu_copy` gave into the slots `indices` ([N] int64), which need not be the same ones.

        Raises:
            EngineError: the copy is of another number of slots or buffers; nothing is written then.
        """
        buffers = self.storage()
        copied = [sum(piece.shape[0] for piece in pieces) for pieces in copy]
        if copied != [indices.numel()] * len(buffers):
            raise EngineError(
                f"a host copy of {copied[0] if copied else 0} slots in {len(copied)} buffers cannot be put into"
                f" {indices.numel()} slots of {len(buffers)} buffers; load it into as many slots of a pool like the one"
                " it is from"
            )
        for buffer, pieces in zip(buffers, copy, strict=True):
            for chunk, piece in zip(indices.split(COPY_CHUNK), pieces, strict=True):
                buffer.index_copy_(0, chunk, piece.to(buffer.device))

    def _new_buffer(self, *shape: int) -> torch.Tensor:
        """[size + page_size, *shape] in `store_dtype`, the sink zeroed."""
        # Not zeroed as a whole: a slot is written before it is read, and a host then commits memory only as slots come
        # into use. The sink is read by padding and has to be finite.
        buffer = torch.empty((self.size + self.page_size, *shape), dtype=self.store_dtype, device=self.device)
        buffer[: self.page_size].zero_()
        return buffer

    def _put(self, buffer: torch.Tensor, loc: torch.Tensor, values: torch.Tensor) -> None:
        """Put `values` ([T, *shape]), as the memory holds them, into the slots `loc` of a buffer ([N, *shape])."""
        values = self._to_store(values)
        # An indexed copy moves element by element, so that in words it is faster: several times for bytes, less so for
        # 16-bit floats, where it takes some tokens to make up for the two views.
        if (values.dtype is torch.uint8 or values.shape[0] >= WORDS_FROM) and _in_words(values) and _in_words(buffer):
            buffer, values = buffer.view(torch.int64), values.view(torch.int64)
        buffer.index_copy_(0, loc, values)

    def _to_store(self, values: torch.Tensor) -> torch.Tensor:
        """`values` as the memory holds them."""
        if values.dtype is not self.dtype:
            limit = torch.finfo(self.dtype).max
            if limit < torch.finfo(values.dtype).max:
                values = values.clamp(-limit, limit)  # what a narrow dtype cannot hold would be an infinity or a NaN
            values = values.to(self.dtype)
        return values if self.store_dtype is self.dtype else values.view(self.store_dtype)

    def _from_store(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer if self.store_dtype is self.dtype else buffer.view(self.dtype)


def _in_words(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be viewed as 64-bit words."""
    size = 8 // tensor.dtype.itemsize  # in elements
    outer = tensor.stride()[:-1]
    return (
        tensor.stride(-1) == 1
        and tensor.shape[-1] % size == 0
        and tensor.storage_offset() % size == 0
        and all(stride % size == 0 for stride in outer)
    )


class MHATokenToKVPool(KVCache):
    """Keys and values of multi-head attention (grouped-query included): per layer two [size + page_size, heads, dim].

    A platform that wants another layout subclasses this, overrides `_create_buffers` and what reads and writes them,
    and returns it from `get_mha_kv_pool_cls`. `v_head_dim` is the width of a value where it is not that of a key.
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
        v_head_dim: int | None = None,
    ) -> None:
        super().__init__(size, page_size, dtype, layer_num, device)
        self.head_num = head_num
        self.head_dim = head_dim
        self.v_head_dim = head_dim if v_head_dim is None else v_head_dim
        self.k_buffer: list[torch.Tensor] = []
        self.v_buffer: list[torch.Tensor] = []
        self._create_buffers()

    def _create_buffers(self) -> None:
        for _ in range(self.layer_num):
            self.k_buffer.append(self._new_buffer(self.head_num, self.head_dim))
            self.v_buffer.append(self._new_buffer(self.head_num, self.v_head_dim))

    @classmethod
    def bytes_per_token(
        cls, dtype: torch.dtype, head_num: int, head_dim: int, layer_num: int, v_head_dim: int | None = None
    ) -> int:
        """Bytes one slot takes in all layers, keys and values."""
        return layer_num * head_num * (head_dim + (head_dim if v_head_dim is None else v_head_dim)) * dtype.itemsize

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, heads, dim] keys of one layer."""
        return self._from_store(self.k_buffer[layer_id])

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, heads, v_head_dim] values of one layer."""
        return self._from_store(self.v_buffer[layer_id])

    def set_kv_buffer(self, layer_id: int, loc: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put `k` ([T, heads, dim]) and `v` ([T, heads, v_head_dim]) into the slots `loc` ([T] int64).

        Another dtype than the pool's is converted; what the pool's cannot hold becomes the largest number it can.
        """
        self._put(self.k_buffer[layer_id], loc, k)
        self._put(self.v_buffer[layer_id], loc, v)

    def storage(self) -> list[torch.Tensor]:
        """See `KVCache.storage`."""
        return [*self.k_buffer, *self.v_buffer]


class MLATokenToKVPool(KVCache):
    """What multi-head latent attention keeps (DeepSeek-V2, arXiv:2405.04434): per layer one tensor
    [size + page_size, 1, kv_lora_rank + qk_rope_head_dim], the compressed vector followed by the rotated key.

    The whole row is the key of the one head that all query heads share, its first `kv_lora_rank` columns are the value.
    """

    def __init__(
        self,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        kv_lora_rank: int,
        qk_rope_head_dim: int,
        layer_num: int,
        device: torch.device,
    ) -> None:
        super().__init__(size, page_size, dtype, layer_num, device)
        self.kv_lora_rank = kv_lora_rank
        self.qk_rope_head_dim = qk_rope_head_dim
        self.kv_buffer: list[torch.Tensor] = []
        self._create_buffers()

    def _create_buffers(self) -> None:
        width = self.kv_lora_rank + self.qk_rope_head_dim
        self.kv_buffer = [self._new_buffer(1, width) for _ in range(self.layer_num)]

    @classmethod
    def bytes_per_token(cls, dtype: torch.dtype, kv_lora_rank: int, qk_rope_head_dim: int, layer_num: int) -> int:
        """Bytes one slot takes in all layers."""
        return layer_num * (kv_lora_rank + qk_rope_head_dim) * dtype.itemsize

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, 1, kv_lora_rank + qk_rope_head_dim] rows of one layer."""
        return self._from_store(self.kv_buffer[layer_id])

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, 1, kv_lora_rank] compressed vectors of one layer, a view of its keys."""
        return self.get_key_buffer(layer_id)[..., : self.kv_lora_rank]

    def set_mla_kv_buffer(self, layer_id: int, loc: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor) -> None:
        """Put T tokens into the slots `loc` ([T] int64); another dtype than the pool's is converted.

        Args:
            layer_id: the layer.
            loc: [T] int64 slots.
            k_nope: [T, kv_lora_rank] compressed vectors.
            k_rope: [T, qk_rope_head_dim] rotated keys.
        """
        rows = self.kv_buffer[layer_id][:, 0]
        self._put(rows[:, : self.kv_lora_rank], loc, k_nope)
        self._put(rows[:, self.kv_lora_rank :], loc, k_rope)

    def set_kv_buffer(self, layer_id: int, loc: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put whole rows `k` ([T, 1, kv_lora_rank + qk_rope_head_dim]) into the slots `loc` ([T] int64).

        Of what keys and values share, `v` ([T, 1, kv_lora_rank]) is what is written.
        """
        self.set_mla_kv_buffer(layer_id, loc, v[:, 0], k[:, 0, self.kv_lora_rank :])

    def storage(self) -> list[torch.Tensor]:
        """See `KVCache.storage`."""
        return list(self.kv_buffer)


class NSATokenToKVPool(MLATokenToKVPool):
    """What sparse attention over latents keeps (DeepSeek-V3.2): as MLA, and per layer the keys of the index that
    chooses which tokens are attended to, [size + page_size, index_head_dim]."""

    def __init__(
        self,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        kv_lora_rank: int,
        qk_rope_head_dim: int,
        layer_num: int,
        device: torch.device,
        index_head_dim: int,
    ) -> None:
        self.index_head_dim = index_head_dim
        self.index_k_buffer: list[torch.Tensor] = []
        super().__init__(size, page_size, dtype, kv_lora_rank, qk_rope_head_dim, layer_num, device)

    def _create_buffers(self) -> None:
        super()._create_buffers()
        self.index_k_buffer = [self._new_buffer(self.index_head_dim) for _ in range(self.layer_num)]

    @classmethod
    def bytes_per_token(  # type: ignore[override]  # this pool is made with one size more
        cls, dtype: torch.dtype, kv_lora_rank: int, qk_rope_head_dim: int, layer_num: int, index_head_dim: int
    ) -> int:
        """Bytes one slot takes in all layers."""
        return layer_num * (kv_lora_rank + qk_rope_head_dim + index_head_dim) * dtype.itemsize

    def get_index_k_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, index_head_dim] index keys of one layer."""
        return self._from_store(self.index_k_buffer[layer_id])

    def set_index_k_buffer(self, layer_id: int, loc: torch.Tensor, index_k: torch.Tensor) -> None:
        """Put the index keys ([T, index_head_dim]) of T tokens into the slots `loc` ([T] int64)."""
        self._put(self.index_k_buffer[layer_id], loc, index_k)

    def storage(self) -> list[torch.Tensor]:
        """See `KVCache.storage`."""
        return [*super().storage(), *self.index_k_buffer]
