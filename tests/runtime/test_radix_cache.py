"""The prefix tree against a dictionary of prefixes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.core.errors import EngineError
from runtime.mem_cache.radix_cache import RadixCache, TreeNode

CPU = torch.device("cpu")
# Few tokens, so that sequences meet.
sequences = st.lists(st.integers(0, 2), max_size=14)
namespaces = st.sampled_from([None, "a"])


class Prefixes(RuleBasedStateMachine):
    """Random inserts, matches, locks and evictions; the reference knows each cached page by what leads to it."""

    @initialize(page_size=st.sampled_from([1, 2, 4]))
    def make(self, page_size: int) -> None:
        self.page_size = page_size
        self.tree = RadixCache(page_size, CPU)
        self.slots: dict[tuple[object, tuple[int, ...]], list[int]] = {}  # a prefix of whole pages -> its last page
        self.locks: list[tuple[TreeNode, object, tuple[int, ...]]] = []
        self.used: dict[tuple[object, tuple[int, ...]], int] = {}
        self.next_slot = self.time = 1
        self.free: list[int] = []

    def pages(self, tokens: list[int]) -> list[tuple[int, ...]]:
        return [tuple(tokens[:end]) for end in range(self.page_size, len(tokens) + 1, self.page_size)]

    def cached(self, namespace: object, tokens: list[int]) -> list[tuple[int, ...]]:
        return [prefix for prefix in self.pages(tokens) if (namespace, prefix) in self.slots]

    def locked(self) -> set[tuple[object, tuple[int, ...]]]:
        return {(namespace, prefix) for _, namespace, tokens in self.locks for prefix in self.pages(list(tokens))}

    def new_slots(self, count: int) -> list[int]:
        slots = list(range(self.next_slot, self.next_slot + count))
        self.next_slot += count
        return slots

    @rule(tokens=sequences, namespace=namespaces)
    def insert(self, tokens: list[int], namespace: object) -> None:
        present = self.cached(namespace, tokens)
        # As a request does: it has the tree's own slots for what it found, and new ones for the rest.
        found = [slot for prefix in present[: len(present) // 2] for slot in self.slots[namespace, prefix]]
        given = found + self.new_slots(len(tokens) - len(found))
        inserted = self.tree.insert(tokens, torch.tensor(given, dtype=torch.int32), namespace)
        duplicates = given[len(found) : len(present) * self.page_size]
        assert inserted.duplicates.tolist() == duplicates
        for prefix in self.pages(tokens):
            self.slots.setdefault((namespace, prefix), given[len(prefix) - self.page_size : len(prefix)])
            self.used[namespace, prefix] = self.time
        assert inserted.slots.tolist() == [s for p in self.pages(tokens) for s in self.slots[namespace, p]]
        self.time += 1

    @rule(tokens=sequences, namespace=namespaces, lock=st.booleans())
    def match(self, tokens: list[int], namespace: object, lock: bool) -> None:
        match = self.tree.match_prefix(tokens, namespace)
        present = self.cached(namespace, tokens)
        assert match.slots.tolist() == [slot for prefix in present for slot in self.slots[namespace, prefix]]
        for prefix in present:
            self.used[namespace, prefix] = self.time
        self.time += 1
        if lock and present:
            self.tree.inc_lock_ref(match.node)
            self.locks.append((match.node, namespace, present[-1]))

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        node, _, _ = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        self.tree.dec_lock_ref(node)

    @rule(count=st.integers(0, 12))
    def evict(self, count: int) -> None:
        evictable = len(self.slots.keys() - self.locked()) * self.page_size
        evicted = self.tree.evict(count).tolist()
        rounded = -(-count // self.page_size) * self.page_size
        assert len(evicted) == min(rounded, evictable)
        assert len(set(evicted)) == len(evicted)
        gone = {key for key, slots in self.slots.items() if slots[0] in evicted}
        assert sorted(slot for key in gone for slot in self.slots[key]) == sorted(evicted)
        assert not gone & self.locked(), "what is locked stays"
        left = self.slots.keys() - gone
        for namespace, prefix in left:
            assert all((namespace, shorter) in left for shorter in self.pages(list(prefix))), (
                "no page without those before"
            )
        # Least recently used first: what is left and could have gone has been used no earlier than what has gone.
        leaves = {
            key
            for key in left - self.locked()
            if not any(n == key[0] and len(p) > len(key[1]) and p[: len(key[1])] == key[1] for n, p in left)
        }
        if gone and leaves:
            assert max(self.used[key] for key in gone) <= min(self.used[key] for key in leaves)
        for key in gone:
            del self.slots[key]

    @rule()
    def unlocking_what_is_not_locked_is_refused(self) -> None:
        for node in self.tree._nodes():
            if not node.lock_ref:
                with pytest.raises(EngineError, match="not locked"):
                    self.tree.dec_lock_ref(node)
                return

    @invariant()
    def agrees_with_the_dictionary(self) -> None:
        self.tree.check_integrity()
        protected = len(self.locked()) * self.page_size
        assert self.tree.protected_size() == protected
        assert self.tree.evictable_size() == len(self.slots) * self.page_size - protected
        assert sorted(self.tree.all_slots().tolist()) == sorted(s for page in self.slots.values() for s in page)


TestPrefixes = Prefixes.TestCase
TestPrefixes.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def slots(*ids: int) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def test_a_node_is_split_where_sequences_part() -> None:
    tree = RadixCache(1, CPU)
    tree.insert([1, 2, 3, 4], slots(10, 11, 12, 13))
    inserted = tree.insert([1, 2, 9], slots(20, 21, 22))
    assert inserted.duplicates.tolist() == [20, 21]
    assert inserted.slots.tolist() == [10, 11, 22]
    assert tree.match_prefix([1, 2, 3, 4, 5]).slots.tolist() == [10, 11, 12, 13]
    assert tree.match_prefix([1, 2, 9, 9]).slots.tolist() == [10, 11, 22]
    assert tree.match_prefix([2]).slots.tolist() == []


def test_a_lock_survives_a_split_and_covers_what_comes_before() -> None:
    tree = RadixCache(1, CPU)
    tree.insert([1, 2, 3, 4], slots(10, 11, 12, 13))
    node = tree.match_prefix([1, 2, 3]).node
    tree.inc_lock_ref(node)
    assert (tree.protected_size(), tree.evictable_size()) == (3, 1)
    tree.match_prefix([1])
    assert (tree.protected_size(), tree.evictable_size()) == (3, 1)
    assert tree.evict(10).tolist() == [13]
    tree.dec_lock_ref(node)
    assert sorted(tree.evict(10).tolist()) == [10, 11, 12]
    with pytest.raises(EngineError, match="unlocked it twice"):
        tree.dec_lock_ref(node)


def test_a_leaf_goes_from_its_end_and_only_as_much_as_is_needed() -> None:
    tree = RadixCache(4, CPU)
    tree.insert(list(range(20)), torch.arange(4, 24))
    assert tree.evict(1).tolist() == [20, 21, 22, 23]
    assert tree.evict(5).tolist() == [12, 13, 14, 15, 16, 17, 18, 19]
    assert tree.match_prefix(list(range(20))).slots.tolist() == list(range(4, 12))


def test_what_was_used_last_goes_last() -> None:
    tree = RadixCache(1, CPU)
    tree.insert([1, 1], slots(1, 2))
    tree.insert([2, 2], slots(3, 4))
    tree.match_prefix([1, 1])
    assert sorted(tree.evict(2).tolist()) == [3, 4]


def test_namespaces_share_nothing_and_leave_nothing_behind() -> None:
    tree = RadixCache(1, CPU)
    tree.insert([1, 2], slots(1, 2), "adapter")
    assert tree.match_prefix([1, 2]).slots.numel() == 0
    assert tree.match_prefix([1, 2], "adapter").slots.tolist() == [1, 2]
    tree.evict(2)
    assert tree._roots == {}


def test_only_whole_pages_are_kept_and_found() -> None:
    tree = RadixCache(4, CPU)
    assert tree.insert([1, 2, 3], slots(4, 5, 6)).slots.numel() == 0
    assert tree.evictable_size() == 0
    tree.insert([1, 2, 3, 4, 5, 6], slots(4, 5, 6, 7, 8, 9))
    assert tree.match_prefix([1, 2, 3, 4, 5, 6, 7, 8]).slots.tolist() == [4, 5, 6, 7]
    assert tree.match_prefix([1, 2, 3]).slots.numel() == 0


def test_as_many_slots_as_tokens() -> None:
    with pytest.raises(ValueError, match="2 tokens cannot be inserted with 1 slots"):
        RadixCache(1, CPU).insert([1, 2], slots(1))


@pytest.mark.parametrize("damage", ["size", "lock", "slots", "twice", "place", "heap"])
def test_damage_is_found(damage: str) -> None:
    tree = RadixCache(1, CPU)
    tree.insert([1, 2], slots(1, 2))
    node = tree.insert([1, 3], slots(1, 4)).node
    tree.check_integrity()
    if damage == "size":
        tree._evictable += 1
    elif damage == "lock":
        node.lock_ref = 1
    elif damage == "slots":
        node.slots = slots(4, 5)
    elif damage == "twice":
        node.slots = slots(1)
    elif damage == "place":
        node.tokens[0] = 8
    else:
        tree._heap.clear()
    with pytest.raises(EngineError, match="the prefix tree is damaged"):
        tree.check_integrity()


@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(1, 5)
)
def test_the_common_prefix_of_two_sequences_is_found_in_whole_pages(
    inserted: list[int], asked: list[int], page_size: int
) -> None:
    tree = RadixCache(page_size, CPU)
    tree.insert(inserted, torch.arange(len(inserted)))
    pages = 0
    while asked[: (pages + 1) * page_size] == inserted[: (pages + 1) * page_size] and (pages + 1) * page_size <= min(
        len(asked), len(inserted)
    ):
        pages += 1
    assert tree.match_prefix(asked).slots.tolist() == list(range(pages * page_size))
