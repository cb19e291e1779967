"""The registry of input buffers: what a fill writes, and who owns what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from runtime.core.forward_batch import ForwardBatch, ForwardMode
from runtime.model_executor import cuda_graph_buffer_registry as registries
from runtime.model_executor import input_buffers
from runtime.model_executor.cuda_graph_buffer_registry import (
    CudaGraphBufferRegistry,
    FillContext,
    GraphSlot,
    PaddingPolicy,
    build_decode_registry,
    build_prefill_registry,
)

CPU = torch.device("cpu")
MAX_BS, MAX_TOKENS = 4, 7
KINDS = ("field", "missing", "unset", "written by the step", "sourced", "short", "nothing sourced", "computed")
DTYPES = (torch.int64, torch.int32, torch.float32, torch.bfloat16, torch.bool)


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    input_buffers.forget_shared_buffers()
    yield
    input_buffers.forget_shared_buffers()


@dataclass(frozen=True)
class SlotCase:
    """A slot in plain words, of which the test makes the slot and computes what a fill must do."""

    name: str
    axis: str
    dim: int
    extra: tuple[int, ...]
    dtype: torch.dtype
    source_dtype: torch.dtype
    policy: PaddingPolicy
    pad_value: int
    kind: str  # one of KINDS

    def shape(self, max_bs: int, max_num_tokens: int) -> tuple[int, ...]:
        size = {"bs": max_bs, "tokens": max_num_tokens, "none": 3}[self.axis]
        return (*self.extra[: self.dim], size, *self.extra[self.dim :])

    def slot(self) -> GraphSlot:
        return GraphSlot(
            self.name,
            self.shape,
            self.dtype,
            self.axis,
            dim=self.dim,
            padding_policy=self.policy,
            pad_value=self.pad_value,
            copy_from_fb=self.kind not in ("written by the step", "computed"),
            post_fill=self._computed if self.kind == "computed" else None,
            source_fn=self._sourced if self.kind in ("sourced", "short", "nothing sourced") else None,
        )

    def _computed(self, buffer: torch.Tensor, batch: Any, context: FillContext) -> None:
        buffer.fill_(context.padded_num_tokens % 2)

    def _sourced(self, batch: Any, context: FillContext) -> torch.Tensor | None:
        return None if self.kind == "nothing sourced" else batch.elsewhere[self.name]

    def lengths(self, context: FillContext) -> tuple[int, int]:
        """Raw and padded length along the slot's dimension."""
        if self.axis == "bs":
            return context.raw_bs, context.padded_bs
        return (context.raw_num_tokens, context.padded_num_tokens) if self.axis == "tokens" else (3, 3)


@st.composite
def slot_cases(draw: st.DrawFn, name: str, vectors: bool) -> SlotCase:
    extra = () if vectors else tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    return SlotCase(
        name=name,
        axis=draw(st.sampled_from(registries.AXES)),
        dim=draw(st.integers(0, len(extra))),
        extra=extra,
        dtype=draw(st.sampled_from(DTYPES)),
        source_dtype=draw(st.sampled_from(DTYPES)),
        policy=draw(st.sampled_from(PaddingPolicy)),
        pad_value=draw(st.integers(0, 5)),
        kind=draw(st.sampled_from(("field", "field", "written by the step", "computed") if vectors else KINDS)),
    )


@st.composite
def contexts(draw: st.DrawFn) -> FillContext:
    padded_bs = draw(st.integers(1, MAX_BS))
    padded_tokens = draw(st.integers(1, MAX_TOKENS))
    return FillContext(draw(st.integers(0, padded_bs)), padded_bs, draw(st.integers(0, padded_tokens)), padded_tokens)


