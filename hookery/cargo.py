"""The stand-ins of wrapt as cargo: pickled, copied and sent to other processes, they arrive hooked.

They are pickled by the name they stand at, whatever they wrap. cloudpickle takes functions apart that belong to the
main module (or to a module that was registered with it for that), because the receiver cannot import them: there the
hooks and the original travel as code.
"""

from __future__ import annotations

import copy
import functools
import pkgutil
import sys
import types
from collections.abc import Callable
from typing import Any, Protocol

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


class Calls(Protocol):
    """What is behind a wrapper."""

    call: Callable[..., Any]


@functools.cache
def wrapper_class() -> type:
    """The class of the wrappers, made when wrapt is first needed: ``(wrapped, wrapper, place, behind)``, where
    ``place`` is the target's name in colon form."""
    import wrapt

    class BoundWrapper(wrapt.BoundFunctionWrapper):  # type: ignore[type-arg,misc,unused-ignore]
        """What a hooked member gives of an instance or a class."""

        __slots__ = ()
        # Else torch.compile takes it for the function that it says it is, and leaves the hooks out without a word.
        _torchdynamo_disable = True

        @property  # type: ignore[misc,unused-ignore]
        def __class__(self) -> Any:
            return _class_of(self)

        def __reduce_ex__(self, protocol: Any) -> Reduced:
            bound_to = _bound_to(self)
            if bound_to is not None:
                return (getattr, (bound_to, _attribute(self)))
            parent = self._self_parent
            return _reduced(parent._self_place, parent._self_behind, self.__wrapped__, sys._getframe(1))

        def __copy__(self) -> Any:
            return self

        def __deepcopy__(self, memo: Any) -> Any:
            bound_to = _bound_to(self)
            if bound_to is None or isinstance(bound_to, type):
                return self
            return getattr(copy.deepcopy(bound_to, memo), _attribute(self))

    class Wrapper(wrapt.FunctionWrapper):  # type: ignore[type-arg,misc,unused-ignore]
        """A hooked callable."""

        # Said outright: of a subclass wrapt's C code asks for it, and the failing look-up costs as much as the call.
        __bound_function_wrapper__ = BoundWrapper
        _torchdynamo_disable = True

        def __init__(self, wrapped: Any, wrapper: Any, place: str, behind: Calls) -> None:
            super().__init__(wrapped, wrapper)
            self._self_place, self._self_behind = place, behind

        @property  # type: ignore[misc,unused-ignore]
        def __class__(self) -> Any:
            return _class_of(self)

        def __reduce_ex__(self, protocol: Any) -> Reduced:
            place = _place_of_function(self, self._self_place)
            return _reduced(place, self._self_behind, self.__wrapped__, sys._getframe(1))

        def __copy__(self) -> Any:
            return self

        def __deepcopy__(self, memo: Any) -> Any:
            return self

    return Wrapper


def _class_of(wrapper: Any) -> Any:
    """The class that a wrapper claims: that of what it wraps. Not to cloudpickle, which takes apart what claims to be a
    function, and would find the original without its hooks."""
    if _is_cloudpickle(sys._getframe(2)):
        return type(wrapper)
    return wrapper.__wrapped__.__class__


def _is_cloudpickle(frame: types.FrameType) -> bool:
    return "cloudpickle" in frame.f_globals.get("__name__", "")  # other packages bring copies of it


def _place_of_function(wrapper: Any, place: str) -> str:
    """Where a wrapper itself is found: from CPython 3.13 on, what a classmethod gives is a bound method of it."""
    try:
        found = pkgutil.resolve_name(place)
    except (AttributeError, ImportError):  # nothing stands there any more; unpickling will say so
        return place
    return f"{place}.__func__" if type(found) is types.MethodType and found.__func__ is wrapper else place


def _reduced(place: str, behind: Calls, wrapped: Any, frame: types.FrameType) -> Reduced:
    """How to pickle what stands at a place. To unpickle it takes no hookery, but for hooks that travel as code."""
    module = place.partition(":")[0]
    if not _is_cloudpickle(frame) or not _travels_as_code(module, frame):
        return (pkgutil.resolve_name, (place.replace("__mp_main__:", "__main__:"),))
    inner = wrapped.__func__ if type(wrapped) in (staticmethod, classmethod) else wrapped
    # A copy: what stands here goes on without the attributes that the copy is given.
    call = behind.call
    if type(call) is not types.FunctionType:
        return (functools.partial, (call,))
    function = types.FunctionType(call.__code__, call.__globals__, call.__name__, call.__defaults__, call.__closure__)
    function.__kwdefaults__ = call.__kwdefaults__
    functools.update_wrapper(function, inner)
    function.__module__ = "__main__"  # so that it goes as code, and not as a name that leads back here
    return (_arrive, (function, inner.__module__, type(wrapped) if inner is not wrapped else None))


def _arrive(function: types.FunctionType, module: str, descriptor: Callable[..., Any] | None) -> Any:
    function.__module__ = module
    return function if descriptor is None else descriptor(function)


def _travels_as_code(module: str, frame: types.FrameType) -> bool:
    if module in ("__main__", "__mp_main__"):
        return True
    registered = frame.f_globals.get("_is_registered_pickle_by_value")
    return registered is not None and module in sys.modules and bool(registered(sys.modules[module]))


def _bound_to(wrapper: Any) -> Any:
    return getattr(wrapper.__wrapped__, "__self__", None)


def _attribute(wrapper: Any) -> str:
    return str(wrapper._self_parent._self_place.rpartition(":")[2].rpartition(".")[2])
