"""What keys and values cost: bytes per token, moving them, handing out their slots, finding a prefix again.

Every figure stands beside the best it could be, measured in the same round: the theoretical size, a plain copy of the
same bytes, a plain copy of as many slot ids, a plain comparison of as many tokens. Medians over the rounds.

    python benchmarks/kv_pools.py
    python benchmarks/kv_pools.py --page-size 64 --rounds 50 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from runtime.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from runtime.mem_cache.memory_pool import KVCache, MHATokenToKVPool, MLATokenToKVPool, NSATokenToKVPool
from runtime.mem_cache.radix_cache import RadixCache

CPU = torch.device("cpu")
SIZE_TOLERANCE = 0.01
"""How far the bytes of a token may be from the theoretical ones."""

LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
POOLS: tuple[tuple[type[KVCache], dict[str, int], int], ...] = (
    (MHATokenToKVPool, {"head_num": 8, "head_dim": 128}, 2 * 8 * 128),
    (MLATokenToKVPool, LATENT, 512 + 64),
    (NSATokenToKVPool, LATENT | {"index_head_dim": 128}, 512 + 64 + 128),
)
"""The pools, in the sizes of Llama-3 8B and DeepSeek, with the numbers that a token has in one layer."""

DTYPES = (torch.bfloat16, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Row:
    """One figure beside the best it could be: a throughput is at most that, anything else at least."""

    what: str
    case: str
    unit: str
    figure: float
    limit: float

    @property
    def ratio(self) -> float:
        """The figure in limits; 1 is the best there is."""
        return self.figure / self.limit


class Alternating:
    """Times a piece of work and its limit in turns, so that a machine whose speed drifts treats both alike."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def seconds(self, work: Callable[[], object], limit: Callable[[], object]) -> tuple[float, float]:
        """The medians of both; the first round warms up."""
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(self.rounds + 1):
            for spent, run in zip(times, (work, limit), strict=True):
                started = time.perf_counter()
                run()
                if number:
                    spent.append(time.perf_counter() - started)
        return statistics.median(times[0]), statistics.median(times[1])