def source_of(case: SlotCase, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (*case.extra[: case.dim], length, *case.extra[case.dim :])
    return torch.randint(0, 100, shape, generator=generator).to(case.source_dtype)


def reference_fill(case: SlotCase, before: torch.Tensor, context: FillContext, source: torch.Tensor | None) -> None:
    """What a fill does, one position after the other; `before` has the slot's dimension first."""
    raw, padded = case.lengths(context)
    if case.axis != "none":
        for position in range(raw, padded):
            if case.policy is PaddingPolicy.ZERO:
                before[position] = torch.zeros_like(before[position])
            elif case.policy is PaddingPolicy.FILL_SENTINEL:
                before[position] = torch.full_like(before[position], case.pad_value)
    if source is not None:
        for position in range(source.shape[0]):
            before[position] = source[position].to(case.dtype)
    if case.kind == "computed":
        for position in range(padded):
            before[position] = torch.full_like(before[position], context.padded_num_tokens % 2)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_fill_does_what_the_plain_reference_does(data: st.DataObject) -> None:
    # What batches mostly are has a shorter way, from the third fill of the same sizes on.
    vectors = data.draw(st.booleans())
    cases = [data.draw(slot_cases(f"slot{i}", vectors)) for i in range(data.draw(st.integers(1, 5)))]
    sizes = data.draw(st.lists(contexts(), min_size=1, max_size=1 if vectors else 2))
    registry = CudaGraphBufferRegistry(CPU, MAX_BS, MAX_TOKENS)
    expected = {}
    for case in cases:
        buffer = registry.register_slot(case.slot()).buffer
        assert buffer is not None
        initial = case.pad_value if case.policy in (PaddingPolicy.FILL_SENTINEL, PaddingPolicy.FILL_ONCE) else 0
        expected[case.name] = torch.full(case.shape(MAX_BS, MAX_TOKENS), initial).to(case.dtype)
    addresses = registry.addresses()
    for seed in range(data.draw(st.integers(1, 4))):
        context = data.draw(st.sampled_from(sizes))
        batch = SimpleNamespace(elsewhere={})
        for number, case in enumerate(cases):
            source = None
            raw, _ = case.lengths(context)
            if case.kind == "unset":
                setattr(batch, case.name, None)
            elif case.kind in ("field", "sourced", "short"):
                length = raw // 2 if case.kind == "short" else raw
                # Now and then a batch brings another dtype than the ones before it.
                dtype = data.draw(st.sampled_from((case.source_dtype, case.source_dtype, *DTYPES[:3])))
                source = source_of(replace(case, source_dtype=dtype), length, 10 * seed + number)
                if case.kind == "field":
                    setattr(batch, case.name, source)
                else:
                    batch.elsewhere[case.name] = source
            reference_fill(
                case,
                expected[case.name].movedim(case.dim, 0),
                context,
                None if source is None else source.movedim(case.dim, 0),
            )
        registry.fill_from(
            batch,
            raw_bs=context.raw_bs,
            padded_bs=context.padded_bs,
            raw_num_tokens=context.raw_num_tokens,
            padded_num_tokens=context.padded_num_tokens,
        )
        for case in cases:
            buffer = registry.slot(case.name).buffer
            assert buffer is not None
            assert torch.equal(buffer, expected[case.name]), case
    assert registry.addresses() == addresses


def test_the_property_covers_every_policy_axis_dtype_and_kind() -> None:
    # One case of each combination, so that what the random test draws does not decide what is looked at.
    seen = 0
    for policy in PaddingPolicy:
        for axis in registries.AXES:
            for dtype in DTYPES:
                for kind in ("field", "unset", "written by the step", "short", "computed"):
                    case = SlotCase("slot", axis, 1, (2,), dtype, torch.int64, policy, 1, kind)
                    registry = CudaGraphBufferRegistry(CPU, MAX_BS, MAX_TOKENS)
                    registry.register_slot(case.slot())
                    buffer = registry.slot("slot").buffer
                    assert buffer is not None
                    buffer.fill_(1)
                    expected = buffer.clone()
                    context = FillContext(2, 3, 3, 5)
                    raw, _ = case.lengths(context)
                    source = (
                        source_of(case, raw // 2 if kind == "short" else raw, 1) if kind in ("field", "short") else None
                    )
                    batch = SimpleNamespace(elsewhere={"slot": source}, slot=source if kind == "field" else None)
                    reference_fill(
                        case, expected.movedim(1, 0), context, None if source is None else source.movedim(1, 0)
                    )
                    registry.fill_from(batch, raw_bs=2, padded_bs=3, raw_num_tokens=3, padded_num_tokens=5)
                    assert torch.equal(buffer, expected), case
                    seen += 1
    assert seen == 5 * 3 * 5 * 5


class TestSlots:
    def registry(self) -> CudaGraphBufferRegistry:
        return CudaGraphBufferRegistry(CPU, MAX_BS, MAX_TOKENS)

    def slot(self, name: str = "ids", **options: Any) -> GraphSlot:
        return GraphSlot(name, lambda bs, tokens: (tokens, 2), torch.int64, "tokens", **options)

    def test_an_axis_that_is_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="axis 'batch'"):
            GraphSlot("ids", lambda bs, tokens: (bs,), torch.int64, "batch")

    @pytest.mark.parametrize("enabled", [True, False])
    def test_a_name_is_one_slot(self, enabled: bool) -> None:
        registry = self.registry()
        registry.register_slot(self.slot(enabled=enabled))
        with pytest.raises(ValueError, match="'ids' is registered already"):
            registry.register_slot(self.slot())

    def test_a_slot_that_is_not_enabled_is_no_part_of_anything(self) -> None:
        registry = self.registry()
        slot = registry.register_slot(self.slot(enabled=False))
        assert slot.buffer is None
        assert not registry.has_slot("ids")
        assert registry.slot_names() == []
        assert registry.slice_for(1, 1) == {}
        with pytest.raises(RuntimeError, match="'ids' is not enabled"):
            registry.slot("ids")
        with pytest.raises(RuntimeError, match="'other' does not exist"):
            registry.slot("other")

    def test_a_bound_buffer_is_adopted_as_it_is(self) -> None:
        registry = CudaGraphBufferRegistry(CPU, MAX_BS, MAX_TOKENS, share_pool=True)
        buffer = torch.full((MAX_TOKENS, 2), 5)
        slot = registry.register_slot(self.slot(padding_policy=PaddingPolicy.FILL_SENTINEL, pad_value=9), bind=buffer)
        assert slot.buffer is buffer
        assert buffer.unique().tolist() == [5]
        assert not input_buffers._pool

    @pytest.mark.parametrize(
        "buffer",
        [
            torch.zeros(MAX_TOKENS, 3, dtype=torch.int64),
            torch.zeros(MAX_TOKENS, 2, dtype=torch.int32),
            torch.zeros(MAX_TOKENS, 2, dtype=torch.int64, device="meta"),
        ],
    )
    def test_a_bound_buffer_of_another_kind_is_refused(self, buffer: torch.Tensor) -> None:
        registry = self.registry()
        with pytest.raises(ValueError, match=r"'ids'.*cannot adopt"):
            registry.register_slot(self.slot(), bind=buffer)
        assert not registry.has_slot("ids")

    def test_views_are_cut_along_the_axis(self) -> None:
        registry = self.registry()
        registry.register_slot(self.slot())
        registry.register_slot(GraphSlot("wide", lambda bs, tokens: (3, tokens), torch.int64, "tokens", dim=1))
        registry.register_slot(GraphSlot("rows", lambda bs, tokens: (bs,), torch.int64, "bs"))
        registry.register_slot(GraphSlot("count", lambda bs, tokens: (1,), torch.int64, "none"))
        views = registry.slice_for(2, 5)
        assert {name: tuple(view.shape) for name, view in views.items()} == {
            "ids": (5, 2),
            "wide": (3, 5),
            "rows": (2,),
            "count": (1,),
        }
        assert {name: view.data_ptr() for name, view in views.items()} == registry.addresses()

    def test_what_does_not_fit_is_refused_before_anything_is_written(self) -> None:
        registry = self.registry()
        registry.register_slot(self.slot(padding_policy=PaddingPolicy.ZERO))
        buffer = registry.slot("ids").buffer
        assert buffer is not None
        buffer.fill_(8)
        fits = {"raw_bs": 1, "padded_bs": 1, "raw_num_tokens": 2, "padded_num_tokens": 4}
        for sizes in (
            fits | {"raw_bs": 2},
            fits | {"padded_bs": MAX_BS + 1},
            fits | {"raw_num_tokens": 5},
            fits | {"padded_num_tokens": MAX_TOKENS + 1},
        ):
            with pytest.raises(RuntimeError, match="does not fit"):
                registry.fill_from(SimpleNamespace(), **sizes)
        for wrong in (torch.zeros(3, 2), torch.zeros(2), torch.zeros(2, 1)):
            with pytest.raises(ValueError, match="slot 'ids' takes"):
                registry.fill_from(SimpleNamespace(ids=wrong), **fits)
        with pytest.raises(RuntimeError, match="does not fit"):
            registry.slice_for(MAX_BS + 1, 1)
        assert buffer.unique().tolist() == [8]

    def test_a_slot_that_comes_later_takes_part_in_sizes_that_were_filled_before(self) -> None:
        registry = self.registry()
        sizes = {"raw_bs": 1, "padded_bs": 2, "raw_num_tokens": 1, "padded_num_tokens": 2}
        registry.fill_from(SimpleNamespace(), **sizes)
        registry.register_slot(GraphSlot("rows", lambda bs, tokens: (bs,), torch.int64, "bs"))
        registry.fill_from(SimpleNamespace(rows=torch.tensor([7])), **sizes)
        assert registry.slice_for(1, 1)["rows"].tolist() == [7]

    def test_there_is_one_copy_per_pair_of_dtypes(self, mocker: MockerFixture) -> None:
        registry = self.registry()
        for name, dtype in (("a", torch.int64), ("b", torch.int64), ("c", torch.int32), ("d", torch.int32)):
            registry.register_slot(GraphSlot(name, lambda bs, tokens: (bs,), dtype, "bs"))
        batch = SimpleNamespace(
            a=torch.ones(2, dtype=torch.int64),
            b=torch.ones(2, dtype=torch.int64),
            c=torch.ones(2, dtype=torch.int64),
            d=torch.ones(2, dtype=torch.int32),
        )
        copy = mocker.spy(torch, "_foreach_copy_")
        registry.fill_from(batch, raw_bs=2, padded_bs=2, raw_num_tokens=2, padded_num_tokens=2)
        assert sorted(len(call.args[0]) for call in copy.call_args_list) == [1, 1, 2]

    def test_a_steady_fill_is_one_copy_with_the_padding_in_it(self, mocker: MockerFixture) -> None:
        registry = self.registry()
        for name, policy in (("a", PaddingPolicy.ZERO), ("b", PaddingPolicy.FILL_SENTINEL)):
            registry.register_slot(
                GraphSlot(name, lambda bs, tokens: (bs,), torch.int64, "bs", padding_policy=policy, pad_value=6)
            )
        sizes = {"raw_bs": 2, "padded_bs": 4, "raw_num_tokens": 2, "padded_num_tokens": 4}
        for _ in range(2):
            registry.fill_from(SimpleNamespace(a=torch.tensor([1, 2]), b=torch.tensor([3, 4])), **sizes)
        copy = mocker.spy(torch, "_foreach_copy_")
        zero = mocker.spy(torch, "_foreach_zero_")
        for buffer in registry.buffers().values():
            buffer.fill_(9)
        registry.fill_from(SimpleNamespace(a=torch.tensor([5, 6]), b=torch.tensor([7, 8])), **sizes)
        assert {name: buffer.tolist() for name, buffer in registry.buffers().items()} == {
            "a": [5, 6, 0, 0],
            "b": [7, 8, 6, 6],
        }
        assert copy.call_count == 1
        assert not zero.called

    @pytest.mark.parametrize(
        "batch",
        [
            SimpleNamespace(a=torch.tensor([5]), b=torch.tensor([7, 8])),  # torch would repeat the one
            SimpleNamespace(a=torch.tensor([5, 6]), b=torch.tensor([[7, 8]])),
            SimpleNamespace(a=torch.tensor([5, 6]), b=torch.tensor([7, 8, 9])),
        ],
        ids=["too short", "no vector", "too long"],
    )
    def test_a_steady_fill_still_refuses_what_does_not_fit(self, batch: SimpleNamespace) -> None:
        registry = self.registry()
        for name in ("a", "b"):
            registry.register_slot(GraphSlot(name, lambda bs, tokens: (bs,), torch.int64, "bs"))
        sizes = {"raw_bs": 2, "padded_bs": 4, "raw_num_tokens": 2, "padded_num_tokens": 4}
        for _ in range(2):
            registry.fill_from(SimpleNamespace(a=torch.tensor([1, 2]), b=torch.tensor([3, 4])), **sizes)
        with pytest.raises(ValueError, match=r"slot '[ab]' takes"):
            registry.fill_from(batch, **sizes)

    def test_a_steady_fill_of_one_row_still_wants_a_vector(self) -> None:
        registry = self.registry()
        registry.register_slot(GraphSlot("a", lambda bs, tokens: (bs,), torch.int64, "bs"))
        sizes = {"raw_bs": 1, "padded_bs": 1, "raw_num_tokens": 1, "padded_num_tokens": 1}
        for _ in range(3):
            registry.fill_from(SimpleNamespace(a=torch.tensor([5])), **sizes)
        with pytest.raises(ValueError, match="slot 'a' takes"):
            registry.fill_from(SimpleNamespace(a=torch.tensor(6)), **sizes)

    def test_the_number_of_kept_plans_is_bounded(self, mocker: MockerFixture) -> None:
        mocker.patch.object(registries, "MAX_PLANS", 3)
        registry = self.registry()
        registry.register_slot(self.slot())
        for tokens in range(1, MAX_TOKENS + 1):
            batch = SimpleNamespace(ids=torch.full((tokens, 2), tokens))
            registry.fill_from(batch, raw_bs=1, padded_bs=1, raw_num_tokens=tokens, padded_num_tokens=tokens)
            assert len(registry._plans) <= 3
            assert registry.slice_for(1, tokens)["ids"].unique().tolist() == [tokens]


def decode_batch(size: int) -> ForwardBatch:
    def values(first: int) -> torch.Tensor:
        return torch.arange(first, first + size)

    return ForwardBatch(
        forward_mode=ForwardMode.DECODE,
        input_ids=values(100),
        positions=values(200),
        out_cache_loc=values(300),
        req_pool_indices=values(1),
        seq_lens=values(50),
        seq_lens_cpu=list(range(50, 50 + size)),
        extend_lens_cpu=[1] * size,
        num_extend=0,
    )


def decode_registry(**options: Any) -> CudaGraphBufferRegistry:
    return build_decode_registry(**{"device": CPU, "max_bs": 8, "max_num_token": 8, "seq_len_fill_value": 1} | options)


def prefill_registry(**options: Any) -> CudaGraphBufferRegistry:
    return build_prefill_registry(**{"device": CPU, "max_bs": 1, "max_num_token": 8} | options)


class TestBuiltRegistries:
    def test_a_decode_has_its_slots_and_padding_is_harmless(self) -> None:
        registry = decode_registry()
        assert registry.slot_names() == ["input_ids", "positions", "out_cache_loc", "req_pool_indices", "seq_lens"]
        for buffer in registry.buffers().values():
            buffer.fill_(2**40)
        registry.fill_from(decode_batch(3), raw_bs=3, padded_bs=5, raw_num_tokens=3, padded_num_tokens=5)
        assert {name: view.tolist() for name, view in registry.slice_for(5, 5).items()} == {
            "input_ids": [100, 101, 102, 0, 0],
            "positions": [200, 201, 202, 0, 0],
            "out_cache_loc": [300, 301, 302, 0, 0],
            "req_pool_indices": [1, 2, 3, 0, 0],
            "seq_lens": [50, 51, 52, 1, 1],
        }
        assert registry.buffers()["positions"][5:].unique().tolist() == [2**40], "not beyond the recorded size"

    def test_every_index_of_every_registry_is_zero_in_padding(self) -> None:
        for registry in (decode_registry(is_multimodal=True), prefill_registry()):
            zeroed = {
                name for name in registry.slot_names() if registry.slot(name).padding_policy is PaddingPolicy.ZERO
            }
            assert zeroed == input_buffers.INDEX_SEMANTIC_BUFFERS & set(registry.slot_names())

    def test_a_prefill_has_the_slots_along_its_tokens(self) -> None:
        assert prefill_registry().slot_names() == ["input_ids", "positions", "out_cache_loc"]
        registry = prefill_registry(is_multimodal=True, hidden_size=6, embed_dtype=torch.bfloat16)
        assert {name: tuple(buffer.shape) for name, buffer in registry.buffers().items()} == {
            "input_ids": (8,),
            "positions": (8,),
            "out_cache_loc": (8,),
            "mrope_positions": (3, 8),
            "input_embeds": (8, 6),
        }
        embeds = registry.buffers()["input_embeds"].fill_(3)
        batch = SimpleNamespace(input_embeds=torch.ones(2, 6), mrope_positions=torch.ones(3, 2, dtype=torch.int64))
        registry.fill_from(batch, raw_bs=1, padded_bs=1, raw_num_tokens=2, padded_num_tokens=4)
        assert embeds[:, 0].tolist() == [3, 3, 0, 0, 3, 3, 3, 3], "the step writes it, padding is zero"
        assert registry.buffers()["mrope_positions"].sum().item() == 6

    def test_a_multimodal_prefill_has_to_say_what_embeddings_are_like(self) -> None:
        with pytest.raises(ValueError, match="hidden_size and embed_dtype"):
            prefill_registry(is_multimodal=True)

    @pytest.mark.parametrize("build", [decode_registry, prefill_registry])
    def test_without_a_source_the_registry_owns_what_it_allocates(self, build: Any) -> None:
        one, other = build(), build()
        assert not set(one.addresses().values()) & set(other.addresses().values())
        assert all(buffer.shape == (8,) for buffer in one.buffers().values())

    @pytest.mark.parametrize("build", [decode_registry, prefill_registry])
    @pytest.mark.parametrize("kind", [dict, SimpleNamespace])
    def test_the_buffers_of_a_source_are_adopted(self, build: Any, kind: Any) -> None:
        source = {name: torch.full((8,), 9) for name in (*input_buffers.INDEX_SEMANTIC_BUFFERS, "seq_lens")}
        registry = build(source=kind(**source), share_pool=True)
        assert all(registry.buffers()[name] is source[name] for name in registry.slot_names())
        assert all(buffer.unique().tolist() == [9] for buffer in source.values())

    def test_a_source_must_have_every_slot(self) -> None:
        source = {name: torch.zeros(8, dtype=torch.int64) for name in ("input_ids", "positions", "out_cache_loc")}
        assert prefill_registry(source=source).slot_names() == list(source)
        with pytest.raises(ValueError, match="'req_pool_indices'"):
            decode_registry(source=source)

    def test_registries_of_one_size_share_memory_if_they_want_to(self) -> None:
        first = decode_registry(share_pool=True)
        second = prefill_registry(share_pool=True)
        larger = decode_registry(share_pool=True, max_bs=9, max_num_token=9)
        own = prefill_registry()
        for name in second.slot_names():
            assert second.addresses()[name] == first.addresses()[name]
            assert larger.addresses()[name] != first.addresses()[name]
            assert own.addresses()[name] != first.addresses()[name]

    def test_what_another_registry_left_is_gone_before_capture(self) -> None:
        first = decode_registry(share_pool=True, seq_len_fill_value=3)
        second = decode_registry(share_pool=True, seq_len_fill_value=1)
        batch = decode_batch(8)
        second.fill_from(batch, raw_bs=8, padded_bs=8, raw_num_tokens=8, padded_num_tokens=8)
        first.reset_for_capture()
        views = {name: view.unique().tolist() for name, view in first.slice_for(8, 8).items()}
        assert views == {name: [3 if name == "seq_lens" else 0] for name in views}

    def test_num_token_non_padded_is_counted_against_the_recorded_size(self) -> None:
        registry = decode_registry(enable_num_token_non_padded=True)
        registry.fill_from(decode_batch(3), raw_bs=3, padded_bs=8, raw_num_tokens=3, padded_num_tokens=8)
        assert registry.buffers()["num_token_non_padded"].tolist() == [3]

    @pytest.mark.parametrize(("rank", "expected"), [(0, 4), (1, 1), (2, 0)])
    def test_num_token_non_padded_of_a_rank_is_what_it_has_of_the_recorded_size(self, rank: int, expected: int) -> None:
        # 5 of 12 rows in parts of 4. In parts of the batch (2 rows), rank 1 would take 2 of its rows for real ones.
        registry = decode_registry(
            max_bs=12,
            max_num_token=12,
            enable_num_token_non_padded=True,
            require_gathered_buffer=True,
            attn_tp_size=3,
            attn_tp_rank=rank,
        )
        registry.fill_from(decode_batch(5), raw_bs=5, padded_bs=12, raw_num_tokens=5, padded_num_tokens=12)
        assert registry.buffers()["num_token_non_padded"].tolist() == [expected]

    def test_rows_that_are_not_scattered_are_counted_whole(self) -> None:
        registry = decode_registry(enable_num_token_non_padded=True, attn_tp_size=4, attn_tp_rank=3)
        registry.fill_from(decode_batch(5), raw_bs=5, padded_bs=8, raw_num_tokens=5, padded_num_tokens=8)
        assert registry.buffers()["num_token_non_padded"].tolist() == [5]

    def test_the_parts_of_all_ranks_are_the_batch(self) -> None:
        for ranks in range(1, 5):
            for padded in range(ranks, 17, ranks):
                for tokens in range(padded + 1):
                    parts = [registries.local_num_token_non_padded(tokens, padded, ranks, r) for r in range(ranks)]
                    assert sum(parts) == tokens
                    assert parts == sorted(parts, reverse=True)

    @pytest.mark.parametrize("build", [decode_registry, prefill_registry])
    @pytest.mark.parametrize(("mlp_gather", "counts"), [(True, 4), (False, 1)])
    def test_the_gathered_counts_are_the_recorded_size(self, build: Any, mlp_gather: bool, counts: int) -> None:
        registry = build(require_gathered_buffer=True, require_mlp_tp_gather=mlp_gather, dp_size=4)
        batch = replace_tokens(decode_batch(1), global_num_tokens_gpu=torch.tensor([99]))
        registry.fill_from(batch, raw_bs=1, padded_bs=1, raw_num_tokens=1, padded_num_tokens=6)
        for name in ("global_num_tokens_gpu", "global_num_tokens_for_logprob_gpu"):
            assert registry.buffers()[name].tolist() == [6] * counts
            assert not build().has_slot(name)

    def test_what_a_stage_before_sends_goes_along_the_tokens(self) -> None:
        def source() -> dict[str, Any]:
            names = (*input_buffers.INDEX_SEMANTIC_BUFFERS, "seq_lens")
            return {name: torch.zeros(8, dtype=torch.int64) for name in names} | {
                "pp_proxy_tensors": {"hidden_states": torch.full((8, 2), 7.0)}
            }

        sent = {"hidden_states": torch.ones(2, 2)}
        sizes = {"raw_bs": 1, "padded_bs": 1, "raw_num_tokens": 2, "padded_num_tokens": 4}
        batch = SimpleNamespace()
        for build, padding in ((decode_registry, 7), (prefill_registry, 0)):
            registry = build(source=source())
            buffer = registry.buffers()["pp_proxy_tensors.hidden_states"]
            registry.fill_from(batch, **sizes, pp_proxy_tensors=sent)
            assert buffer[:, 0].tolist() == [1, 1, padding, padding, 7, 7, 7, 7]
            registry.fill_from(batch, **sizes, pp_proxy_tensors={"hidden_states": torch.full((2, 2), 5.0)})
            assert buffer[:2].unique().tolist() == [5]
            registry.fill_from(batch, **sizes)
            assert buffer[:2].unique().tolist() == [5], "nothing was sent"


def replace_tokens(batch: ForwardBatch, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**{field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)} | fields)


@dataclass(frozen=True)
class Template:
    input_ids: torch.Tensor
    seq_lens: torch.Tensor | None
    num_token_non_padded: torch.Tensor | None = None
    note: str = "kept"


class TestExtraction:
    def test_tensors_become_views_and_the_rest_stays(self) -> None:
        registry = decode_registry(enable_num_token_non_padded=True)
        template = Template(torch.tensor([1, 2]), torch.tensor([5, 6]))
        before = replace(template)
        batch = registry.extract_buffer(4, 4, template)
        views = registry.slice_for(4, 4)
        assert batch.input_ids.data_ptr() == views["input_ids"].data_ptr()
        assert batch.input_ids.shape == (4,)
        assert batch.seq_lens is not None
        assert batch.seq_lens.tolist() == [1, 1, 1, 1]
        assert batch.note == "kept"
        assert batch.num_token_non_padded is not None, "computed at each fill"
        assert template == before

    def test_what_a_batch_does_not_bring_is_not_exposed(self) -> None:
        batch = decode_registry().extract_buffer(4, 4, Template(torch.tensor([1]), None))
        assert batch.seq_lens is None
