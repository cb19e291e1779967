"""Which pool a model gets, and how many slots it has: the one place where that is decided.

Everything here is a seam: call it through this module, so that a hook on it always takes. The classes of `memory_pool`
and `allocator` are looked up in their modules at each call, so that a REPLACE hook on one of them takes too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from runtime import platforms
from runtime.core.errors import ConfigError, PlatformError
from runtime.mem_cache import allocator, memory_pool
from runtime.mem_cache.memory_pool import AttentionKind, KVCache

MEMORY_FRACTION = 0.8
"""Part of the memory left after loading that the KV pool may take; the rest is for activations."""


def resolve_kv_pool_cls(kind: AttentionKind | str) -> type[KVCache]:
    """The pool class for a kind of attention: the current platform's or, if it brings none, the in-tree one.

    Args:
        kind: "mha", "mla" or "nsa", or the `AttentionKind`.

    Raises:
        WrongClassError: the platform's class is no subclass of the in-tree one.
        ConfigError: the platform's class cannot be imported.
        ValueError: there is no such kind.
    """
    platform = platforms.current_platform
    in_tree: type[KVCache]
    match AttentionKind(kind):
        case AttentionKind.MHA:
            chosen, in_tree = platform.get_mha_kv_pool_cls(), memory_pool.MHATokenToKVPool
        case AttentionKind.MLA:
            chosen, in_tree = platform.get_mla_kv_pool_cls(), memory_pool.MLATokenToKVPool
        case AttentionKind.NSA:
            chosen, in_tree = platform.get_nsa_kv_pool_cls(), memory_pool.NSATokenToKVPool
    if chosen is None:
        return in_tree
    return platforms.resolve_class(chosen, in_tree, f"KV pool from get_{AttentionKind(kind).value}_kv_pool_cls")


def num_kv_slots(
    kv_pool_cls: type[KVCache],
    *,
    dtype: torch.dtype,
    page_size: int,
    kv_pool_args: Mapping[str, int],
    useful: int,
    asked: int | None,
) -> int:
    """How many slots the pool gets, in whole pages: what was asked for, else what memory allows and can be filled.

    Args:
        kv_pool_cls: the class of the pool to be.
        dtype: what it stores.
        page_size: slots per page.
        kv_pool_args: the model's sizes, as the class takes them.
        useful: slots that all running requests together can fill; unasked, no more are made.
        asked: `max_total_tokens`, or None; what it has beyond `useful` keeps prefixes of requests that have ended.

    Raises:
        ConfigError: `asked` is more than fits the device's free memory, or less than a page.
        PlatformError: not even one page fits.
    """
    bytes_per_token = kv_pool_cls.bytes_per_token(dtype=dtype, **kv_pool_args)
    # Loading leaves buffers behind that are free once it has finished.
    platforms.current_platform.synchronize()
    platforms.current_platform.empty_cache()
    free, _ = platforms.current_platform.get_available_memory()
    pages = int(free * MEMORY_FRACTION) // (bytes_per_token * page_size) - 1  # one is the sink
    asked_pages = -(-useful // page_size) if asked is None else asked // page_size
    if asked is not None and asked_pages > pages:
        raise ConfigError(
            f"max_total_tokens={asked} needs {asked * bytes_per_token / 2**30:.1f} GiB, "
            f"{free * MEMORY_FRACTION / 2**30:.1f} GiB can be used: ask for at most {max(pages, 0) * page_size}"
        )
    if asked_pages < 1:
        raise ConfigError(f"max_total_tokens={asked} is less than a page of {page_size} slots: ask for at least that")
    if pages < 1:
        raise PlatformError(
            f"no memory for a KV pool: {free} bytes free, a page of {page_size} tokens takes"
            f" {bytes_per_token * page_size}"
        )
    return min(pages, asked_pages) * page_size


def create_kv_pool(
    kv_pool_cls: type[KVCache],
    *,
    size: int,
    page_size: int,
    dtype: torch.dtype,
    kv_pool_args: Mapping[str, int],
    device: torch.device,
) -> KVCache:
    """Make the pool; `kv_pool_args` are the model's sizes, as the class takes them."""
    # The arguments that differ between the kinds are in the mapping, so no signature fits all of them.
    make: Callable[..., KVCache] = kv_pool_cls
    return make(size=size, page_size=page_size, dtype=dtype, device=device, **kv_pool_args)


def resolve_allocator_cls(page_size: int) -> type[allocator.TokenToKVPoolAllocator]:
    """The allocator class for pages of a size: the current platform's or, if it brings none, the in-tree one.

    Raises:
        WrongClassError: the platform's class is no subclass of the in-tree one for this page size.
        ConfigError: the platform's class cannot be imported.
    """
    in_tree = allocator.TokenToKVPoolAllocator if page_size == 1 else allocator.PagedTokenToKVPoolAllocator
    chosen = platforms.current_platform.get_paged_allocator_cls()
    if chosen is None:
        return in_tree
    return platforms.resolve_class(chosen, in_tree, f"allocator of {page_size}-slot pages from get_paged_allocator_cls")


def create_allocator(*, size: int, page_size: int, device: torch.device) -> allocator.TokenToKVPoolAllocator:
    """Make the slot allocator of the current platform; see `resolve_allocator_cls`."""
    return resolve_allocator_cls(page_size)(size=size, page_size=page_size, device=device)
