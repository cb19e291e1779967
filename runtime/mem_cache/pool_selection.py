"""Which pool a model gets, and how many slots it has: the one place where that is decided.

Everything here is a seam: call it through this module, so that a hook on it always takes. The classes of `memory_pool`
and `allocator` are looked up in their modules at each call, so that a REPLACE hook on one of them takes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from runtime import platforms
from runtime.core.errors import ConfigError, PlatformError
from runtime.mem_cache import allocator, memory_pool
from runtime.mem_cache.memory_pool import AttentionKind, KVCache
from runtime.platforms import answers

MEMORY_FRACTION = 0.8
"""Part of the memory left after loading that the KV pool may take; the rest is for activations."""


def resolve_kv_pool_cls(kind: AttentionKind | str, kv_pool_args: Iterable[str] | None = None) -> type[KVCache]:
    """The pool class for a kind of attention: the current platform's or, if it brings none, the in-tree one.

    Args:
        kind: "mha", "mla" or "nsa", or the `AttentionKind`.
        kv_pool_args: names of the model's sizes; None where no pool is to be made.

    Raises:
        WrongClassError: the platform's class is no subclass of the in-tree one, is abstract, or is not made with the
            arguments of `create_kv_pool`; or what a hook has put in the in-tree one's place is not.
        ConfigError: the platform's class cannot be imported.
        ValueError: there is no such kind.
    """
    chosen, in_tree = _choices(AttentionKind(kind))
    keywords = () if kv_pool_args is None else ("size", "page_size", "dtype", "device", *kv_pool_args)
    arguments = None if kv_pool_args is None else ()
    if chosen is None:
        base: type[KVCache] = KVCache  # type: ignore[type-abstract]
        return platforms.resolve_class(in_tree, base, f"KV pool of {memory_pool.__name__}", arguments, keywords)
    what = f"KV pool from get_{AttentionKind(kind).value}_kv_pool_cls"
    return platforms.resolve_class(chosen, in_tree, what, arguments, keywords)


def _choices(kind: AttentionKind) -> tuple[platforms.ClassRef, type[KVCache]]:
    """The pool of the current platform, which may be None, and the in-tree one."""
    platform = platforms.current_platform
    match kind:
        case AttentionKind.MHA:
            return platform.get_mha_kv_pool_cls(), memory_pool.MHATokenToKVPool
        case AttentionKind.MLA:
            return platform.get_mla_kv_pool_cls(), memory_pool.MLATokenToKVPool
        case AttentionKind.NSA:
            return platform.get_nsa_kv_pool_cls(), memory_pool.NSATokenToKVPool


def check_in_tree_pool(
    kind: AttentionKind | str,
    *,
    dtype: torch.dtype,
    model_dtype: torch.dtype,
    page_size: int,
    kv_pool_args: Mapping[str, int],
    device: torch.device,
) -> None:
    """Where the platform leaves the pool to the runtime: store a token in one of a page and a layer, and read it again.

    Args:
        kind: the kind of attention it is for.
        dtype: what it stores.
        model_dtype: dtype of what is put into it.
        page_size: slots per page.
        kv_pool_args: the model's sizes, as the class takes them.
        device: where it will be.

    Raises:
        PlatformError: that fails, or gives something else than was stored.
    """
    chosen, kv_pool_cls = _choices(AttentionKind(kind))
    if chosen is not None or kv_pool_cls.__module__ != memory_pool.__name__:
        return  # somebody else's, for whom it is to say what it can store
    arguments = {**kv_pool_args, "layer_num": 1}
    platform = platforms.current_platform
    problem = (
        f"get_{AttentionKind(kind).value}_kv_pool_cls of platform {platform.device_name} returned None, and"
        f" {kv_pool_cls.__qualname__}, which is used then, cannot store {dtype} on {device}"
    )
    remedy = "return a pool that can, or choose another kv_cache_dtype"
    try:
        with platform.inference_mode():
            make: Callable[..., KVCache] = kv_pool_cls  # not through `create_kv_pool`: this one is not to be used
            pool = make(size=page_size, page_size=page_size, dtype=dtype, device=device, **arguments)
            slot = torch.tensor([page_size], device=device)
            key, value = (
                torch.full((1, *buffer.shape[1:]), 0.5, dtype=model_dtype, device=device)
                for buffer in pool.get_kv_buffer(0)
            )
            pool.set_kv_buffer(0, slot, key, value)
            stored = [buffer[page_size].to(model_dtype).to("cpu") for buffer in pool.get_kv_buffer(0)]
    except RuntimeError as error:  # torch's errors, what a device says of a forbidden operation included
        raise PlatformError(f"{problem}: {' '.join(str(error).split())[:300]}; {remedy}") from error
    if any(not bool((tensor == 0.5).all()) for tensor in stored):
        raise PlatformError(f"{problem}: it gives other numbers than were stored; {remedy}")


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
    free, _ = answers.get_available_memory()
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
        WrongClassError: the platform's class is no subclass of the in-tree one for this page size, is abstract, or is
            not made with the arguments of `create_allocator`; or what a hook has put in the in-tree one's place is not.
        ConfigError: the platform's class cannot be imported.
    """
    in_tree = allocator.TokenToKVPoolAllocator if page_size == 1 else allocator.PagedTokenToKVPoolAllocator
    chosen = platforms.current_platform.get_paged_allocator_cls()
    what = f"allocator of {page_size}-slot pages"
    if chosen is None:
        chosen, what = in_tree, f"{what} of {allocator.__name__}"
    else:
        what = f"{what} from get_paged_allocator_cls"
    return platforms.resolve_class(chosen, in_tree, what, (), ("size", "page_size", "device"))


def create_allocator(*, size: int, page_size: int, device: torch.device) -> allocator.TokenToKVPoolAllocator:
    """Make the slot allocator of the current platform; see `resolve_allocator_cls`."""
    return resolve_allocator_cls(page_size)(size=size, page_size=page_size, device=device)
