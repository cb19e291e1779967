"""How a chain is put in place: the object that stands where the original stood.

A callable is stood in for by one ``wrapt.FunctionWrapper``, whatever the number of hooks, because it keeps descriptors,
signatures and the attributes of the wrapped object whole. wrapt is imported when the first hook is put in place.

Source: G. Dumpleton, wrapt documentation, "Wrappers, decorators and monkey patching".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from hookery.targets import Target

ENGINE_WRAPT = "wrapt"
ENGINE_CLASS = "class"  # a replaced class: the replacement itself stands at the name


class Chain(Protocol):
    """What a stand-in calls: the owner swaps ``call`` when the hooks change; the stand-in stays the same object."""

    @property
    def call(self) -> Callable[..., Any]: ...


@functools.cache
def _stand_in_class() -> type:
    import wrapt

    class StandIn(wrapt.FunctionWrapper):  # type: ignore[type-arg,misc,unused-ignore]
        """A hooked callable. It pickles and copies as the name it stands at, as the original did."""

        # Said outright: of a subclass wrapt's C code asks for it, and the failing look-up costs as much as the call.
        __bound_function_wrapper__ = wrapt.BoundFunctionWrapper

        def __reduce_ex__(self, protocol: Any) -> str:
            return str(self.__qualname__)

        def __copy__(self) -> Any:
            return self

        def __deepcopy__(self, memo: Any) -> Any:
            return self

    return StandIn


def prepare() -> None:
    """Import what stand-ins are made of. Call it without any lock: an import may wait for another thread's."""
    _stand_in_class()


def make_stand_in(target: Target, chain: Chain) -> Any:
    """Return the object to be set at ``target``; calling it calls ``chain.call`` with the arguments that hooks see.

    wrapt hands over what a method is bound to (``self`` or ``cls``) apart from the arguments, or ``None`` where the
    caller passed everything itself; hooks see it as the first argument.
    """
    if target.binds:

        def wrapper(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if instance is None:
                return chain.call(*args, **kwargs)
            return chain.call(instance, *args, **kwargs)

    else:

        def wrapper(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return chain.call(*args, **kwargs)

    return _stand_in_class()(target.raw, wrapper)
