"""Request rows and KV pools."""

from __future__ import annotations

import pytest
import torch
from pytest_mock import MockerFixture

from runtime import platforms
from runtime.core.errors import ConfigError, EngineError
from runtime.mem_cache.memory_pool import (
    AttentionKind,
    KVCache,
    MHATokenToKVPool,
    ReqToTokenPool,
    create_kv_pool,
    resolve_kv_pool_cls,
)

CPU = torch.device("cpu")


def test_rows_run_from_one_and_row_zero_is_never_handed_out() -> None:
    pool = ReqToTokenPool(3, 8, CPU)
    assert pool.req_to_token.shape == (4, 8)
    assert pool.req_to_token.dtype is torch.int32
    assert sorted(row for row in (pool.alloc() for _ in range(3)) if row is not None) == [1, 2, 3]
    assert pool.alloc() is None
    pool.free(2)
    assert pool.available_size() == 1
    assert pool.alloc() == 2
    pool.clear()
    assert pool.available_size() == 3


@pytest.mark.parametrize("row", [0, -1, 4])
def test_a_row_that_does_not_exist_cannot_be_freed(row: int) -> None:
    with pytest.raises(EngineError, match="rows are 1 to 3"):
        ReqToTokenPool(3, 8, CPU).free(row)


def test_a_free_row_cannot_be_freed() -> None:
    with pytest.raises(EngineError, match="free already"):
        ReqToTokenPool(3, 8, CPU).free(1)


def make_pool(**changes: object) -> MHATokenToKVPool:
    arguments: dict[str, object] = {
        "size": 10,
        "page_size": 1,
        "dtype": torch.float32,
        "head_num": 2,
        "head_dim": 4,
        "layer_num": 3,
        "device": CPU,
    }
    return create_kv_pool(**(arguments | changes))  # type: ignore[arg-type]


def test_what_is_written_to_slots_of_a_layer_is_read_there_and_nowhere_else() -> None:
    pool = make_pool()
    for layer in range(3):
        keys, values = pool.get_kv_buffer(layer)
        keys.zero_()
        values.zero_()
    loc, k, v = torch.tensor([7, 2]), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    pool.set_kv_buffer(1, loc, k, v)
    assert torch.equal(pool.get_key_buffer(1)[loc], k)
    assert torch.equal(pool.get_value_buffer(1)[loc], v)
    assert pool.get_key_buffer(1).count_nonzero() == k.numel()
    assert pool.get_key_buffer(0).count_nonzero() == 0
    assert pool.get_value_buffer(2).count_nonzero() == 0


@pytest.mark.parametrize("page_size", [1, 4])
def test_the_first_page_is_a_finite_sink_beside_the_slots(page_size: int) -> None:
    pool = make_pool(page_size=page_size)
    for layer in range(3):
        for buffer in pool.get_kv_buffer(layer):
            assert buffer.shape == (10 + page_size, 2, 4)
            assert buffer[:page_size].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_token_are_the_bytes_of_a_slot(dtype: torch.dtype) -> None:
    pool = make_pool(dtype=dtype)
    slot = sum(buffer[1].nbytes for layer in range(3) for buffer in pool.get_kv_buffer(layer))
    assert MHATokenToKVPool.bytes_per_token(dtype, 2, 4, 3) == slot


class VendorPool(MHATokenToKVPool):
    """Stands for a platform's own pool."""


class ForeignPool:
    """No KV pool at all."""


def patch_factory(mocker: MockerFixture, value: object) -> None:
    mocker.patch.object(type(platforms.current_platform), "get_mha_kv_pool_cls", return_value=value)


def test_a_platform_without_an_opinion_gets_the_in_tree_pool() -> None:
    assert platforms.current_platform.get_mha_kv_pool_cls() is None
    assert type(make_pool()) is MHATokenToKVPool


@pytest.mark.parametrize("by_name", [False, True])
def test_the_platform_can_bring_its_own_pool(mocker: MockerFixture, by_name: bool) -> None:
    patch_factory(mocker, f"{__name__}:VendorPool" if by_name else VendorPool)
    pool = make_pool()
    assert type(pool).__name__ == "VendorPool"
    assert pool.size == 10


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ForeignPool, "ForeignPool must be a subclass of runtime.mem_cache.memory_pool.MHATokenToKVPool"),
        (VendorPool(1, 1, torch.float32, 1, 2, 1, CPU), "must be a subclass"),
        ("no_such_package.Pool", "'no_such_package.Pool' cannot be imported"),
        ("runtime.mem_cache.memory_pool.NoSuchPool", "cannot be imported"),
        ("not a name", "cannot be imported"),
    ],
)
def test_a_wrong_pool_class_is_refused_by_hook_and_name(mocker: MockerFixture, value: object, message: str) -> None:
    patch_factory(mocker, value)
    with pytest.raises(ConfigError, match="get_mha_kv_pool_cls") as caught:
        make_pool()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class LatentPool(KVCache):
    """Stands for a platform's pool for another kind of attention."""


@pytest.mark.parametrize("kind", [AttentionKind.MLA, AttentionKind.NSA])
class TestKindsWithoutAnInTreePool:
    def test_the_platforms_pool_is_taken(self, kind: AttentionKind, mocker: MockerFixture) -> None:
        factory = f"get_{kind.value}_kv_pool_cls"
        for value in (LatentPool, f"{__name__}:LatentPool"):
            mocker.patch.object(type(platforms.current_platform), factory, return_value=value)
            assert resolve_kv_pool_cls(kind).__name__ == "LatentPool"
        assert resolve_kv_pool_cls(AttentionKind.MHA) is MHATokenToKVPool

    def test_one_that_is_no_pool_is_refused(self, kind: AttentionKind, mocker: MockerFixture) -> None:
        factory = f"get_{kind.value}_kv_pool_cls"
        mocker.patch.object(type(platforms.current_platform), factory, return_value=ForeignPool)
        with pytest.raises(
            ConfigError, match=rf"KV pool from {factory}: .*ForeignPool must be a subclass of .*KVCache"
        ):
            resolve_kv_pool_cls(kind)

    def test_without_one_the_error_says_who_has_none(self, kind: AttentionKind) -> None:
        message = rf"no KV pool for {kind.name} attention: .* platform cpu brings none \(get_{kind.value}_kv_pool_cls"
        with pytest.raises(ConfigError, match=message):
            resolve_kv_pool_cls(kind)
