"""The KV pool: heads first, so that the device reads one head of many tokens as one piece of memory."""

from __future__ import annotations

import torch

from acme_accelerator import evidence
from runtime.mem_cache.memory_pool import MHATokenToKVPool


class AcmePool(MHATokenToKVPool):
    """Per layer two [heads, size + page_size, dim]; written by a kernel of the device's."""

    def _create_buffers(self) -> None:
        slots = self.size + self.page_size
        for _ in range(self.layer_num):
            for buffers, dim in ((self.k_buffer, self.head_dim), (self.v_buffer, self.v_head_dim)):
                buffer = torch.empty((self.head_num, slots, dim), dtype=self.store_dtype, device=self.device)
                buffer[:, : self.page_size].zero_()  # the sink, which padding reads
                buffers.append(buffer)
        evidence.note("pool", layout="heads first", size=self.size, shape=list(self.k_buffer[0].shape))

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, heads, dim] keys of one layer, as the runtime sees them."""
        return self._from_store(self.k_buffer[layer_id]).transpose(0, 1)

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        """[size + page_size, heads, v_head_dim] values of one layer."""
        return self._from_store(self.v_buffer[layer_id]).transpose(0, 1)

    def set_kv_buffer(self, layer_id: int, loc: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put `k` ([T, heads, dim]) and `v` ([T, heads, v_head_dim]) into the slots `loc` ([T] int64)."""
        torch.ops.acme.store_kv(self.k_buffer[layer_id], loc, self._to_store(k))
        torch.ops.acme.store_kv(self.v_buffer[layer_id], loc, self._to_store(v))

    def storage(self) -> list[torch.Tensor]:
        """Every buffer with the slot as dimension 0; what host copies are made of."""
        return [buffer.transpose(0, 1) for buffer in (*self.k_buffer, *self.v_buffer)]
