"""A tree of token prefixes whose keys and values are in the pool (RadixAttention, Zheng et al. 2023, arXiv:2312.07104).

The tree owns slots. What it is given by `insert` belongs to it until `evict` gives it back; what `match_prefix` finds
may be read as long as the node is locked. It works in whole pages, knows no request and frees nothing itself.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

from runtime.core.errors import EngineError


class TreeNode:
    """A run of tokens after those of `parent`, and the slots they are in.

    Attributes:
        tokens: token ids, whole pages of them; empty for a root.
        slots: [len(tokens)] int64 slots.
        parent: None for a root, and for a node that has been evicted.
        children: by the tokens of their first page.
        lock_ref: how many locks there are on this node and on those below it.
        last_access: when it was matched or inserted last, in calls.
        in_heap: whether the cache has it among those that may go.
        namespace: of a root, what it is the root of.
    """

    __slots__ = ("children", "in_heap", "last_access", "lock_ref", "namespace", "parent", "slots", "tokens")

    def __init__(
        self,
        parent: TreeNode | None,
        tokens: array[int],
        slots: torch.Tensor,
        last_access: int,
        namespace: Hashable = None,
    ) -> None:
        self.parent = parent
        self.tokens = tokens
        self.slots = slots
        self.children: dict[bytes, TreeNode] = {}
        self.lock_ref = 0
        self.last_access = last_access
        self.in_heap = False
        self.namespace = namespace


@dataclass(frozen=True)
class PrefixMatch:
    """What the tree has of a sequence.

    Attributes:
        slots: [n] int64 slots of its first n tokens; n is a multiple of the page size and may be 0.
        node: where the prefix ends; lock it before anything else is done with the tree.
    """

    slots: torch.Tensor
    node: TreeNode


@dataclass(frozen=True)
class Insertion:
    """What became of an inserted prefix of n tokens.

    Attributes:
        slots: [n] int64 slots the tree has for it now.
        duplicates: those of the given slots that the tree did not take, because it has other slots for the same tokens;
            they still belong to the caller.
        node: where the prefix ends.
    """

    slots: torch.Tensor
    duplicates: torch.Tensor
    node: TreeNode


class RadixCache:
    """The tree, with one root for each namespace: sequences of different namespaces share nothing.

    Args:
        page_size: slots per page; prefixes are shared in whole pages.
        device: where slots are kept.
    """

    def __init__(self, page_size: int, device: torch.device) -> None:
        self.page_size = page_size
        self.device = device
        self._none = torch.empty(0, dtype=torch.int64, device=device)
        self._clock = itertools.count()
        self._ties = itertools.count()
        self.clear()

    def clear(self) -> None:
        """Forget everything, locked or not. The slots are nobody's then: the caller clears their allocator too."""
        self._roots: dict[Hashable, TreeNode] = {}
        self._evictable = 0
        self._protected = 0
        # Leaves without a lock, least recently used first. A node is in it at most once, under the time at which it was
        # put there: one that was used since or is no such leaf any more is noticed when it comes up.
        self._heap: list[tuple[int, int, TreeNode]] = []

    def evictable_size(self) -> int:
        """Slots that `evict` can give back."""
        return self._evictable

    def protected_size(self) -> int:
        """Slots of prefixes that are locked."""
        return self._protected

    def match_prefix(self, key_tokens: Sequence[int], namespace: Hashable = None) -> PrefixMatch:
        """The longest prefix of `key_tokens` that is in the tree. A node that the prefix ends inside is split there."""
        tokens = self._aligned(key_tokens)
        now = next(self._clock)
        root = self._roots.get(namespace)
        if root is None:
            return PrefixMatch(self._none, TreeNode(None, array("q"), self._none, now))
        node, _, slots = self._descend(root, tokens, now)
        return PrefixMatch(torch.cat(slots) if slots else self._none, node)

    def insert(self, key_tokens: Sequence[int], slots: torch.Tensor, namespace: Hashable = None) -> Insertion:
        """Put a prefix into the tree; what does not fill a page stays with the caller.

        Args:
            key_tokens: token ids.
            slots: [len(key_tokens)] integer slots that hold their keys and values.
            namespace: what keeps sequences apart that must not share (an adapter, a tenant).

        Raises:
            ValueError: there are not as many slots as tokens.
        """
        if slots.numel() != len(key_tokens):
            raise ValueError(f"{len(key_tokens)} tokens cannot be inserted with {slots.numel()} slots")
        tokens = self._aligned(key_tokens)
        given = slots[: len(tokens)].to(torch.int64)
        now = next(self._clock)
        root = self._roots.get(namespace)
        if root is None:
            root = TreeNode(None, array("q"), self._none, now, namespace)
            if len(tokens):
                self._roots[namespace] = root
        node, present, present_slots = self._descend(root, tokens, now)
        if present < len(tokens):
            leaf = TreeNode(node, tokens[present:], given[present:].clone(), now)
            node.children[self._key(leaf.tokens, 0)] = leaf
            self._evictable += len(leaf.tokens)
            self._offer(leaf)
            present_slots.append(leaf.slots)
            node = leaf
        in_tree = torch.cat(present_slots) if present_slots else self._none
        return Insertion(in_tree, given[given != in_tree] if present else self._none, node)

    def inc_lock_ref(self, node: TreeNode) -> None:
        """Keep the prefix that ends at `node` from being evicted."""
        while node.parent is not None:
            if node.lock_ref == 0:
                self._evictable -= len(node.tokens)
                self._protected += len(node.tokens)
            node.lock_ref += 1
            node = node.parent

    def dec_lock_ref(self, node: TreeNode) -> None:
        """Take one lock back.

        Raises:
            EngineError: there is none; nothing is changed then.
        """
        if node.tokens and (node.lock_ref == 0 or node.parent is None):
            raise EngineError("a prefix that is not locked cannot be unlocked: somebody unlocked it twice")
        while node.parent is not None:
            node.lock_ref -= 1
            if node.lock_ref == 0:
                self._evictable += len(node.tokens)
                self._protected -= len(node.tokens)
                self._offer(node)
            node = node.parent

    def evict(self, num_tokens: int) -> torch.Tensor:
        """Drop what was used least recently and is not locked, until `num_tokens` slots are free, in whole pages.

        A leaf goes from its end, and only as much of it as is needed. Returns the slots, which belong to the caller
        now: fewer than were asked for if no more can go.
        """
        freed: list[torch.Tensor] = []
        wanted = -(-num_tokens // self.page_size) * self.page_size
        while wanted > 0 and self._heap:
            entered, _, node = heapq.heappop(self._heap)
            node.in_heap = False
            if node.lock_ref or node.children or node.parent is None:
                continue
            if node.last_access > entered:
                self._offer(node)
                continue
            taken = min(wanted, len(node.tokens))
            kept = len(node.tokens) - taken
            freed.append(node.slots[kept:])
            self._evictable -= taken
            wanted -= taken
            if kept:
                del node.tokens[kept:]
                node.slots = node.slots[:kept]
                self._offer(node)
            else:
                self._remove(node)
        return torch.cat(freed) if freed else self._none

    def all_slots(self) -> torch.Tensor:
        """[N] int64: every slot that the tree owns."""
        slots = [node.slots for node in self._nodes()]
        return torch.cat(slots) if slots else self._none

    def check_integrity(self) -> None:
        """Check the tree against what it says of itself: sizes, locks, order of pages, and that no slot is in it twice.

        Raises:
            EngineError: it is damaged.
        """
        sizes = [0, 0]
        in_heap = {id(node) for _, _, node in self._heap}
        for node in self._nodes():
            length = len(node.tokens)
            assert node.parent is not None, "a node below a root"
            if not length or length % self.page_size or node.slots.numel() != length:
                raise EngineError(f"the prefix tree is damaged: {length} tokens in {node.slots.numel()} slots")
            if node.parent.children.get(self._key(node.tokens, 0)) is not node:
                raise EngineError("the prefix tree is damaged: a node is not where its tokens belong")
            if node.lock_ref < sum(child.lock_ref for child in node.children.values()):
                raise EngineError("the prefix tree is damaged: a prefix has fewer locks than what follows it")
            if not node.lock_ref and not node.children and id(node) not in in_heap:
                raise EngineError("the prefix tree is damaged: a leaf without a lock cannot be evicted")
            sizes[node.lock_ref > 0] += length
        if sizes != [self._evictable, self._protected]:
            raise EngineError(
                f"the prefix tree is damaged: {sizes[0]} evictable and {sizes[1]} protected slots, but it counts"
                f" {self._evictable} and {self._protected}"
            )
        slots = self.all_slots()
        if torch.unique(slots).numel() != slots.numel():
            raise EngineError("the prefix tree is damaged: a slot is in it twice")

    def _aligned(self, key_tokens: Sequence[int]) -> array[int]:
        tokens = key_tokens if isinstance(key_tokens, array) else array("q", key_tokens)
        return tokens[: len(tokens) // self.page_size * self.page_size]

    def _key(self, tokens: array[int], start: int) -> bytes:
        return tokens[start : start + self.page_size].tobytes()

    def _descend(self, node: TreeNode, tokens: array[int], now: int) -> tuple[TreeNode, int, list[torch.Tensor]]:
        """Follow `tokens` as far as the tree goes: the last node, how many tokens that is, and their slots."""
        done = 0
        slots: list[torch.Tensor] = []
        node.last_access = now
        while done < len(tokens):
            child = node.children.get(self._key(tokens, done))
            if child is None:
                break
            common = self._common(child.tokens, tokens, done)
            node = child if common == len(child.tokens) else self._split(child, common)
            node.last_access = now
            slots.append(node.slots)
            done += common
        return node, done, slots

    def _common(self, ours: array[int], tokens: array[int], start: int) -> int:
        """How many tokens `ours` and `tokens[start:]` begin with alike, in whole pages; at least one page."""
        length = min(len(ours), len(tokens) - start)
        if ours[:length] == tokens[start : start + length]:
            return length
        alike, differ = 1, length // self.page_size  # in pages; the first was the key of the child
        while differ - alike > 1:
            middle = (alike + differ) // 2
            low, high = alike * self.page_size, middle * self.page_size
            if ours[low:high] == tokens[start + low : start + high]:
                alike = middle
            else:
                differ = middle
        return alike * self.page_size

    def _split(self, node: TreeNode, length: int) -> TreeNode:
        """Put the first `length` tokens of a node into a node above it, and return that one."""
        parent = node.parent
        assert parent is not None, "a root has no tokens to split"
        upper = TreeNode(parent, node.tokens[:length], node.slots[:length], node.last_access)
        upper.lock_ref = node.lock_ref
        parent.children[self._key(upper.tokens, 0)] = upper
        node.tokens, node.slots, node.parent = node.tokens[length:], node.slots[length:], upper
        upper.children[self._key(node.tokens, 0)] = node
        return upper

    def _offer(self, node: TreeNode) -> None:
        """Put a node where `evict` finds it, if it can go."""
        if not node.in_heap and not node.lock_ref and not node.children and node.parent is not None:
            heapq.heappush(self._heap, (node.last_access, next(self._ties), node))
            node.in_heap = True

    def _remove(self, node: TreeNode) -> None:
        parent = node.parent
        assert parent is not None, "a root is never evicted"
        del parent.children[self._key(node.tokens, 0)]
        node.parent = None
        if parent.parent is not None:
            self._offer(parent)
        elif not parent.children:
            del self._roots[parent.namespace]

    def _nodes(self) -> Iterator[TreeNode]:
        """Every node below the roots."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())
