"""What hooks are put around, and what kind of callable that is."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import inspect

Call = Callable[..., Any]
_NOT_READ: Final = object()


class Kind(enum.Enum):
    """What calling the target makes."""

    FUNCTION = "function"
    COROUTINE = "coroutine"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"

    __hash__ = object.__hash__  # each is one object; an enumeration's own is written in Python, and slow


class Callee:
    """What the hooks are put around.

    ``original`` takes the arguments that hooks see; ``like`` is the function that says what kind of callable the target
    is; ``plain`` is the function whose parameters the fused one may take as its own, where the target is one.
    """

    def __init__(
        self,
        *,
        original: Call,
        like: Any,
        plain: types.FunctionType | None,
        read_signature: Callable[[], inspect.Signature | None],
        first_is_bound: bool,
        name: str,
    ) -> None:
        self.original = original
        self.kind = kind_of(like)
        self.plain = plain
        self.first_is_bound = first_is_bound
        self.name = name
        self._read_signature = read_signature
        self._signature: Any = _NOT_READ

    def signature(self) -> inspect.Signature | None:
        """Of what hooks see, or ``None`` if it cannot be told; it is read once, when somebody asks."""
        if self._signature is _NOT_READ:
            self._signature = self._read_signature()
        found: inspect.Signature | None = self._signature
        return found


_COROUTINE, _GENERATOR, _ASYNC_GENERATOR = 0x80, 0x20, 0x200  # as inspect.CO_COROUTINE and so on
_KINDS = {_COROUTINE: Kind.COROUTINE, _GENERATOR: Kind.GENERATOR, _ASYNC_GENERATOR: Kind.ASYNC_GENERATOR}


def kind_of(function: Any) -> Kind:
    """What calling ``function`` makes; for an object with ``__call__`` that method decides."""
    if type(function) is types.FunctionType and not function.__dict__:  # in which it may be marked as something else
        return _KINDS.get(function.__code__.co_flags & (_COROUTINE | _GENERATOR | _ASYNC_GENERATOR), Kind.FUNCTION)
    import inspect

    if is_coroutine_function(function):
        return Kind.COROUTINE
    if inspect.isgeneratorfunction(function):
        return Kind.GENERATOR
    if inspect.isasyncgenfunction(function):
        return Kind.ASYNC_GENERATOR
    return Kind.FUNCTION


def is_coroutine_function(function: Any) -> bool:
    if type(function) is types.FunctionType and not function.__dict__:
        return bool(function.__code__.co_flags & _COROUTINE)
    import inspect

    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(vars(type(function)).get("__call__"))