def make_pool(
    kind: type[KVCache], sizes: dict[str, int], dtype: torch.dtype, slots: int, page_size: int, layers: int
) -> KVCache:
    """A pool of `slots` slots in whole pages."""
    make: Callable[..., KVCache] = kind
    size = -(-slots // page_size) * page_size
    return make(size=size, page_size=page_size, dtype=dtype, layer_num=layers, device=CPU, **sizes)


def byte_rows(slots: int, page_size: int, layers: int) -> Iterator[Row]:
    """Bytes of a token in each pool: what the buffers take, by what the formula says.

    Raises:
        SystemExit: one is more than a hundredth off, or the pool says something else of itself.
    """
    for kind, sizes, numbers in POOLS:
        for dtype in DTYPES:
            pool = make_pool(kind, sizes, dtype, slots, page_size, layers)
            taken = sum(buffer.nbytes for buffer in pool.storage()) / pool.size
            theory = float(numbers * layers * dtype.itemsize)
            row = Row("bytes per token", f"{kind.__name__} {short(dtype)}", "bytes", taken, theory)
            said = kind.bytes_per_token(dtype=dtype, layer_num=layers, **sizes)
            if abs(row.ratio - 1) > SIZE_TOLERANCE or said != theory:
                sys.exit(f"{row.case} takes {taken:.1f} bytes per token and says {said}; in theory it is {theory:.0f}")
            yield row


def move_rows(clock: Alternating, slots: int, page_size: int, tokens: int) -> Iterator[Row]:
    """Writing `tokens` tokens of one layer to slots in random order, and reading them, by a plain copy of the bytes."""
    generator = torch.Generator().manual_seed(0)
    for kind, sizes, numbers in POOLS:
        for dtype in DTYPES:
            pool = make_pool(kind, sizes, dtype, slots, page_size, 1)
            loc = torch.randperm(pool.size, generator=generator)[:tokens] + page_size
            source = torch.rand(len(loc), numbers, generator=generator).to(dtype)
            target = torch.empty_like(source)
            write, read = accesses(pool, loc, source)
            moved = source.nbytes / 1e9
            for what, work in (("set", write), ("get", read)):
                ours, plain = clock.seconds(work, lambda source=source, target=target: target.copy_(source))  # type: ignore[misc]
                yield Row(
                    what, f"{kind.__name__} {short(dtype)}, {len(loc)} tokens", "GB/s", moved / ours, moved / plain
                )


def accesses(
    pool: KVCache, loc: torch.Tensor, source: torch.Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """How the tokens in `source` ([T, numbers of a token]) are written to the slots `loc` of layer 0, and read."""
    if isinstance(pool, MHATokenToKVPool):
        k, v = source.view(len(loc), 2, pool.head_num, pool.head_dim).unbind(1)

        def write_heads() -> None:
            pool.set_kv_buffer(0, loc, k, v)

        def read_heads() -> Any:
            return [take(buffer, loc) for buffer in pool.get_kv_buffer(0)]

        return write_heads, read_heads
    assert isinstance(pool, MLATokenToKVPool), "the only other family"
    latent, rope = source[:, : pool.kv_lora_rank], source[:, pool.kv_lora_rank :][:, : pool.qk_rope_head_dim]
    index = source[:, pool.kv_lora_rank + pool.qk_rope_head_dim :]

    def write_latents() -> None:
        pool.set_mla_kv_buffer(0, loc, latent, rope)
        if isinstance(pool, NSATokenToKVPool):
            pool.set_index_k_buffer(0, loc, index)

    def read_latents() -> Any:
        rows = take(pool.get_key_buffer(0), loc)
        return (rows, take(pool.get_index_k_buffer(0), loc)) if isinstance(pool, NSATokenToKVPool) else rows

    return write_latents, read_latents


def take(buffer: torch.Tensor, loc: torch.Tensor) -> torch.Tensor:
    """What a buffer has in some slots."""
    return buffer.index_select(0, loc)


def allocator_rows(clock: Alternating, page_size: int, counts: Sequence[int]) -> Iterator[Row]:
    """Handing out and taking back slots, by a copy of as many slot ids."""
    for count in counts:
        single = TokenToKVPoolAllocator(count, CPU)
        pages = PagedTokenToKVPoolAllocator(-(-count // page_size) * page_size, CPU, page_size)
        nothing, whole = torch.tensor([0]), torch.tensor([count])

        def slot_by_slot(allocator: TokenToKVPoolAllocator = single, count: int = count) -> None:
            allocator.free(taken(allocator.alloc(count)))

        def page_by_page(
            allocator: PagedTokenToKVPoolAllocator = pages,
            nothing: torch.Tensor = nothing,
            whole: torch.Tensor = whole,
            count: int = count,
        ) -> None:
            allocator.free(taken(allocator.alloc_extend(nothing, whole, nothing, count)))

        ids = torch.arange(count)
        for case, work in (("slots", slot_by_slot), (f"pages of {page_size}", page_by_page)):
            ours, plain = clock.seconds(work, ids.clone)
            yield Row("alloc and free", f"{case}, {count} tokens", "ns/token", ours / count * 1e9, plain / count * 1e9)


def taken(slots: torch.Tensor | None) -> torch.Tensor:
    """The slots that an allocator gave."""
    assert slots is not None, "the pool is as large as what is asked of it"
    return slots


def match_rows(clock: Alternating, page_size: int, counts: Sequence[int]) -> Iterator[Row]:
    """Finding a prompt that is cached whole, in a tree where others begin alike, by a comparison of as many tokens."""
    generator = torch.Generator().manual_seed(0)
    for count in counts:
        for size in sorted({1, page_size}):
            length = max(count // size, 1) * size
            prompt = torch.randint(50000, (length,), generator=generator).tolist()
            tree = RadixCache(size, CPU)
            tree.insert(prompt, torch.arange(length))
            for part in range(1, 8):  # others leave it at seven places, and cut it into as many nodes
                tree.insert([*prompt[: length * part // 8], *([60000] * size)], torch.arange(length * part // 8 + size))
            found = tree.match_prefix(prompt).slots.numel()
            assert found == length, f"{found} of {length} tokens found"
            same, ours_again = array("q", prompt), array("q", prompt)

            def match(tree: RadixCache = tree, prompt: list[int] = prompt) -> object:
                return tree.match_prefix(prompt)

            def compare(one: array[int] = same, other: array[int] = ours_again) -> object:
                return one == other

            ours, plain = clock.seconds(match, compare)
            yield Row(
                "match a prefix",
                f"pages of {size}, {length} tokens",
                "ns/token",
                ours / length * 1e9,
                plain / length * 1e9,
            )


def short(dtype: torch.dtype) -> str:
    """The name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")


def measure(rounds: int, page_size: int, slots: int, layers: int, tokens: int, counts: Sequence[int]) -> list[Row]:
    """Every figure."""
    clock = Alternating(rounds)
    return [
        *byte_rows(slots, page_size, layers),
        *move_rows(clock, slots, page_size, tokens),
        *allocator_rows(clock, page_size, counts),
        *match_rows(clock, page_size, counts),
    ]


def print_table(rows: Sequence[Row]) -> None:
    """Print the figures with the limit and the ratio to it."""
    width = max(len(row.case) for row in rows)
    print(f"{'':<15}  {'':<{width}}  {'unit':>8}  {'figure':>10}  {'limit':>10}  {'ratio':>8}")
    for row in rows:
        ratio = f"{row.ratio:.3f}x" if row.unit == "bytes" else f"{row.ratio:.2f}x"
        print(
            f"{row.what:<15}  {row.case:<{width}}  {row.unit:>8}  {row.figure:>10.2f}  {row.limit:>10.2f}  {ratio:>8}"
        )
    print(
        "limits: the theoretical size; a plain copy of the same bytes; a copy of as many slot ids; a comparison of as"
        " many tokens"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    parser.add_argument("--page-size", type=int, default=16, metavar="N")
    parser.add_argument("--slots", type=int, default=32768, metavar="N", help="slots of the pools")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="layers of the pools whose size is measured")
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="tokens that are moved at a time")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10000, 100000], metavar="N")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parsed = parser.parse_args(arguments)
    if min(parsed.rounds, parsed.slots, parsed.layers, parsed.tokens, *parsed.counts) < 1:
        parser.error("--rounds, --slots, --layers, --tokens and --counts must be at least 1")
    if not 1 <= parsed.page_size <= 64:
        parser.error("--page-size must be 1 to 64")
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    rows = measure(parsed.rounds, parsed.page_size, parsed.slots, parsed.layers, parsed.tokens, parsed.counts)
    settings = {"rounds": parsed.rounds, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if parsed.json:
        print(json.dumps({"settings": settings, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}))
        return
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    print_table(rows)


if __name__ == "__main__":
    main()
