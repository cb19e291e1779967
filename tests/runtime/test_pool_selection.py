"""Which pool and which allocator a model gets, and how many slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from runtime import platforms
from runtime.core.errors import ConfigError, PlatformError, WrongClassError
from runtime.mem_cache import memory_pool, pool_selection
from runtime.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from runtime.mem_cache.memory_pool import (
    AttentionKind,
    KVCache,
    MHATokenToKVPool,
    MLATokenToKVPool,
    NSATokenToKVPool,
)
from runtime.models.deepseek_config import DeepseekV2Config, DeepseekV32Config
from runtime.models.model_config import LlamaConfig

CPU = torch.device("cpu")
LLAMA = {"head_num": 2, "head_dim": 4, "layer_num": 3}
LATENT = {"kv_lora_rank": 6, "qk_rope_head_dim": 2, "layer_num": 2}
KINDS: dict[str, tuple[type[KVCache], dict[str, int]]] = {
    "mha": (MHATokenToKVPool, LLAMA),
    "mla": (MLATokenToKVPool, LATENT),
    "nsa": (NSATokenToKVPool, LATENT | {"index_head_dim": 4}),
}


class VendorMHA(MHATokenToKVPool):
    """Stands for a platform's own pool."""


class VendorMLA(MLATokenToKVPool):
    """Stands for a platform's own pool."""


class VendorNSA(NSATokenToKVPool):
    """Stands for a platform's own pool."""


VENDOR: dict[str, type[KVCache]] = {"mha": VendorMHA, "mla": VendorMLA, "nsa": VendorNSA}


class ForeignPool:
    """No KV pool at all."""


def patch_factory(mocker: MockerFixture, kind: str, value: object) -> None:
    mocker.patch.object(type(platforms.current_platform), f"get_{kind}_kv_pool_cls", return_value=value)


def create(kind: str) -> KVCache:
    return pool_selection.create_kv_pool(
        pool_selection.resolve_kv_pool_cls(kind),
        size=12,
        page_size=4,
        dtype=torch.float32,
        kv_pool_args=KINDS[kind][1],
        device=CPU,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_platform_without_an_opinion_gets_the_in_tree_pool(kind: str) -> None:
    assert type(create(kind)) is KINDS[kind][0]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_platform_can_bring_its_own_pool(mocker: MockerFixture, kind: str, by_name: bool) -> None:
    vendor = VENDOR[kind]
    patch_factory(mocker, kind, f"{__name__}:{vendor.__name__}" if by_name else vendor)
    pool = create(kind)
    assert type(pool).__name__ == vendor.__name__
    assert (pool.size, pool.page_size) == (12, 4)
    for other in KINDS.keys() - {kind}:
        assert type(create(other)) is KINDS[other][0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_takes_the_place_of_the_in_tree_pool_is_used(mocker: MockerFixture, kind: str) -> None:
    mocker.patch.object(memory_pool, KINDS[kind][0].__name__, VENDOR[kind])
    assert type(create(kind)) is VENDOR[kind]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("mha", ForeignPool, "ForeignPool must be a subclass of runtime.mem_cache.memory_pool.MHATokenToKVPool"),
        (
            "mha",
            MLATokenToKVPool,
            "MLATokenToKVPool must be a subclass of runtime.mem_cache.memory_pool.MHATokenToKVPool",
        ),
        (
            "mla",
            MHATokenToKVPool,
            "MHATokenToKVPool must be a subclass of runtime.mem_cache.memory_pool.MLATokenToKVPool",
        ),
        (
            "nsa",
            MLATokenToKVPool,
            "MLATokenToKVPool must be a subclass of runtime.mem_cache.memory_pool.NSATokenToKVPool",
        ),
        ("mha", VendorMHA(1, 1, torch.float32, 1, 2, 1, CPU), "must be a subclass"),
    ],
)
def test_a_wrong_pool_class_is_a_type_error_that_names_hook_and_class(
    mocker: MockerFixture, kind: str, value: object, message: str
) -> None:
    patch_factory(mocker, kind, value)
    with pytest.raises(WrongClassError, match=f"get_{kind}_kv_pool_cls") as caught:
        create(kind)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ConfigError)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["no_such_package.Pool", "runtime.mem_cache.memory_pool.NoSuchPool", "not a name"])
def test_a_pool_class_that_cannot_be_imported_is_refused(mocker: MockerFixture, value: str) -> None:
    patch_factory(mocker, "mha", value)
    with pytest.raises(ConfigError, match=f"get_mha_kv_pool_cls: '{value}' cannot be imported"):
        create("mha")


