"""What a hook of each type is to a type checker: for the signatures of ``plugin_hook`` and ``HookRegistry.register``.

Nothing here is needed while a program runs. A checker sees what is wrong with a hook by itself: an AFTER hook that
takes no result, an AROUND hook that takes no callable first, a BEFORE hook that returns neither ``None`` nor a pair of
a tuple and a dictionary. Whether a typed hook fits its target is known when it is applied. A class that can be called
as an AFTER or AROUND hook looks like a function to a checker; registering refuses it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

from hookery.hooks import HookType

if TYPE_CHECKING:
    from hookery.hooks import HookSource

Engine = Literal["auto", "generated", "wrapt", "inplace"]
OnError = Literal["raise", "warn", "disable"]

Before: TypeAlias = Literal[HookType.BEFORE]
After: TypeAlias = Literal[HookType.AFTER]
Around: TypeAlias = Literal[HookType.AROUND]
Replace: TypeAlias = Literal[HookType.REPLACE]

_Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]] | None


class BeforeHook(Protocol):
    """Returns ``None``, or ``(args, kwargs)`` to use instead; a coroutine function likewise."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Arguments | Awaitable[_Arguments]: ...


class AfterHook(Protocol):
    """Takes the result first; whatever it returns is a result."""

    def __call__(self, result: Any, /, *args: Any, **kwargs: Any) -> Any: ...


class AroundHook(Protocol):
    """Takes what it is around first."""

    def __call__(self, original_fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any: ...


class HookOfAnyType(Protocol):
    """What may be called as a hook of whichever type: for a type that is not known before the program runs."""

    def __call__(
        self, first: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> _Arguments | Awaitable[_Arguments]: ...


BeforeF = TypeVar("BeforeF", bound=BeforeHook)
AfterF = TypeVar("AfterF", bound=AfterHook)
AroundF = TypeVar("AroundF", bound=AroundHook)
ReplaceF = TypeVar("ReplaceF", bound=Callable[..., Any])
AnyTypeF = TypeVar("AnyTypeF", bound=HookOfAnyType)


class Options(TypedDict, total=False):
    """What every hook can be registered with; the program needs the result of this one, so its errors are raised."""

    priority: int
    engine: Engine
    on_error: Literal["raise"]
    reason: str | None
    versions: str | None
    count: bool | None
    subclasses: bool


class ObserverOptions(TypedDict, total=False):
    """What a BEFORE or AFTER hook can be registered with: the program can go on without it."""

    priority: int
    engine: Engine
    on_error: OnError
    reason: str | None
    versions: str | None
    count: bool | None
    subclasses: bool


class OptionsAndSource(Options, total=False):
    source: HookSource | None


class ObserverOptionsAndSource(ObserverOptions, total=False):
    source: HookSource | None
