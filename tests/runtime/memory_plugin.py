"""A plugin on the memory of the scheduler: it brings a pool of its own, and writes down what happens.

Each line of the file that `MEMORY_TRACE` names is one event in the process that the line begins with.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from hookery import HookType, plugin_hook
from runtime.mem_cache.memory_pool import MHATokenToKVPool


def trace(event: str) -> None:
    with open(os.environ["MEMORY_TRACE"], "a") as file:
        file.write(f"{os.getpid()} {event}\n")


@plugin_hook("runtime.mem_cache.memory_pool.MHATokenToKVPool", HookType.REPLACE, reason="bring a pool")
class TracingPool(MHATokenToKVPool):
    """The in-tree pool, seen from outside."""

    def _create_buffers(self) -> None:
        super()._create_buffers()
        trace(f"pool {type(self).__name__} of {self.size} slots in pages of {self.page_size}, {self.dtype}")

    def set_kv_buffer(self, layer_id: int, loc: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        super().set_kv_buffer(layer_id, loc, k, v)
        if layer_id == 0:
            trace(f"set {loc.numel()}")


@plugin_hook("runtime.mem_cache.pool_selection.num_kv_slots", HookType.AFTER, reason="see how large the pool is")
def see_slots(result: int, *args: Any, **kwargs: Any) -> None:
    trace(f"slots {result}")


@plugin_hook("runtime.mem_cache.pool_selection.create_allocator", HookType.AFTER, reason="see which allocator it is")
def see_allocator(result: Any, *args: Any, **kwargs: Any) -> None:
    trace(f"allocator {type(result).__name__}")


@plugin_hook("runtime.mem_cache.radix_cache.RadixCache.match_prefix", HookType.AFTER, reason="see what is found")
def see_match(result: Any, *args: Any, **kwargs: Any) -> None:
    trace(f"match {result.slots.numel()}")


@plugin_hook("runtime.mem_cache.radix_cache.RadixCache.evict", HookType.AFTER, reason="see what is dropped")
def see_eviction(result: Any, *args: Any, **kwargs: Any) -> None:
    trace(f"evict {result.numel()}")


@plugin_hook("runtime.managers.batch_policy.BatchPolicy.choose_retraction", HookType.AFTER, reason="see retractions")
def see_retraction(result: int, *args: Any, **kwargs: Any) -> None:
    trace(f"retract {result}")