def test_there_are_three_kinds() -> None:
    assert pool_selection.resolve_kv_pool_cls(AttentionKind.MLA) is MLATokenToKVPool
    kinds = [config.attention_kind for config in (LlamaConfig, DeepseekV2Config, DeepseekV32Config)]
    assert kinds == ["mha", "mla", "nsa"]
    with pytest.raises(ValueError, match="'flat' is not a valid AttentionKind"):
        pool_selection.resolve_kv_pool_cls("flat")


class VendorAllocator(TokenToKVPoolAllocator):
    """Stands for a platform's own allocator."""


class VendorPagedAllocator(PagedTokenToKVPoolAllocator):
    """Stands for a platform's own allocator."""


def patch_allocator(mocker: MockerFixture, value: object) -> None:
    mocker.patch.object(type(platforms.current_platform), "get_paged_allocator_cls", return_value=value)


@pytest.mark.parametrize(("page_size", "cls"), [(1, TokenToKVPoolAllocator), (4, PagedTokenToKVPoolAllocator)])
def test_the_page_size_decides_the_allocator(page_size: int, cls: type) -> None:
    allocator = pool_selection.create_allocator(size=8, page_size=page_size, device=CPU)
    assert type(allocator) is cls
    assert (allocator.available_size(), allocator.page_size) == (8, page_size)


@pytest.mark.parametrize(
    ("page_size", "value"),
    [
        (1, VendorAllocator),
        (1, VendorPagedAllocator),
        (1, f"{__name__}:VendorAllocator"),
        (4, VendorPagedAllocator),
        (4, f"{__name__}:VendorPagedAllocator"),
    ],
)
def test_the_platform_can_bring_its_own_allocator(mocker: MockerFixture, page_size: int, value: Any) -> None:
    patch_allocator(mocker, value)
    allocator = pool_selection.create_allocator(size=8, page_size=page_size, device=CPU)
    assert type(allocator).__name__ == (value if isinstance(value, str) else value.__name__).rpartition(":")[2]
    assert allocator.available_size() == 8
    got = allocator.alloc(4)
    assert got is not None
    allocator.check_integrity(got)


@pytest.mark.parametrize(
    ("page_size", "value", "needed"), [(1, dict, "TokenToKVPoolAllocator"), (4, VendorAllocator, "PagedToken")]
)
def test_a_wrong_allocator_is_a_type_error(mocker: MockerFixture, page_size: int, value: type, needed: str) -> None:
    patch_allocator(mocker, value)
    with pytest.raises(WrongClassError, match=f"get_paged_allocator_cls: .*{value.__name__} must be .*{needed}"):
        pool_selection.create_allocator(size=8, page_size=page_size, device=CPU)


def slots(mocker: MockerFixture, free: int, **changes: Any) -> int:
    mocker.patch.object(type(platforms.current_platform), "get_available_memory", return_value=(free, 2 * free))
    arguments = {"dtype": torch.float32, "page_size": 1, "kv_pool_args": LLAMA, "useful": 10**6, "asked": None}
    return pool_selection.num_kv_slots(MHATokenToKVPool, **(arguments | changes))


def test_the_slots_are_what_the_free_memory_holds_in_whole_pages(mocker: MockerFixture) -> None:
    token = MHATokenToKVPool.bytes_per_token(torch.float32, **LLAMA)
    assert slots(mocker, 1000 * token) == 799  # of the 800 that fit one is the sink
    assert slots(mocker, 1000 * token, page_size=64) == (800 // 64 - 1) * 64
    assert slots(mocker, 1000 * token, dtype=torch.float8_e5m2) == 3199
    assert slots(mocker, 1000 * token, useful=100, page_size=16) == 112
    assert slots(mocker, 1000 * token, asked=100, page_size=16) == 96
    assert slots(mocker, 1000 * token, asked=500, useful=100) == 500, "the rest keeps prefixes"


def test_slots_that_do_not_fit_are_refused_with_what_does(mocker: MockerFixture) -> None:
    token = MHATokenToKVPool.bytes_per_token(torch.float32, **LLAMA)
    with pytest.raises(ConfigError, match=r"max_total_tokens=5000 .* at most 799"):
        slots(mocker, 1000 * token, asked=5000)
    with pytest.raises(ConfigError, match="max_total_tokens=15 is less than a page of 16 slots"):
        slots(mocker, 1000 * token, asked=15, page_size=16)
    with pytest.raises(PlatformError, match="no memory for a KV pool: 192 bytes free, a page of 1 tokens takes 192"):
        slots(mocker, token)
