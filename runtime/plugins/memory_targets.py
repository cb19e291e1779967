"""The seams of memory: which pools there are, who owns which slot, what is kept of prefixes."""

from __future__ import annotations

from runtime.plugins.hook_target import Part, When, both, members, only_with, recorded_members, scheduler

_POOLS = "runtime.mem_cache.memory_pool"
_SLOTS = "runtime.mem_cache.allocator"
_TREE = "runtime.mem_cache.radix_cache"

_PREFIXES = (
    *members(
        _TREE,
        scheduler(When.ONCE),
        RadixCache="what keeps prefixes: REPLACE it by a subclass",
    ),
    *members(
        f"{_TREE}.RadixCache",
        scheduler(When.REQUEST),
        match_prefix="what is found of a prompt",
        insert="what is kept of a sequence",
        inc_lock_ref="which prefixes may not go",
        dec_lock_ref="which prefixes may go again",
    ),
    *members(f"{_TREE}.RadixCache", scheduler(When.STEP), evictable_size="how many slots prefixes could give back"),
    *members(f"{_TREE}.RadixCache", scheduler(When.ONCE), clear="forgetting everything"),
    *members(
        f"{_TREE}.RadixCache",
        scheduler(When.EVENT),
        evict="which prefixes go when slots run short",
        all_slots="the slots of prefixes, with RUNTIME_CHECK_INTEGRITY",
        check_integrity="the account of the tree, with RUNTIME_CHECK_INTEGRITY",
        protected_size="how many slots are locked, with RUNTIME_CHECK_INTEGRITY",
    ),
)

MEMORY_TARGETS = (
    *members(
        "runtime.mem_cache.pool_selection",
        scheduler(When.ONCE),
        resolve_kv_pool_cls="which class the KV pool is of",
        check_in_tree_pool="whether the runtime's own pool works on the device, where the platform brings none",
        num_kv_slots="how many slots it has",
        create_kv_pool="the pool, as it is made",
        resolve_allocator_cls="which class hands out slots",
        create_allocator="the allocator, as it is made",
    ),
    *members(
        _POOLS,
        scheduler(When.ONCE),
        MHATokenToKVPool="the pool of keys and values: REPLACE it by a subclass",
        ReqToTokenPool="the table of the slots of each request: REPLACE it by a subclass",
    ),
    *members(
        _POOLS,
        scheduler(When.EVENT),
        MLATokenToKVPool="the pool of latents, for a model with latent attention: REPLACE it by a subclass",
        NSATokenToKVPool="the pool of a model with sparse attention: REPLACE it by a subclass",
    ),
    *members(
        f"{_POOLS}.ReqToTokenPool",
        scheduler(When.REQUEST),
        alloc="the row that a request gets",
        free="the row that it gives back",
    ),
    *members(
        f"{_POOLS}.ReqToTokenPool",
        scheduler(When.STEP),
        write="the slots that new tokens are given",
        available_size="how many requests may still start",
    ),
    *members(f"{_POOLS}.ReqToTokenPool", both(When.DEMAND), clear="making every row free"),
    *recorded_members(
        f"{_POOLS}.KVCache",
        scheduler(When.LAYER, When.CAPTURE),
        get_kv_buffer="what attention reads of a layer",
    ),
    *members(
        f"{_POOLS}.KVCache",
        both(When.DEMAND),
        get_cpu_copy="what is copied from slots to the host",
        load_cpu_copy="what is put back from there",
    ),
    *recorded_members(
        f"{_POOLS}.MHATokenToKVPool",
        scheduler(When.LAYER, When.CAPTURE),
        set_kv_buffer="the keys and values that a layer stores",
        get_key_buffer="the keys that a layer reads",
        get_value_buffer="the values that a layer reads",
    ),
    *members(
        f"{_POOLS}.MHATokenToKVPool",
        scheduler(When.ONCE),
        bytes_per_token="what a slot is reckoned to take",
    ),
    *members(
        f"{_POOLS}.MHATokenToKVPool",
        scheduler(When.EVENT),
        storage="every buffer there is, for host copies and for RUNTIME_CHECK_GRAPHS",
    ),
    *members(
        f"{_POOLS}.MLATokenToKVPool",
        scheduler(When.EVENT),
        bytes_per_token="what a slot of latents is reckoned to take",
        storage="every buffer of latents",
    ),
    *recorded_members(
        f"{_POOLS}.MLATokenToKVPool",
        scheduler(When.EVENT),
        set_mla_kv_buffer="the latents that a layer stores",
        get_key_buffer="the latents that a layer reads",
    ),
    *members(
        f"{_POOLS}.MLATokenToKVPool",
        both(When.DEMAND),
        get_value_buffer="latents as values, for a backend that takes no latents",
        set_kv_buffer="whole rows, from a backend that takes no latents",
    ),
    *members(
        f"{_POOLS}.NSATokenToKVPool",
        scheduler(When.EVENT),
        bytes_per_token="what a slot of latents and index keys is reckoned to take",
        storage="every buffer of latents and index keys",
    ),
    *recorded_members(
        f"{_POOLS}.NSATokenToKVPool",
        scheduler(When.EVENT),
        get_index_k_buffer="the index keys that a layer reads",
        set_index_k_buffer="the index keys that a layer stores",
    ),
    *only_with(
        Part.SINGLE_SLOTS,
        (
            *members(
                _SLOTS,
                scheduler(When.ONCE),
                TokenToKVPoolAllocator="who hands out single slots: REPLACE it by a subclass",
            ),
            *members(
                f"{_SLOTS}.TokenToKVPoolAllocator",
                scheduler(When.STEP),
                alloc="the slots that new tokens get",
            ),
        ),
    ),
    *members(
        f"{_SLOTS}.TokenToKVPoolAllocator",
        scheduler(When.STEP),
        available_size="how many slots are said to be free",
    ),
    *members(
        f"{_SLOTS}.TokenToKVPoolAllocator",
        scheduler(When.REQUEST),
        free="the slots that are given back",
        free_group_begin="from when on they are collected",
        free_group_end="when what was collected is freed",
    ),
    *members(f"{_SLOTS}.TokenToKVPoolAllocator", scheduler(When.ONCE), clear="making every slot free"),
    *members(
        f"{_SLOTS}.TokenToKVPoolAllocator",
        scheduler(When.EVENT),
        check_integrity="the account of every slot, with RUNTIME_CHECK_INTEGRITY",
    ),
    *only_with(
        Part.PAGES,
        (
            *members(
                _SLOTS,
                scheduler(When.ONCE),
                PagedTokenToKVPoolAllocator="who hands out pages: REPLACE it by a subclass",
            ),
            *members(
                f"{_SLOTS}.PagedTokenToKVPoolAllocator",
                scheduler(When.PROMPT),
                alloc_extend="the slots that prompts get, in pages",
            ),
            *members(
                f"{_SLOTS}.PagedTokenToKVPoolAllocator",
                scheduler(When.DECODE),
                alloc_decode="the slots that decodes get, in pages",
            ),
            *members(
                f"{_SLOTS}.PagedTokenToKVPoolAllocator",
                scheduler(When.EVENT),
                check_integrity="the account of every page, with RUNTIME_CHECK_INTEGRITY",
            ),
        ),
    ),
    *members(
        f"{_SLOTS}.PagedTokenToKVPoolAllocator",
        both(When.DEMAND),
        alloc="whole pages, for who wants no more than pages",
    ),
    *only_with(Part.PREFIX_CACHE, _PREFIXES),
)
