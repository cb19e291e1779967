"""The pool of input buffers: who shares memory with whom."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from pytest_mock import MockerFixture

from runtime.model_executor import input_buffers
from runtime.platforms.cpu import CpuSRTPlatform
from runtime.platforms.interface import PlatformCapabilities


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    input_buffers.forget_shared_buffers()
    yield
    input_buffers.forget_shared_buffers()


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class TestOneBuffer:
    def test_the_same_key_shares_memory(self) -> None:
        first, second = torch.zeros(4), torch.ones(4)
        assert input_buffers.share_input_buffer("a", first) is first
        shared = input_buffers.share_input_buffer("a", second)
        assert storage(shared) == storage(first)
        assert shared.tolist() == [0, 0, 0, 0]

    def test_another_shape_of_the_same_size_is_another_view_of_it(self) -> None:
        first = input_buffers.share_input_buffer("a", torch.arange(6))
        turned = input_buffers.share_input_buffer("a", torch.zeros(3, 2, dtype=torch.int64).t())
        assert storage(turned) == storage(first)
        assert (turned.shape, turned.stride()) == ((2, 3), (1, 2))
        assert turned.tolist() == [[0, 2, 4], [1, 3, 5]]

    @pytest.mark.parametrize(
        ("name", "other"),
        [
            ("b", torch.zeros(4)),
            ("a", torch.zeros(5)),
            ("a", torch.zeros(3)),
            ("a", torch.zeros(4, dtype=torch.int32)),
            ("a", torch.zeros(4, device="meta")),
        ],
    )
    def test_another_name_size_dtype_or_device_does_not(self, name: str, other: torch.Tensor) -> None:
        input_buffers.share_input_buffer("a", torch.zeros(4))
        assert input_buffers.share_input_buffer(name, other) is other

    def test_the_order_of_registration_does_not_matter(self) -> None:
        sizes = (2, 3, 3, 5, 2)
        for order in itertools.permutations(range(len(sizes))):
            input_buffers.forget_shared_buffers()
            shared = {}
            for index in order:
                shared[index] = input_buffers.share_input_buffer("a", torch.zeros(sizes[index]))
            for one, other in itertools.combinations(range(len(sizes)), 2):
                same = storage(shared[one]) == storage(shared[other])
                assert same is (sizes[one] == sizes[other])

    def test_memory_that_is_not_the_tensors_alone_is_refused(self) -> None:
        # The last has an extent of nine elements, but two of them are at one place and some places are nobody's.
        gaps_and_overlaps = torch.zeros(9).as_strided((3, 3), (2, 2))
        for tensor in (torch.zeros(8)[::2], torch.zeros(1).expand(4), torch.eye(3).to_sparse(), gaps_and_overlaps):
            with pytest.raises(ValueError, match=r"'a'.*densely"):
                input_buffers.share_input_buffer("a", tensor)
        assert not input_buffers._pool

    def test_what_lies_densely_is_found_out_of_every_shape_and_stride(self) -> None:
        for shape in itertools.product((1, 2, 3), repeat=3):
            for strides in itertools.product(range(8), repeat=3):
                tensor = torch.empty(64).as_strided(shape, strides)
                places = sorted(
                    sum(index * stride for index, stride in zip(indices, strides, strict=True))
                    for indices in itertools.product(*map(range, shape))
                )
                assert input_buffers._is_dense(tensor) is (places == list(range(tensor.numel()))), (shape, strides)

    def test_memory_of_another_buffer_is_refused(self) -> None:
        whole = torch.zeros(8)
        input_buffers.share_input_buffer("a", whole)
        for name, part in (("b", whole), ("a", whole[:4]), ("b", whole[7:]), ("b", whole[:3].view(torch.int32))):
            with pytest.raises(
                ValueError, match=rf"'{name}' \(\d elements\) .* of input buffer 'a' \(8 elements\) already"
            ):
                input_buffers.share_input_buffer(name, part)
        assert input_buffers.share_input_buffer("a", whole) is whole
        assert len(input_buffers._pool) == 1

    def test_parts_of_one_tensor_that_lie_apart_are_two_buffers(self) -> None:
        whole = torch.zeros(8)
        for name, part in (("a", whole[:4]), ("b", whole[4:])):
            assert input_buffers.share_input_buffer(name, part) is part

    def test_a_part_of_a_larger_tensor_is_shared_where_it_lies(self) -> None:
        whole = torch.arange(8)
        input_buffers.share_input_buffer("a", whole[2:6])
        assert input_buffers.share_input_buffer("a", torch.zeros(4, dtype=torch.int64)).tolist() == [2, 3, 4, 5]

    def test_an_empty_tensor_is_fine(self) -> None:
        empty = torch.zeros(0, 3)
        assert input_buffers.share_input_buffer("a", empty) is empty


@dataclass
class Inner:
    weights: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    weights: torch.Tensor


@dataclass(slots=True)
class Slotted:
    ids: torch.Tensor


class WithSlots:
    __slots__ = ("ids", "unset")

    def __init__(self) -> None:
        self.ids = torch.zeros(3)


@dataclass
class Buffers:
    ids: torch.Tensor = field(default_factory=lambda: torch.zeros(4))
    nothing: torch.Tensor | None = None
    count: int = 3
    proxies: dict[str, torch.Tensor] = field(default_factory=lambda: {"hidden": torch.zeros(2, 3)})
    inner: Inner = field(default_factory=lambda: Inner(torch.zeros(5)))
    deep: dict[str, list[Inner]] = field(default_factory=lambda: {"all": [Inner(torch.zeros(7))]})


class TestObjects:
    def test_everything_in_an_object_is_shared_with_the_next(self) -> None:
        first, second = Buffers(), Buffers()
        before = [first.ids, first.proxies["hidden"], first.inner.weights, first.deep["all"][0].weights]
        for obj in (first, second):
            input_buffers.share_input_buffers_in(obj)
        after = [second.ids, second.proxies["hidden"], second.inner.weights, second.deep["all"][0].weights]
        assert [storage(tensor) for tensor in after] == [storage(tensor) for tensor in before]
        assert (second.nothing, second.count) == (None, 3)
        assert {key.name for key in input_buffers._pool} == {
            "ids",
            "proxies.hidden",
            "inner.weights",
            "deep.all.0.weights",
        }

    def test_the_kind_of_object_does_not_matter(self) -> None:
        first = {"ids": torch.zeros(3)}
        others = [SimpleNamespace(ids=torch.zeros(3)), Slotted(torch.zeros(3)), WithSlots()]
        nested = SimpleNamespace(ids=torch.zeros(9), space=SimpleNamespace(ids=torch.zeros(3)))
        for obj in (first, *others, nested):
            input_buffers.share_input_buffers_in(obj)
        assert {storage(obj.ids) for obj in others} == {storage(first["ids"])}
        assert storage(nested.space.ids) != storage(first["ids"]), "it is space.ids, not ids"

    def test_the_same_name_at_another_depth_is_another_buffer(self) -> None:
        obj = SimpleNamespace(weights=torch.zeros(5), inner=Inner(torch.zeros(5)))
        input_buffers.share_input_buffers_in(obj)
        assert storage(obj.weights) != storage(obj.inner.weights)

    def test_objects_that_refer_to_each_other_end(self) -> None:
        obj = SimpleNamespace(ids=torch.zeros(3), table={})
        obj.table["self"] = obj.table
        obj.table["owner"] = obj
        input_buffers.share_input_buffers_in(obj)
        assert len(input_buffers._pool) == 1

    def test_a_tensor_that_is_not_dense_is_refused_before_anything_is_replaced(self) -> None:
        input_buffers.share_input_buffer("ids", torch.zeros(3))
        obj = SimpleNamespace(ids=torch.zeros(3), gaps=torch.zeros(8)[::2])
        before = obj.ids
        with pytest.raises(ValueError, match="'gaps'"):
            input_buffers.share_input_buffers_in(obj)
        assert obj.ids is before

    @pytest.mark.parametrize(
        ("obj", "places", "name"),
        [
            ({1: torch.zeros(4), "1": torch.zeros(4)}, "dict[1] and dict['1']", "1"),
            ({"a": {"b": torch.zeros(4)}, "a.b": torch.zeros(4)}, "dict['a']['b'] and dict['a.b']", "a.b"),
            (
                SimpleNamespace(a=Inner(torch.zeros(4)), **{"a.weights": torch.zeros(4)}),
                "SimpleNamespace.a.weights and getattr(SimpleNamespace, 'a.weights')",
                "a.weights",
            ),
        ],
    )
    def test_two_places_that_lead_to_one_name_are_refused(self, obj: object, places: str, name: str) -> None:
        with pytest.raises(ValueError, match="cannot be shared") as caught:
            input_buffers.share_input_buffers_in(obj)
        assert str(caught.value) == (
            f"{places} cannot be shared: both are named {name!r}, and buffers of one name are one memory; rename one of"
            " them"
        )
        assert not input_buffers._pool

    @pytest.mark.parametrize("part", [slice(0, 8), slice(0, 4), slice(7, 8)])
    def test_a_tensor_and_a_part_of_it_are_refused_and_stay_what_they_are(self, part: slice) -> None:
        x = torch.zeros(8)
        first = SimpleNamespace(x=x, parts=[x[part]])
        with pytest.raises(
            ValueError, match=r"^SimpleNamespace\.x and SimpleNamespace\.parts\[0\] .* memory in common"
        ):
            input_buffers.share_input_buffers_in(first)
        assert storage(first.parts[0]) == storage(first.x)
        assert not input_buffers._pool

    def test_one_tensor_at_two_places_does_not_make_the_next_objects_two_one(self) -> None:
        first = SimpleNamespace(x=torch.zeros(4))
        first.y = first.x
        with pytest.raises(ValueError, match="memory in common"):
            input_buffers.share_input_buffers_in(first)
        second = SimpleNamespace(x=torch.zeros(4), y=torch.zeros(4))
        input_buffers.share_input_buffers_in(second)
        assert storage(second.x) != storage(second.y)

    def test_memory_that_another_object_has_under_another_name_is_refused_before_anything_is_replaced(self) -> None:
        first = SimpleNamespace(x=torch.zeros(4))
        input_buffers.share_input_buffers_in(first)
        second = SimpleNamespace(x=torch.zeros(4), y=first.x)
        before = second.x
        with pytest.raises(ValueError, match=r"'y' .* of input buffer 'x'"):
            input_buffers.share_input_buffers_in(second)
        assert second.x is before
        assert len(input_buffers._pool) == 1

    def test_sharing_twice_changes_nothing(self) -> None:
        objects = [Buffers(), Buffers()]
        for obj in objects * 2:
            input_buffers.share_input_buffers_in(obj)
        assert storage(objects[0].ids) == storage(objects[1].ids)
        assert len(input_buffers._pool) == 4

    @pytest.mark.parametrize("fixed", [Frozen(torch.zeros(5)), (torch.zeros(5),)])
    def test_what_cannot_be_replaced_is_refused_before_anything_is(self, fixed: object) -> None:
        input_buffers.share_input_buffer("ids", torch.zeros(3))
        obj = SimpleNamespace(ids=torch.zeros(3), fixed=fixed)
        before = obj.ids
        with pytest.raises(TypeError, match=r"'fixed\.(weights|0)'"):
            input_buffers.share_input_buffers_in(obj)
        assert obj.ids is before

    def test_the_platform_decides(self, mocker: MockerFixture) -> None:
        mocker.patch.object(
            CpuSRTPlatform,
            "capabilities",
            new_callable=mocker.PropertyMock,
            return_value=PlatformCapabilities(share_input_buffers=False),
        )
        first, second = Buffers(), Buffers()
        for obj in (first, second):
            input_buffers.share_input_buffers_in(obj)
        assert storage(first.ids) != storage(second.ids)
        assert not input_buffers._pool


def test_indices_are_zeroed_and_nothing_else() -> None:
    names = [*sorted(input_buffers.INDEX_SEMANTIC_BUFFERS), "seq_lens", "input_embeds"]
    buffers = {name: torch.full((3,), 7) for name in names}
    input_buffers.zero_index_buffers(buffers)
    assert {name for name, buffer in buffers.items() if not buffer.any()} == input_buffers.INDEX_SEMANTIC_BUFFERS
