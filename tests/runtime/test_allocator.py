"""The slot allocator against a set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.core.errors import EngineError
from runtime.mem_cache.allocator import TokenToKVPoolAllocator

CPU = torch.device("cpu")
SIZE = 24


def slots(*ids: int) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64)


class AllocatorMachine(RuleBasedStateMachine):
    """Random allocations and frees, compared with a set of free slots."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = TokenToKVPoolAllocator(SIZE, CPU)
        self.free = set(range(1, SIZE + 1))
        self.held: list[int] = []

    @rule(count=st.integers(0, SIZE + 2))
    def alloc(self, count: int) -> None:
        got = self.allocator.alloc(count)
        if count > len(self.free):
            assert got is None
            return
        assert got is not None
        ids = got.tolist()
        assert len(set(ids)) == count
        assert set(ids) <= self.free
        self.free -= set(ids)
        self.held += ids

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(self.held), min_size=1, unique=True))
        dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
        self.allocator.free(torch.tensor(ids, dtype=dtype))
        self.free |= set(ids)
        self.held = [i for i in self.held if i not in set(ids)]

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def freeing_what_is_not_held_changes_nothing(self, data: st.DataObject) -> None:
        wrong = data.draw(st.sampled_from([*sorted(self.free), 0, -1, SIZE + 1]))
        ids = [*self.held, wrong]
        with pytest.raises(EngineError):
            self.allocator.free(torch.tensor(ids))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def freeing_twice_in_one_call_changes_nothing(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.held))
        with pytest.raises(EngineError):
            self.allocator.free(slots(slot, slot))

    @rule()
    def clear(self) -> None:
        self.allocator.clear()
        self.free, self.held = set(range(1, SIZE + 1)), []

    @invariant()
    def agrees_with_the_set(self) -> None:
        assert self.allocator.available_size() == len(self.free)
        self.allocator.check_integrity(torch.tensor(self.held, dtype=torch.int64))


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_fresh_slots_come_in_order_and_never_the_sink() -> None:
    allocator = TokenToKVPoolAllocator(4, CPU)
    got = allocator.alloc(4)
    assert got is not None
    assert got.tolist() == [1, 2, 3, 4]
    assert allocator.alloc(1) is None


def test_slots_handed_out_do_not_change_when_others_are_freed() -> None:
    allocator = TokenToKVPoolAllocator(6, CPU)
    first, second = allocator.alloc(3), allocator.alloc(3)
    assert first is not None
    assert second is not None
    allocator.free(second)
    allocator.free(first[1:])
    assert first.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("ids", "message"),
    [((0,), "slot 0"), ((9,), "slot 9"), ((-3,), "slot -3"), ((1, 5), r"\[5\].*free already"), ((2, 2), "comes twice")],
)
def test_a_wrong_free_says_what_is_wrong(ids: tuple[int, ...], message: str) -> None:
    allocator = TokenToKVPoolAllocator(8, CPU)
    allocator.alloc(4)
    with pytest.raises(EngineError, match=message):
        allocator.free(slots(*ids))
    assert allocator.available_size() == 4


def test_more_frees_than_allocations_are_refused() -> None:
    allocator = TokenToKVPoolAllocator(8, CPU)
    allocator.alloc(1)
    with pytest.raises(EngineError, match="only 1 are taken"):
        allocator.free(slots(1, 2))


def test_integrity_names_leaks_and_shared_slots() -> None:
    allocator = TokenToKVPoolAllocator(8, CPU)
    allocator.alloc(4)
    allocator.check_integrity(slots(1, 2, 3, 4))
    with pytest.raises(EngineError, match=r"1 neither free nor held \[3\]"):
        allocator.check_integrity(slots(1, 2, 4))
    with pytest.raises(EngineError, match=r"1 owned twice \[6\]"):
        allocator.check_integrity(slots(1, 2, 3, 4, 6))
    with pytest.raises(EngineError, match="outside"):
        allocator.check_integrity(slots(1, 2, 3, 4, 0))


def test_a_negative_allocation_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        TokenToKVPoolAllocator(8, CPU).alloc(-1)
