"""Request rows and KV pools."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from runtime.core.errors import ConfigError, EngineError
from runtime.mem_cache import memory_pool
from runtime.mem_cache.memory_pool import KVCache, MHATokenToKVPool, MLATokenToKVPool, NSATokenToKVPool, ReqToTokenPool

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
        "size": 12,
        "page_size": 1,
        "dtype": torch.float32,
        "head_num": 2,
        "head_dim": 4,
        "layer_num": 3,
        "device": CPU,
    }
    return MHATokenToKVPool(**(arguments | changes))  # type: ignore[arg-type]


def make_mla(**changes: object) -> MLATokenToKVPool:
    arguments: dict[str, object] = {"size": 12, "page_size": 1, "dtype": torch.float32, "layer_num": 2, "device": CPU}
    return MLATokenToKVPool(**(arguments | {"kv_lora_rank": 6, "qk_rope_head_dim": 2} | changes))  # type: ignore[arg-type]


def make_nsa(**changes: object) -> NSATokenToKVPool:
    arguments: dict[str, object] = {"size": 12, "page_size": 1, "dtype": torch.float32, "layer_num": 2, "device": CPU}
    sizes = {"kv_lora_rank": 6, "qk_rope_head_dim": 2, "index_head_dim": 4}
    return NSATokenToKVPool(**(arguments | sizes | changes))  # type: ignore[arg-type]


FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, *FP8]
POOLS = [make_pool, make_mla, make_nsa]


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
            assert buffer.shape == (12 + page_size, 2, 4)
            assert buffer[:page_size].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_token_are_the_bytes_of_a_slot(dtype: torch.dtype) -> None:
    pool = make_pool(dtype=dtype)
    slot = sum(buffer[1].nbytes for layer in range(3) for buffer in pool.get_kv_buffer(layer))
    assert MHATokenToKVPool.bytes_per_token(dtype, 2, 4, 3) == slot


def test_a_value_may_have_another_width_than_a_key() -> None:
    pool = make_pool(v_head_dim=3)
    loc, k, v = torch.tensor([4]), torch.randn(1, 2, 4), torch.randn(1, 2, 3)
    pool.set_kv_buffer(2, loc, k, v)
    assert torch.equal(pool.get_key_buffer(2)[loc], k)
    assert torch.equal(pool.get_value_buffer(2)[loc], v)
    assert MHATokenToKVPool.bytes_per_token(torch.float32, 2, 4, 3, v_head_dim=3) == 2 * (4 + 3) * 3 * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", POOLS)
def test_bytes_per_token_are_those_of_every_buffer(make: Callable[..., KVCache], dtype: torch.dtype) -> None:
    pool = make(dtype=dtype)
    sizes = {name: getattr(pool, name) for name in ARGUMENTS[type(pool)]}
    slot = sum(buffer[1].nbytes for buffer in pool.storage())
    assert type(pool).bytes_per_token(dtype=dtype, **sizes) == slot
    assert all(buffer.dtype is pool.store_dtype for buffer in pool.storage())
    assert (pool.store_dtype is torch.uint8) == (dtype in FP8)


ARGUMENTS = {
    MHATokenToKVPool: ("head_num", "head_dim", "layer_num"),
    MLATokenToKVPool: ("kv_lora_rank", "qk_rope_head_dim", "layer_num"),
    NSATokenToKVPool: ("kv_lora_rank", "qk_rope_head_dim", "layer_num", "index_head_dim"),
}


def test_latents_and_rotated_keys_are_one_row_whose_front_is_the_value() -> None:
    pool = make_mla()
    loc, latent, rotated = torch.tensor([3, 9, 1]), torch.randn(3, 6), torch.randn(3, 2)
    pool.set_mla_kv_buffer(1, loc, latent, rotated)
    keys, values = pool.get_kv_buffer(1)
    assert keys.shape == (13, 1, 8)
    assert values.shape == (13, 1, 6)
    assert torch.equal(keys[loc, 0], torch.cat([latent, rotated], dim=1))
    assert torch.equal(values[loc, 0], latent)
    assert values.data_ptr() == keys.data_ptr(), "a view, not a copy"
    assert torch.equal(pool.get_key_buffer(1)[0], torch.zeros(1, 8))


def test_whole_rows_can_be_written_to_latents_too() -> None:
    pool = make_mla()
    rows = torch.randn(2, 1, 8)
    pool.set_kv_buffer(0, torch.tensor([5, 6]), rows, rows[..., :6])
    assert torch.equal(pool.get_key_buffer(0)[5:7], rows)


def test_index_keys_are_kept_beside_the_latents() -> None:
    pool = make_nsa(page_size=4)
    loc, index_k = torch.tensor([4, 15]), torch.randn(2, 4)
    for layer in range(2):
        pool.get_index_k_buffer(layer).zero_()
    pool.set_index_k_buffer(1, loc, index_k)
    assert pool.get_index_k_buffer(1).shape == (16, 4)
    assert torch.equal(pool.get_index_k_buffer(1)[loc], index_k)
    assert pool.get_index_k_buffer(1).count_nonzero() == index_k.numel()
    assert pool.get_index_k_buffer(0).count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read_in_the_pools_dtype_rounded_to_it(dtype: torch.dtype) -> None:
    mha, nsa = make_pool(dtype=dtype), make_nsa(dtype=dtype)
    loc = torch.tensor([3, 8])
    k, v, latent, rotated, index_k = (torch.randn(2, *shape) for shape in ((2, 4), (2, 4), (6,), (2,), (4,)))
    mha.set_kv_buffer(0, loc, k, v)
    nsa.set_mla_kv_buffer(1, loc, latent, rotated)
    nsa.set_index_k_buffer(1, loc, index_k)
    for buffer, written in (
        (mha.get_key_buffer(0), k),
        (mha.get_value_buffer(0), v),
        (nsa.get_value_buffer(1)[:, 0], latent),
        (nsa.get_key_buffer(1)[:, 0, 6:], rotated),
        (nsa.get_index_k_buffer(1), index_k),
    ):
        assert buffer.dtype is dtype
        assert torch.equal(buffer.index_select(0, loc).float(), written.to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float16, *FP8])
def test_what_is_too_large_for_the_dtype_becomes_its_largest_number(dtype: torch.dtype) -> None:
    pool = make_pool(dtype=dtype)
    huge = torch.full((1, 2, 4), 1e30)
    pool.set_kv_buffer(0, torch.tensor([1]), huge, -huge)
    limit = torch.finfo(dtype).max
    assert pool.get_key_buffer(0)[1].float().unique().tolist() == [limit]
    assert pool.get_value_buffer(0)[1].float().unique().tolist() == [-limit]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("make", POOLS)
def test_the_first_page_of_every_buffer_is_a_finite_sink(
    make: Callable[..., KVCache], page_size: int, dtype: torch.dtype
) -> None:
    pool = make(dtype=dtype, page_size=page_size)
    for buffer in pool.storage():
        assert buffer.shape[0] == 12 + page_size
        assert buffer[:page_size].view(torch.uint8).count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("make", POOLS)
def test_slots_move_to_the_host_and_back_in_chunks(
    make: Callable[..., KVCache], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_pool, "COPY_CHUNK", 3)
    pool, other = make(dtype=dtype), make(dtype=dtype)
    for buffer in pool.storage():
        buffer.view(torch.uint8).random_(0, 100)
    taken, given = torch.tensor([9, 2, 4, 11, 1, 3, 7]), torch.tensor([1, 2, 3, 4, 5, 6, 12])
    copy = pool.get_cpu_copy(taken)
    assert [[len(piece) for piece in pieces] for pieces in copy] == [[3, 3, 1]] * len(pool.storage())
    before = [buffer.clone() for buffer in other.storage()]
    other.load_cpu_copy(copy, given)
    for source, target, old in zip(pool.storage(), other.storage(), before, strict=True):
        assert torch.equal(target[given].view(torch.uint8), source[taken].view(torch.uint8))
        untouched = torch.tensor([0, 7, 8, 9, 10, 11])
        assert torch.equal(target[untouched].view(torch.uint8), old[untouched].view(torch.uint8))


def test_a_host_copy_goes_into_as_many_slots_of_a_pool_like_its_own() -> None:
    copy = make_pool().get_cpu_copy(torch.tensor([1, 2]))
    with pytest.raises(EngineError, match="2 slots in 6 buffers cannot be put into 1 slots of 6 buffers"):
        make_pool().load_cpu_copy(copy, torch.tensor([1]))
    with pytest.raises(EngineError, match="2 slots in 6 buffers cannot be put into 2 slots of 2 buffers"):
        make_mla().load_cpu_copy(copy, torch.tensor([1, 2]))


@pytest.mark.parametrize("page_size", [0, 65])
def test_a_page_has_1_to_64_slots(page_size: int) -> None:
    with pytest.raises(ConfigError, match=f"page_size={page_size} is not valid"):
        make_pool(page_size=page_size)


def test_a_pool_is_whole_pages() -> None:
    assert make_pool(size=128, page_size=64).get_key_buffer(0).shape[0] == 192
    with pytest.raises(ConfigError, match="a KV pool of 12 slots cannot be made: it must be whole pages of 5"):
        make_pool(page_size=5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [3, 80])
@pytest.mark.parametrize(("latent", "rotated"), [(32, 8), (32, 4), (13, 8), (12, 3)])
def test_what_is_moved_in_words_arrives_whole(dtype: torch.dtype, tokens: int, latent: int, rotated: int) -> None:
    pool = make_mla(dtype=dtype, size=100, kv_lora_rank=latent, qk_rope_head_dim=rotated)
    for buffer in pool.storage():
        buffer.zero_()
    loc, rows = torch.randperm(100)[:tokens] + 1, torch.randn(tokens, 1 + latent + rotated)
    for start in (0, 1):  # the second does not begin at a word
        part = rows.to(dtype)[:, start : start + latent + rotated]
        pool.set_mla_kv_buffer(0, loc, part[:, :latent], part[:, latent:])
        read = pool.get_key_buffer(0)[:, 0].float()
        assert torch.equal(read[loc], part.float())
        assert read.count_nonzero() == read[loc].count_nonzero(), "nothing beside them is written"
