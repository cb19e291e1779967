"""The benchmark of the KV pools runs, and prints what it says it prints. Sizes are judged here, times are not."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import kv_pools
from runtime.mem_cache.memory_pool import MHATokenToKVPool

TINY = ["--rounds", "1", "--slots", "4096", "--layers", "1", "--tokens", "8", "--counts", "20", "100"]
POOLS = ("MHATokenToKVPool", "MLATokenToKVPool", "NSATokenToKVPool")


def test_json_has_every_pool_allocator_and_length_with_its_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    kv_pools.main([*TINY, "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    cases = [f"{pool} {dtype}" for pool in POOLS for dtype in ("bfloat16", "float8_e4m3fn")]
    assert [row["case"] for row in rows if row["what"] == "bytes per token"] == cases
    for what in ("set", "get"):
        assert [row["case"] for row in rows if row["what"] == what] == [f"{case}, 8 tokens" for case in cases]
    assert [row["case"] for row in rows if row["what"] == "alloc and free"] == [
        f"{what}, {count} tokens" for count in (20, 100) for what in ("slots", "pages of 16")
    ]
    assert [row["case"] for row in rows if row["what"] == "match a prefix"] == [
        *("pages of 1, 20 tokens", "pages of 16, 16 tokens", "pages of 1, 100 tokens", "pages of 16, 96 tokens")
    ]
    for row in rows:
        assert row["figure"] > 0
        assert row["limit"] > 0
        assert row["ratio"] == pytest.approx(row["figure"] / row["limit"])
        assert row["what"] != "bytes per token" or 1 <= row["ratio"] <= 1.01


def test_the_table_shows_figure_limit_and_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    kv_pools.main(TINY)
    _, head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["unit", "figure", "limit", "ratio"]
    assert sum(line.endswith("x") for line in lines) == 6 * 3 + 4 + 4


def test_a_pool_that_takes_more_than_it_should_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def wasteful(pool: MHATokenToKVPool) -> None:
        pool.k_buffer = [pool._new_buffer(pool.head_num, pool.head_dim + 8)]
        pool.v_buffer = [pool._new_buffer(pool.head_num, pool.head_dim)]

    monkeypatch.setattr(MHATokenToKVPool, "_create_buffers", wasteful)
    with pytest.raises(SystemExit, match=r"MHATokenToKVPool bfloat16 takes .* in theory it is 4096"):
        list(kv_pools.byte_rows(4096, 16, 1))


def test_what_is_read_is_what_was_written() -> None:
    for kind, sizes, numbers in kv_pools.POOLS:
        pool = kv_pools.make_pool(kind, sizes, torch.bfloat16, 64, 16, 1)
        source, loc = torch.rand(3, numbers).bfloat16(), torch.tensor([20, 16, 70])
        write, read = kv_pools.accesses(pool, loc, source)
        write()
        parts = read()
        parts = [parts] if isinstance(parts, torch.Tensor) else list(parts)
        assert torch.equal(torch.cat([part.reshape(3, -1) for part in parts], dim=1), source)


@pytest.mark.parametrize("option", [["--rounds", "0"], ["--counts", "0"], ["--page-size", "65"]])
def test_nothing_to_measure_is_an_error(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kv_pools.main(option)
    assert "must be" in capsys.readouterr().err
