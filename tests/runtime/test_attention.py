"""The attention backend: its metadata, and attention against a plain computation over each sequence by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.core.errors import ConfigError
from runtime.core.forward_batch import ForwardBatch, ForwardMode
from runtime.layers.attention.base import AttentionBackend, AttentionConfig
from runtime.layers.attention.latent import IndexInputs, LatentProjection
from runtime.layers.attention.torch_backend import TorchAttentionBackend
from runtime.mem_cache.memory_pool import (
    AttentionKind,
    KVCache,
    MHATokenToKVPool,
    MLATokenToKVPool,
    NSATokenToKVPool,
    ReqToTokenPool,
)

CPU = torch.device("cpu")
HEADS, DIM, RANK, ROPE, NOPE, V_DIM, INDEX_HEADS, INDEX_DIM, TOPK = 4, 16, 24, 8, 16, 12, 16, 8, 5
CONTEXT = 64


class Sequences:
    """Sequences in a pool, in slots that are out of order, and a backend over them.

    Attributes:
        tokens: for each sequence, what it keeps of each of its tokens.
    """

    def __init__(self, pool: KVCache, config: AttentionConfig, rows: int, context: int = CONTEXT) -> None:
        self.pool = pool
        self.requests = ReqToTokenPool(rows, context, CPU)
        self.backend = TorchAttentionBackend(self.requests, pool, config, torch.float32)
        self.free = torch.randperm(pool.size, generator=torch.Generator().manual_seed(0)).add(1).tolist()
        self.lengths = [0] * rows

    def batch(self, extends: Sequence[tuple[int, int]], decodes: Sequence[int]) -> ForwardBatch:
        """A batch that brings new tokens: (row, how many) for extends, one for each decode."""
        rows = [*extends, *((row, 1) for row in decodes)]
        positions, slots = [], []
        for row, new in rows:
            own = range(self.lengths[row], self.lengths[row] + new)
            taken = [self.free.pop() for _ in own]
            self.requests.req_to_token[row + 1, own.start : own.stop] = torch.tensor(taken, dtype=torch.int32)
            self.lengths[row] += new
            positions += own
            slots += taken
        lengths = [self.lengths[row] for row, _ in rows]
        return ForwardBatch(
            forward_mode=ForwardMode.of(len(extends), len(rows)),
            input_ids=torch.zeros(len(positions), dtype=torch.int64),
            positions=torch.tensor(positions),
            out_cache_loc=torch.tensor(slots),
            req_pool_indices=torch.tensor([row + 1 for row, _ in rows]),
            seq_lens=torch.tensor(lengths),
            seq_lens_cpu=lengths,
            extend_lens_cpu=[new for _, new in rows],
            num_extend=len(extends),
        )


STEPS: list[tuple[list[tuple[int, int]], list[int]]] = [
    ([(0, 7), (1, 1), (2, 20)], []),
    ([(3, 13)], [0, 2]),
    ([(1, 6), (0, 9)], [3]),
    ([], [2, 0, 1, 3]),
    ([(2, 1)], [1]),
    ([], [3]),
]
"""Extends, extends after a prefix, decodes, and all of them mixed."""


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor, scale: float) -> torch.Tensor:
    """[heads, dim] over [L, heads, dim] and [L, heads, v_dim], where `visible` ([L]), in float64."""
    products = torch.einsum("hd,lhd->hl", q.double(), k.double()) * scale
    weights = products.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hl,lhv->hv", weights, v.double()).flatten().float()


def mha(windows: tuple[int | None, ...], kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> Sequences:
    pool = MHATokenToKVPool(128, 1, dtype, kv_heads, DIM, len(windows), CPU)
    for buffer in pool.storage():  # whatever is read that was not written shows
        buffer[1:] = torch.nan if dtype is torch.float32 else 0
    return Sequences(pool, AttentionConfig(AttentionKind.MHA, HEADS, kv_heads, DIM, DIM**-0.5, windows), 4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("windows", [(None,), (6,), (1,), (None, 6, 100)])
@pytest.mark.parametrize(("reserved", "block"), [(False, 512), (True, 512), (False, 4)])
def test_attention_is_that_of_each_sequence_by_itself(
    kv_heads: int, windows: tuple[int | None, ...], reserved: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.layers.attention.torch_backend.EXTEND_BLOCK", block)
    sequences = mha(windows, kv_heads)
    if reserved:
        sequences.backend.reserve([(4, CONTEXT)])
    keys = torch.zeros(4, CONTEXT, len(windows), kv_heads, DIM)
    values = torch.zeros_like(keys)
    for extends, decodes in STEPS:
        batch = sequences.batch(extends, decodes)
        if reserved and not extends:
            sequences.backend.init_replay_metadata(batch, CONTEXT)
        else:
            sequences.backend.init_forward_metadata(batch)
        rows = [row for row, new in [*extends, *((row, 1) for row in decodes)] for _ in range(new)]
        for layer, window in enumerate(windows):
            q = torch.randn(len(rows), HEADS, DIM)
            k, v = torch.randn(len(rows), kv_heads, DIM), torch.randn(len(rows), kv_heads, DIM)
            keys[rows, batch.positions, layer], values[rows, batch.positions, layer] = k, v
            got = sequences.backend.forward(q, k, v, layer)
            for token, (row, position) in enumerate(zip(rows, batch.positions.tolist(), strict=True)):
                end = position + 1
                visible = torch.arange(end) > (-1 if window is None else position - window)
                own_keys = keys[row, :end, layer].repeat_interleave(HEADS // kv_heads, dim=1)
                own_values = values[row, :end, layer].repeat_interleave(HEADS // kv_heads, dim=1)
                expected = attend(q[token], own_keys, own_values, visible, DIM**-0.5)
                torch.testing.assert_close(got[token], expected, atol=1e-5, rtol=1e-4)


def latent_sequences(kind: AttentionKind, topk: int | None) -> Sequences:
    pool: MLATokenToKVPool
    if kind is AttentionKind.MLA:
        pool = MLATokenToKVPool(128, 1, torch.float32, RANK, ROPE, 1, CPU)
    else:
        pool = NSATokenToKVPool(128, 1, torch.float32, RANK, ROPE, 1, CPU, INDEX_DIM)
    for buffer in pool.storage():
        buffer[1:] = torch.nan
    config = AttentionConfig(kind, HEADS, HEADS, NOPE + ROPE, 0.3, (None,), topk)
    return Sequences(pool, config, 4)


@pytest.mark.parametrize("topk", [None, TOPK, 1, 19, 100])
@pytest.mark.parametrize(("block_bytes", "block"), [(1, 2048), (1 << 26, 2048), (1 << 26, 4)])
def test_latent_attention_is_that_over_expanded_keys_and_chosen_tokens(
    topk: int | None, block_bytes: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.layers.attention.torch_backend.LATENT_EXTEND_BLOCK", block)
    monkeypatch.setattr("runtime.layers.attention.torch_backend.INDEX_BLOCK_BYTES", block_bytes)
    sequences = latent_sequences(AttentionKind.MLA if topk is None else AttentionKind.NSA, topk)
    projection = LatentProjection(HEADS, NOPE, V_DIM, RANK, torch.float32, CPU)
    projection.weight.normal_()
    latents, ropes = torch.zeros(4, CONTEXT, RANK), torch.zeros(4, CONTEXT, ROPE)
    index_keys = torch.zeros(4, CONTEXT, INDEX_DIM)
    for extends, decodes in STEPS:
        batch = sequences.batch(extends, decodes)
        sequences.backend.init_forward_metadata(batch)
        rows = [row for row, new in [*extends, *((row, 1) for row in decodes)] for _ in range(new)]
        q_nope, q_rope = torch.randn(len(rows), HEADS, NOPE), torch.randn(len(rows), HEADS, ROPE)
        latent, k_rope = torch.randn(len(rows), RANK), torch.randn(len(rows), ROPE)
        index = None
        if topk is not None:
            index = IndexInputs(
                torch.randn(len(rows), INDEX_HEADS, INDEX_DIM),
                torch.randn(len(rows), INDEX_DIM),
                torch.randn(len(rows), INDEX_HEADS),
            )
            index_keys[rows, batch.positions] = index.k
        latents[rows, batch.positions], ropes[rows, batch.positions] = latent, k_rope
        got = sequences.backend.forward_mla(q_nope, q_rope, latent, k_rope, projection, 0, index)
        for token, (row, position) in enumerate(zip(rows, batch.positions.tolist(), strict=True)):
            end = position + 1
            kv = (latents[row, :end] @ projection.weight.t()).view(end, HEADS, NOPE + V_DIM)
            keys = torch.cat((kv[..., :NOPE], ropes[row, :end, None].expand(-1, HEADS, -1)), dim=-1)
            visible = torch.ones(end, dtype=torch.bool)
            if index is not None and topk is not None and end > topk:
                products = (index.q[token] @ index_keys[row, :end].t()).relu()
                best = (index.weights[token] @ products).topk(topk).indices
                visible = torch.zeros(end, dtype=torch.bool).index_fill(0, best, True)
            q = torch.cat((q_nope[token], q_rope[token]), dim=-1)
            expected = attend(q, keys, kv[..., NOPE:], visible, 0.3)
            torch.testing.assert_close(got[token], expected, atol=1e-4, rtol=1e-3)


def test_decode_metadata_stays_where_it_is() -> None:
    # What a recorded step reads must be where it was, and say what holds now.
    sequences = mha((None, 6))
    sequences.backend.reserve([(4, CONTEXT)])
    sequences.backend.init_forward_metadata(sequences.batch([(0, 3), (1, 9)], []))
    seen = []
    for _ in range(3):
        sequences.backend.init_replay_metadata(sequences.batch([], [0, 1]), CONTEXT)
        decodes = [metadata.decode for metadata in sequences.backend.layer_metadata]
        for decode, width in zip(decodes, (CONTEXT, 6), strict=True):
            assert decode is not None
            assert decode.mask is not None
            assert decode.slots.shape == decode.mask.shape == (2, width)
            visible = [min(width, sequences.lengths[row]) for row in (0, 1)]
            assert decode.mask.isfinite().sum(-1).tolist() == visible
            assert (decode.slots != 0).sum(-1).tolist() == visible
            seen.append((width, decode.slots.data_ptr(), decode.mask.data_ptr()))
    assert len(set(seen)) == 2


def test_a_batch_that_needs_more_than_is_reserved_leaves_it_where_it_is() -> None:
    sequences = mha((None, 6))
    sequences.backend.reserve([(2, 4)])
    reserved = [tensor.data_ptr() for tensor in sequences.backend.reserved_tensors()]
    sequences.backend.init_forward_metadata(sequences.batch([(0, 30), (1, 9)], []))
    sequences.backend.init_forward_metadata(sequences.batch([], [0, 1]))
    decode = sequences.backend.layer_metadata[0].decode
    assert decode is not None
    assert decode.slots.shape == (2, 31)
    assert decode.slots.data_ptr() not in reserved
    assert [tensor.data_ptr() for tensor in sequences.backend.reserved_tensors()] == reserved


def test_nothing_is_as_large_as_all_tokens_times_all_tokens() -> None:
    sequences = mha((None,))
    batch = sequences.batch([(0, 30), (1, 30), (2, 30)], [])
    sequences.backend.init_forward_metadata(batch)
    assert all(extend.mask is None for extend in sequences.backend.layer_metadata[0].extends)
    batch = sequences.batch([(0, 4), (1, 2)], [2])
    sequences.backend.init_forward_metadata(batch)
    (metadata,) = sequences.backend.layer_metadata
    masks = [extend.mask for extend in metadata.extends]
    assert [None if mask is None else tuple(mask.shape) for mask in masks] == [(4, 34), (2, 32)]
    assert metadata.decode is not None
    assert metadata.decode.mask is None


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("prefix", [0, 5])
def test_a_long_prompt_makes_nothing_as_large_as_its_tokens_times_its_tokens(
    window: int | None, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, block = 800, 32
    monkeypatch.setattr("runtime.layers.attention.torch_backend.EXTEND_BLOCK", block)
    pool = MHATokenToKVPool(1024, 1, torch.float32, 1, 2, 1, CPU)
    sequences = Sequences(pool, AttentionConfig(AttentionKind.MHA, 2, 1, 2, 1.0, (window,)), 1, context=1024)
    for length in (prefix, new) if prefix else (new,):
        with LargestTensor() as largest:
            sequences.backend.init_forward_metadata(sequences.batch([(0, length)], []))
            sequences.backend.forward(
                torch.randn(length, 2, 2), torch.randn(length, 1, 2), torch.randn(length, 1, 2), 0
            )
    assert largest.elements <= block * (new + prefix)


@pytest.mark.parametrize("prefix", [0, 5])
def test_a_long_prompt_of_latent_attention_makes_no_products_of_all_tokens(prefix: int) -> None:
    new = 300
    pool = MLATokenToKVPool(512, 1, torch.float32, RANK, ROPE, 1, CPU)
    config = AttentionConfig(AttentionKind.MLA, HEADS, HEADS, NOPE + ROPE, 0.3, (None,))
    sequences = Sequences(pool, config, 1, context=512)
    projection = LatentProjection(HEADS, NOPE, V_DIM, RANK, torch.float32, CPU)
    projection.weight.normal_()
    for length in (prefix, new) if prefix else (new,):
        with LargestTensor() as largest:
            sequences.backend.init_forward_metadata(sequences.batch([(0, length)], []))
            q_nope, q_rope = torch.randn(length, HEADS, NOPE), torch.randn(length, HEADS, ROPE)
            latent, k_rope = torch.randn(length, RANK), torch.randn(length, ROPE)
            sequences.backend.forward_mla(q_nope, q_rope, latent, k_rope, projection, 0)
    assert largest.elements < HEADS * new * new


class DenseOnly(AttentionBackend):
    """A backend of a vendor who has no latent attention."""

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Nothing to prepare."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer_id: int) -> torch.Tensor:
        """Nothing to compute."""
        return q


def test_a_backend_refuses_a_kind_of_attention_that_it_does_not_compute() -> None:
    pool = MLATokenToKVPool(8, 1, torch.float32, RANK, ROPE, 1, CPU)
    config = AttentionConfig(AttentionKind.MLA, HEADS, HEADS, NOPE + ROPE, 0.3, (None,))
    with pytest.raises(ConfigError, match="DenseOnly cannot run a model with mla attention: it computes mha"):
        DenseOnly(ReqToTokenPool(1, 8, CPU), pool, config, torch.float32)
