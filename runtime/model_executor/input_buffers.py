"""One memory for the input buffers of several graph runners.

Runners of one process fill their input buffers just before each replay and run one after the other, so that buffers of
the same name and size may be the same memory. The pool lives as long as the process: recorded steps hold its addresses.
Runners that overlap would need pools of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence
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
        ValueError: there are gaps between its elements, or several of them are one (an expanded tensor).
    """
    _check_dense(name, buffer)
    first = _pool.setdefault(BufferKey(name, buffer.numel(), buffer.dtype, buffer.device), buffer)
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
        ValueError: as `share_input_buffer`; nothing is then replaced.
    """
    if not platforms.current_platform.capabilities.share_input_buffers:
        return
    found = list(_tensors_in(obj, "", set()))
    for place in found:
        place.check()
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


def _check_dense(name: str, buffer: torch.Tensor) -> None:
    extent = sum((size - 1) * stride for size, stride in zip(buffer.shape, buffer.stride(), strict=True)) + 1
    if buffer.numel() and extent != buffer.numel():
        raise ValueError(
            f"input buffer {name!r} ({tuple(buffer.shape)}, strides {buffer.stride()}) cannot be shared: its elements"
            " do not lie densely; give a tensor of its own memory"
        )


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor was found: an attribute or an item of `owner`."""

    name: str
    owner: Any
    key: Any
    tensor: torch.Tensor

    def check(self) -> None:
        _check_dense(self.name, self.tensor)
        parameters = getattr(self.owner, "__dataclass_params__", None)
        container = isinstance(self.owner, (Mapping, list, tuple))
        fixed = (parameters is not None and parameters.frozen) or (
            container and not isinstance(self.owner, (MutableMapping, MutableSequence))
        )
        if fixed:
            raise TypeError(
                f"input buffer {self.name!r} cannot be shared: {type(self.owner).__qualname__} does not let it be"
                " replaced; keep the tensor in something that can change"
            )

    def put(self, tensor: torch.Tensor) -> None:
        if isinstance(self.owner, (MutableMapping, MutableSequence)):
            self.owner[self.key] = tensor
        else:
            setattr(self.owner, self.key, tensor)


def _tensors_in(obj: Any, prefix: str, seen: set[int]) -> Iterator[_Place]:
    if id(obj) in seen:
        return
    seen.add(id(obj))
    for key, value in _members(obj):
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            yield _Place(name, obj, key, value)
        elif isinstance(value, (Mapping, list, tuple)) or _is_record(value):
            yield from _tensors_in(value, f"{name}.", seen)


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
