"""The allocator of pages against lists of pages."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.core.errors import EngineError
from runtime.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator

CPU = torch.device("cpu")
PAGES = 12


def ints(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


class Sequences(RuleBasedStateMachine):
    """Sequences that grow, shrink to nothing and are joined; the reference is a list of slots per sequence."""

    @initialize(page_size=st.sampled_from([1, 2, 3, 16, 64]))
    def make(self, page_size: int) -> None:
        self.page_size = page_size
        self.allocator = PagedTokenToKVPoolAllocator(PAGES * page_size, CPU, page_size)
        self.free_pages = set(range(1, PAGES + 1))
        self.sequences: list[list[int]] = []

    def pages_of(self, length: int) -> int:
        return math.ceil(length / self.page_size)

    def last_loc(self, rows: list[list[int]]) -> torch.Tensor:
        return ints([row[-1] if row else -7 for row in rows])

    def took(self, row: list[int], slots: list[int]) -> None:
        """Check each slot that a sequence was given against what a page is, and note it."""
        for slot in slots:
            if len(row) % self.page_size:
                assert slot == row[-1] + 1, "the last page is filled first"
            else:
                assert slot % self.page_size == 0, "a page is filled from its start"
                self.free_pages.remove(slot // self.page_size)  # a KeyError if somebody has it
            row.append(slot)

    @rule(pages=st.integers(0, PAGES + 2))
    def alloc(self, pages: int) -> None:
        got = self.allocator.alloc(pages * self.page_size)
        if pages > len(self.free_pages):
            assert got is None
            return
        assert got is not None
        row: list[int] = []
        self.took(row, got.tolist())
        if row:
            self.sequences.append(row)

    @rule(data=st.data(), new=st.integers(0, 2))
    def alloc_extend(self, data: st.DataObject, new: int) -> None:
        rows = data.draw(st.lists(st.sampled_from(self.sequences), unique_by=id)) if self.sequences else []
        fresh: list[list[int]] = [[] for _ in range(new)]
        rows = data.draw(st.permutations([*rows, *fresh]))
        if not rows:
            return
        grow = [data.draw(st.integers(0, 3 * self.page_size + 1)) for _ in rows]
        prefix = [len(row) for row in rows]
        lengths = [length + more for length, more in zip(prefix, grow, strict=True)]
        got = self.allocator.alloc_extend(ints(prefix), ints(lengths), self.last_loc(rows), sum(grow))
        need = sum(self.pages_of(b) - self.pages_of(a) for a, b in zip(prefix, lengths, strict=True))
        if need > len(self.free_pages):
            assert got is None
            return
        assert got is not None
        assert got.dtype is torch.int64
        for row, slots in zip(rows, got.split(grow), strict=True):
            self.took(row, slots.tolist())
        self.sequences += [row for row in fresh if row]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def alloc_decode(self, data: st.DataObject) -> None:
        rows = data.draw(st.lists(st.sampled_from(self.sequences), unique_by=id, min_size=1))
        got = self.allocator.alloc_decode(ints([len(row) + 1 for row in rows]), self.last_loc(rows))
        if sum(len(row) % self.page_size == 0 for row in rows) > len(self.free_pages):
            assert got is None
            return
        assert got is not None
        for row, slot in zip(rows, got.tolist(), strict=True):
            self.took(row, [slot])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), grouped=st.booleans())
    def free(self, data: st.DataObject, grouped: bool) -> None:
        rows = data.draw(st.lists(st.sampled_from(self.sequences), unique_by=id, min_size=1))
        if grouped:
            before = self.allocator.available_size()
            self.allocator.free_group_begin()
            for row in rows:
                self.allocator.free(ints(row))
            assert self.allocator.available_size() == before
            self.allocator.free_group_end()
        else:
            self.allocator.free(ints(data.draw(st.permutations([slot for row in rows for slot in row]))))
        gone = {id(row) for row in rows}
        self.free_pages |= {slot // self.page_size for row in rows for slot in row}
        self.sequences = [row for row in self.sequences if id(row) not in gone]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free_the_tail(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.sequences))
        kept = data.draw(st.integers(0, self.pages_of(len(row)) - 1)) * self.page_size
        self.allocator.free(ints(row[kept:]))
        self.free_pages |= {slot // self.page_size for slot in row[kept:]}
        del row[kept:]
        self.sequences = [row for row in self.sequences if row]

    @rule(data=st.data(), grouped=st.booleans())
    def a_wrong_free_changes_nothing(self, data: st.DataObject, grouped: bool) -> None:
        held = [slot for row in self.sequences for slot in row]
        free = [page * self.page_size for page in self.free_pages]
        last = (PAGES + 1) * self.page_size
        wrong = data.draw(st.sampled_from([*free, 0, self.page_size - 1, -1, last]))
        if grouped:
            self.allocator.free_group_begin()
            self.allocator.free(ints(held))
            self.allocator.free(ints([wrong]))
            with pytest.raises(EngineError):
                self.allocator.free_group_end()
        else:
            with pytest.raises(EngineError):
                self.allocator.free(ints([*held, wrong]))
        if held:
            with pytest.raises(EngineError, match="twice"):
                self.allocator.free(ints([held[0], held[0]]))

    @rule()
    def clear(self) -> None:
        self.allocator.clear()
        self.free_pages, self.sequences = set(range(1, PAGES + 1)), []

    @invariant()
    def agrees_with_the_lists(self) -> None:
        held = [slot for row in self.sequences for slot in row]
        assert self.allocator.available_size() == len(self.free_pages) * self.page_size
        self.allocator.check_integrity(ints(held))
        if held:
            with pytest.raises(EngineError, match="neither free nor held"):
                self.allocator.check_integrity(
                    ints([s for s in held if s // self.page_size != held[0] // self.page_size])
                )


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_page_is_held_by_one_owner_and_integrity_says_otherwise() -> None:
    allocator = PagedTokenToKVPoolAllocator(16, CPU, 4)
    got = allocator.alloc(8)
    assert got is not None
    assert got.tolist() == list(range(4, 12))
    allocator.check_integrity(ints([4, 9]))  # a page is held if a slot of it is
    with pytest.raises(EngineError, match=r"1 neither free nor held \[2\]"):
        allocator.check_integrity(ints([4]))
    with pytest.raises(EngineError, match=r"1 owned twice \[3\]"):
        allocator.check_integrity(ints([4, 9, 12]))
    with pytest.raises(EngineError, match="the same slot is held twice"):
        allocator.check_integrity(ints([4, 9, 9]))


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="10 slots are not whole pages of 4"):
        PagedTokenToKVPoolAllocator(10, CPU, 4)
    with pytest.raises(ValueError, match="not pages of 4"):
        TokenToKVPoolAllocator(8, CPU, 4)
    allocator = PagedTokenToKVPoolAllocator(8, CPU, 4)
    with pytest.raises(ValueError, match="cannot allocate 3 slots: whole pages have 4"):
        allocator.alloc(3)
    with pytest.raises(ValueError, match="cannot grow"):
        allocator.alloc_extend(ints([3]), ints([2]), ints([0]), -1)
    with pytest.raises(ValueError, match="cannot grow"):
        allocator.alloc_extend(ints([0]), ints([2]), ints([0]), 3)
    assert allocator.available_size() == 8


def test_groups_of_frees_begin_before_they_end_and_once() -> None:
    allocator = TokenToKVPoolAllocator(8, CPU)
    with pytest.raises(EngineError, match="free_group_begin comes first"):
        allocator.free_group_end()
    got = allocator.alloc(3)
    assert got is not None
    allocator.free_group_begin()
    with pytest.raises(EngineError, match="open already"):
        allocator.free_group_begin()
    allocator.free(got[:1])
    with pytest.raises(EngineError, match="while a group"):
        allocator.check_integrity(got)
    allocator.free(got[1:])
    assert allocator.available_size() == 5
    allocator.free_group_end()
    assert allocator.available_size() == 8
    allocator.free_group_begin()
    allocator.free_group_end()
    allocator.check_integrity(ints([]))
