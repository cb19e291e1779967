"""One memory for the input buffers of several graph runners.

Runners of one process fill their input buffers just before each replay and run one after the other, so that buffers of
the same name and size may be the same memory. The pool lives as long as the process: recorded steps hold its addresses.
Runners that overlap would need pools of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from runtime import platforms

INDEX_SEMANTIC_BUFFERS = frozenset({"input_ids", "positions", "mrope_positions", "out_cache_loc", "req_pool_indices"})
"""Buffers whose values are used as indices. What a former use left in them may be out of bounds for the next, so that
they are zeroed before a step is recorded: row 0 of every table is there for padding."""


class BufferKey(NamedTuple):
    """What has to be equal for two buffers to share memory."""

    name: str
    numel: int
    dtype: torch.dtype
    device: torch.device


_pool: dict[BufferKey, torch.Tensor] = {}


def share_input_buffer(name: str, buffer: torch.Tensor) -> torch.Tensor:
    """The process's memory for such a buffer, in the shape of `buffer`; `buffer` itself if it is the first.

    Equal name, number of elements, dtype and device share memory; any other size never does, so that the order in which
    runners come does not matter. What is in the memory stays: whoever shares it fills it before each use.

    Args:
        name: what the buffer is for; buffers of other names are other memory.
        buffer: a tensor whose elements lie densely.

    Raises:
        ValueError: there are gaps between its elements, or several of them are one (an expanded tensor); or its memory
            is another buffer's already, of another name or size.
    """
    first = _pool.setdefault(_checked_key(name, buffer), buffer)
    return buffer if first is buffer else first.as_strided(buffer.shape, buffer.stride())


def share_input_buffers_in(obj: Any) -> None:
    """Put every tensor that `obj` has into the process's memory for its name, in place.

    Looks at attributes, and into dictionaries, lists, dataclasses and namespaces among them: the tensor `a["b"]` of an
    attribute `a` is named `a.b`. Everything else is left alone. Nothing happens on a platform that does not declare
    `share_input_buffers` in its capabilities.

    Args:
        obj: any object with attributes (a dataclass, a namespace, a runner), a dictionary or a list.

    Raises:
        TypeError: a tensor cannot be replaced where it is (a frozen dataclass, a tuple); nothing is then replaced.
        ValueError: as `share_input_buffer`; two tensors have one name, or memory in common, such as a tensor and a part
            of it; nothing is then replaced.
    """
    if not platforms.current_platform.capabilities.share_input_buffers:
        return
    found = list(_tensors_in(obj, "", type(obj).__qualname__, set()))
    for place in found:
        place.check()
    _check_apart(found)
    for place in found:
        place.put(share_input_buffer(place.name, place.tensor))


def zero_index_buffers(buffers: Mapping[str, torch.Tensor]) -> None:
    """Zero those of `buffers`, by name, whose values are indices."""
    for name, buffer in buffers.items():
        if name in INDEX_SEMANTIC_BUFFERS:
            buffer.zero_()


def forget_shared_buffers() -> None:
    """Make the pool empty: whoever comes next gets memory of his own. Those who share some go on doing so."""
    _pool.clear()


def _checked_key(name: str, buffer: torch.Tensor) -> BufferKey:
    """What the buffer is shared by, if it can be."""
    if not _is_dense(buffer):
        raise ValueError(
            f"input buffer {name!r} ({tuple(buffer.shape)}, strides {buffer.stride()}) cannot be shared: its elements"
            " do not lie densely; give a tensor of its own memory"
        )
    key = BufferKey(name, buffer.numel(), buffer.dtype, buffer.device)
    for other, memory in _pool.items():
        if other != key and _overlap(memory, buffer):
            raise ValueError(
                f"input buffer {name!r} ({key.numel} elements) cannot be shared: its memory is that of input buffer"
                f" {other.name!r} ({other.numel} elements) already; give a tensor of its own memory"
            )
    return key


def _is_dense(buffer: torch.Tensor) -> bool:
    """Whether the elements lie side by side, in any order of the dimensions, each at a place of its own."""
    if not buffer.numel():
        return True
    # Nothing is ever a step further in a dimension of one.
    steps = sorted((stride, size) for size, stride in zip(buffer.shape, buffer.stride(), strict=True) if size > 1)
    within = 1
    for stride, size in steps:
        if stride != within:
            return False
        within *= size
    return buffer.layout is torch.strided


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two dense tensors have memory in common. Where a device gives no addresses there is none to compare."""
    if one.device != other.device or not one.numel() or not other.numel():
        return False
    if one is other:
        return True
    start, other_start = one.data_ptr(), other.data_ptr()
    return 0 not in (start, other_start) and start < other_start + other.nbytes and other_start < start + one.nbytes


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor was found: an attribute or an item of `owner`, which is written as `where`."""

    name: str
    where: str
    owner: Any
    key: Any
    tensor: torch.Tensor

    def check(self) -> None:
        _checked_key(self.name, self.tensor)
        try:
            self.put(self.tensor)  # what is there already: it changes nothing, and shows that it could be changed
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"input buffer {self.name!r} cannot be shared: {type(self.owner).__qualname__} does not let it be"
                " replaced; keep the tensor in something that can change"
            ) from error

    def put(self, tensor: torch.Tensor) -> None:
        if _has_items(self.owner):
            self.owner[self.key] = tensor
        else:
            setattr(self.owner, self.key, tensor)


def _check_apart(places: Sequence[_Place]) -> None:
    """Raise if two places would become one memory, or had a memory in common and would not have it any longer."""
    for one, other in itertools.combinations(places, 2):
        if one.name == other.name:
            raise ValueError(
                f"{one.where} and {other.where} cannot be shared: both are named {one.name!r}, and buffers of one name"
                " are one memory; rename one of them"
            )
        if _overlap(one.tensor, other.tensor):
            raise ValueError(
                f"{one.where} and {other.where} cannot be shared: they have memory in common, and buffers of two names"
                " are given two; make one of them of the other after sharing, or give it memory of its own"
            )


def _tensors_in(obj: Any, prefix: str, where: str, seen: set[int]) -> Iterator[_Place]:
    if id(obj) in seen:
        return
    seen.add(id(obj))
    for key, value in _members(obj):
        name, there = f"{prefix}{key}", _written(where, obj, key)
        if isinstance(value, torch.Tensor):
            yield _Place(name, there, obj, key, value)
        elif _has_items(value) or _is_record(value):
            yield from _tensors_in(value, f"{name}.", there, seen)


def _written(where: str, obj: Any, key: Any) -> str:
    if _has_items(obj):
        return f"{where}[{key!r}]"
    return f"{where}.{key}" if key.isidentifier() else f"getattr({where}, {key!r})"


def _has_items(obj: Any) -> bool:
    return isinstance(obj, (Mapping, list, tuple))


def _is_record(value: Any) -> bool:
    """Whether a value is there to hold fields, as opposed to objects that an attribute merely refers to."""
    return not isinstance(value, type) and (dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace))


def _members(obj: Any) -> list[tuple[Any, Any]]:
    if isinstance(obj, Mapping):
        return list(obj.items())
    if isinstance(obj, (list, tuple)):
        return list(enumerate(obj))
    if dataclasses.is_dataclass(obj):
        fields = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if hasattr(obj, field.name)}
        return list((fields | getattr(obj, "__dict__", {})).items())
    slots = [name for cls in type(obj).__mro__ for name in _slots(cls)]
    named = {name: getattr(obj, name) for name in slots if hasattr(obj, name)}
    return list((named | getattr(obj, "__dict__", {})).items())


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if name not in ("__dict__", "__weakref__")]
