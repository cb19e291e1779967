"""How a chain is put in place: what stands where the original stood.

============  ===================================================================================================
generated     a plain Python function, behind the same descriptor as the original. It stays a real function: it
              pickles, copies, compiles, introspects as the original did.
wrapt         one ``wrapt.FunctionWrapper``: keeps C functions, callable objects and other descriptors whole; it
              pickles and copies by name (:mod:`hookery.cargo`). Imported when first needed. ``torch.compile`` calls
              most of them outside its graphs, and refuses with ``fullgraph=True``; it takes a ``functools.partial``
              apart, so compiled code calls past its hooks.
inplace       the original itself, with other code: whoever holds it is reached.
class         a replaced class: the replacement itself stands at the name.
============  ===================================================================================================

While a target is hooked the stand-in is one object; what it does is swapped in one store, so that a call under way ends
as it began. Source: G. Dumpleton, wrapt documentation, "Wrappers, decorators and monkey patching".
"""

from __future__ import annotations

import builtins
import copy
import functools
import itertools
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from hookery import locking, signatures
from hookery.callees import Callee, Kind
from hookery.cargo import wrapper_class
from hookery.chain import fuse
from hookery.fused import Fused
from hookery.hooks import HookError
from hookery.targets import Target, TargetKind

ENGINE_GENERATED = "generated"
ENGINE_WRAPT = "wrapt"
ENGINE_IN_PLACE = "inplace"
ENGINE_CLASS = "class"
ENGINE_AUTO: Final = "auto"
ENGINES = (ENGINE_AUTO, ENGINE_GENERATED, ENGINE_WRAPT, ENGINE_IN_PLACE)
ENGINE_VARIABLE = "HOOKERY_ENGINE"


def choose(target: Target, asked: str) -> tuple[str, str]:
    """The engine for a target, and why it is that one.

    Raises:
        HookError: the variable ``HOOKERY_ENGINE`` names no engine.
        TypeError: the engine that was asked for cannot serve the target.
    """
    return _choose(target, asked, _wished_for_all())


def _wished_for_all() -> str:
    wished = os.environ.get(ENGINE_VARIABLE, "") or ENGINE_AUTO
    if wished not in (ENGINE_AUTO, ENGINE_GENERATED, ENGINE_WRAPT):
        raise HookError(f"{ENGINE_VARIABLE} is {wished!r}; it can be 'wrapt', or 'auto' as if it were not set")
    return wished


def _choose(target: Target, asked: str, standing: str) -> tuple[str, str]:
    if target.kind is TargetKind.CLASS:
        if asked != ENGINE_AUTO:
            raise TypeError(f"{target.name} is a class: its replacement stands at the name, engine {asked!r} does not")
        return ENGINE_CLASS, "a class: the replacement itself stands at the name"
    why_not = _why_not_generated(target)
    if asked == ENGINE_IN_PLACE:
        if why_not is not None or target.kind is TargetKind.ABSENT:
            why_not = why_not or "None"
            raise TypeError(
                f"{target.name} cannot be hooked in place, only plain Python functions can: it is {why_not}"
            )
        if target.inherited:
            raise TypeError(
                f"{target.name} cannot be hooked in place: it is inherited, and every class that shares the function"
                " would be hooked; name the class that defines it"
            )
        return ENGINE_IN_PLACE, "asked for by a hook"
    if asked == ENGINE_GENERATED and why_not is not None:
        raise TypeError(f"no function can be generated in place of {target.name}: it is {why_not}")
    if asked != ENGINE_AUTO:
        return asked, "asked for by a hook"
    if standing == ENGINE_WRAPT and target.kind is not TargetKind.ABSENT:
        return ENGINE_WRAPT, f"asked for by {ENGINE_VARIABLE}"
    if why_not is not None:
        return ENGINE_WRAPT, f"{why_not}: only a proxy keeps it whole"
    if target.kind is TargetKind.ABSENT:
        return ENGINE_GENERATED, "None: there is nothing to keep whole"
    return ENGINE_GENERATED, "a plain Python function: what stands for it is one too"


def _why_not_generated(target: Target) -> str | None:
    """What the target is, if it is no plain function behind one of Python's own descriptors."""
    raw = target.raw
    if target.kind is TargetKind.ABSENT or type(raw) is types.FunctionType:
        return None
    own_descriptor = type(raw) in (classmethod, staticmethod) or target.kind in (
        TargetKind.PROPERTY,
        TargetKind.CACHED_PROPERTY,
    )
    if not own_descriptor:
        return f"an object of the type {type(raw).__module__}.{type(raw).__qualname__}"
    if type(target.inner) is types.FunctionType:
        return None
    return f"a {target.kind.value} around an object of the type {type(target.inner).__qualname__}"


def prepare(wanted: Iterable[tuple[Target, str]]) -> None:
    """Import what the engines of some targets, each with the engine asked for, are made of. Call it without any lock:
    an import may wait for another thread's."""
    # Not waited for without an end: who holds it may wait for the module that this thread is importing.
    held = locking.importing.acquire(timeout=locking.FORK_WAITS)
    try:
        import difflib  # noqa: F401  (of the message for a name that is not found)
        import inspect  # noqa: F401

        if _wrapt_is_needed(wanted):
            wrapper_class()
    finally:
        if held:
            locking.importing.release()


def _wrapt_is_needed(wanted: Iterable[tuple[Target, str]]) -> bool:
    try:
        wished = _wished_for_all()
    except HookError:
        return False  # applying says what is wrong
    for target, asked in wanted:
        try:
            if _choose(target, asked, wished)[0] == ENGINE_WRAPT:
                return True
        except TypeError:
            continue
    return False


class StandIn(Protocol):
    """What was made for one target. ``value`` is what is put at the name; where the descriptor is shared by several
    targets (a property), ``value`` is the function that goes into it."""

    value: Any
    callee: Callee

    @property
    def free_variables(self) -> tuple[str, ...]:
        """The names that the code shall have as free variables."""

    def use(self, fused: Fused) -> None:
        """Do this from the next call on."""

    def retire(self) -> None:
        """The last hook left: pass straight through for whoever kept the stand-in."""


def make_stand_in(target: Target, engine: str, first: Any) -> StandIn:
    """Make what stands in for ``target`` with the given engine (see :func:`choose`).

    Where there is nothing at the target, ``first``, the first hook's function, says whether it is a coroutine function.
    """
    if target.kind is TargetKind.ABSENT:
        return Generated(target, first)
    if engine == ENGINE_IN_PLACE:
        return InPlace(target)
    return Wrapped(target) if engine == ENGINE_WRAPT else Generated(target)


def _callee(target: Target, *, original: Any = None, inner: Any = None, like: Any = None) -> Callee:
    inner = target.inner if inner is None else inner
    is_function = type(inner) is types.FunctionType
    is_plain = is_function and not ("__wrapped__" in inner.__dict__ or "__signature__" in inner.__dict__)
    if like is None:
        like = inner if is_function else target.inspected
    name = getattr(inner, "__qualname__", None)
    return Callee(
        original=target.function if original is None else original,
        like=like,
        plain=inner if is_plain else None,
        read_signature=functools.partial(_signature, target, inner),
        first_is_bound=target.first_is_bound,
        name=name if isinstance(name, str) else target.attribute,
    )


def _signature(target: Target, inner: Any) -> Any:
    if target.kind is TargetKind.ABSENT:
        return None
    if isinstance(target.raw, functools.partialmethod):
        return signatures.signature_of(getattr(target.owner, target.attribute))
    if target.kind is TargetKind.CLASSMETHOD and inner is target.raw:
        return None  # somebody's wrapper around a classmethod: its signature leaves cls out
    return signatures.signature_of(inner)


_generations = itertools.count(1)
# What marks a function as compiled, or as not to be: said of the original, not of what calls it.
_COMPILER_MARKS = ("_torchdynamo", "get_compiler_config", "_torch_")


def _install(function: types.FunctionType, fused: Fused) -> None:
    """Have ``function`` run the fused code. The names that it looks up live in the function's own globals for as long
    as anything runs the code."""
    # Not even where the globals are the function's own may names be used twice: torch.compile knows such globals by
    # their address, and goes on looking at those that are no more.
    suffix = f"_{next(_generations)}"
    namespace = function.__globals__
    code, names = fused.install(namespace, suffix)
    watcher = f"__hookery_code{suffix}"

    def forget(_: Any) -> None:
        for name in names:
            namespace.pop(name, None)
        namespace.pop(watcher, None)

    namespace[watcher] = weakref.ref(code, forget)
    _set_code(function, code)


def _set_code(function: types.FunctionType, code: types.CodeType) -> None:
    function.__code__ = code
    # torch.compile reads the parameters of a function once and keeps them by the function, whatever code it has later.
    compiler = sys.modules.get("torch._dynamo.variables.functions")
    known = getattr(compiler, "_spec_cache", None)
    if isinstance(known, weakref.WeakKeyDictionary):
        known.pop(function, None)
    # It writes functions of torch into its graphs by name, and remembers which object it takes for which of them: the
    # original that hooks call would be written as the name at which they stand, and they would run twice.
    if str(function.__module__).partition(".")[0] == "torch":
        rules = getattr(sys.modules.get("torch._dynamo.trace_rules"), "get_torch_obj_rule_map", None)
        if rules is not None and hasattr(rules, "cache_clear"):
            rules.cache_clear()


def _unused() -> None: ...


async def _unused_coroutine() -> None: ...


def _unused_generator() -> Any:
    yield


async def _unused_async_generator() -> Any:
    yield


# The code of a function that is not used yet. Python wants code to be followed by code of the same kind.
_UNUSED = {
    Kind.FUNCTION: _unused.__code__,
    Kind.COROUTINE: _unused_coroutine.__code__,
    Kind.GENERATOR: _unused_generator.__code__,
    Kind.ASYNC_GENERATOR: _unused_async_generator.__code__,
}


class Generated:
    """A function made for the target. Its globals are its own and nameless: a compiler that follows a function's
    globals by their module's name would look in the wrong place."""

    free_variables: tuple[str, ...] = ()

    def __init__(self, target: Target, like: Any = None) -> None:
        self.callee = _callee(target, like=like)
        inner = target.inner
        name = self.callee.name.rpartition(".")[2]
        self.function = types.FunctionType(_UNUSED[self.callee.kind], {"__builtins__": builtins}, name)
        if target.kind is not TargetKind.ABSENT:
            self._look_like(inner, target)
        else:
            self.function.__module__, self.function.__qualname__ = target.module, target.qualname
        self.value = _behind_descriptor(target, self.function)

    def _look_like(self, inner: types.FunctionType, target: Target) -> None:
        function = self.function
        function.__name__, function.__doc__ = inner.__name__, inner.__doc__
        function.__defaults__, function.__kwdefaults__ = inner.__defaults__, inner.__kwdefaults__
        function.__annotations__ = inner.__annotations__
        # An inherited one is pickled as the attribute of the class that it stands in.
        if target.inherited:
            function.__module__ = target.owner.__module__
            function.__qualname__ = f"{target.owner.__qualname__}.{target.attribute}"
        else:
            function.__module__, function.__qualname__ = inner.__module__, inner.__qualname__
        if hasattr(inner, "__type_params__"):
            function.__type_params__ = inner.__type_params__  # type: ignore[attr-defined,unused-ignore]
        kept = {name: value for name, value in vars(inner).items() if not name.startswith(_COMPILER_MARKS)}
        vars(function).update(kept)
        vars(function)["__wrapped__"] = inner
        plain = self.callee.plain is not None
        signature = signatures.read_when_asked(self.callee.signature) if plain else self.callee.signature()
        if signature is not None:
            vars(function)["__signature__"] = signature

    def use(self, fused: Fused) -> None:
        _install(self.function, fused)

    def retire(self) -> None:
        _install(self.function, fuse(self.callee, ()))


def _behind_descriptor(target: Target, function: Any) -> Any:
    raw = target.raw
    if target.kind is TargetKind.CACHED_PROPERTY:
        made = copy.copy(raw)
        made.func = function
        made.__set_name__(target.owner, target.attribute)
        return made
    if type(raw) in (classmethod, staticmethod):
        return type(raw)(function)
    return function


def compose_property(original: Any, accessors: dict[str, Any]) -> Any:
    """A property like ``original`` (of its class too) with other accessors."""
    for accessor, setter in (("fget", "getter"), ("fset", "setter"), ("fdel", "deleter")):
        if accessor in accessors:
            original = getattr(original, setter)(accessors[accessor])
    return original


# The code that was written for the functions that are hooked in place.
_written_codes: weakref.WeakKeyDictionary[types.FunctionType, types.CodeType] = weakref.WeakKeyDictionary()


def written_code(function: types.FunctionType) -> types.CodeType:
    """The code that was written for a function, where it is hooked in place too."""
    return _written_codes.get(function, function.__code__)


class InPlace:
    """The original, with other code. What hooks call as the original is a twin that has the original's code."""

    def __init__(self, target: Target) -> None:
        function = target.inner
        self.function: types.FunctionType = function
        self.value = target.raw
        self.original_code = function.__code__
        self.free_variables: tuple[str, ...] = function.__code__.co_freevars
        twin = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        twin.__kwdefaults__ = function.__kwdefaults__
        twin.__qualname__, twin.__module__, twin.__doc__ = function.__qualname__, function.__module__, function.__doc__
        twin.__annotations__ = function.__annotations__
        vars(twin).update(vars(function))
        self.callee = _callee(target, original=twin, inner=twin)

    def use(self, fused: Fused) -> None:
        signature = self.callee.signature()
        if "__signature__" not in vars(self.callee.original) and signature is not None:
            # The code shows *args, **kwargs where a hook takes arguments as the caller passed them.
            vars(self.function)["__signature__"] = signature
        _written_codes[self.function] = self.original_code
        _install(self.function, fused)

    def retire(self) -> None:
        _set_code(self.function, self.original_code)
        _written_codes.pop(self.function, None)
        if "__signature__" not in vars(self.callee.original):
            vars(self.function).pop("__signature__", None)


class Wrapped:
    """A ``wrapt.FunctionWrapper``, whatever the number of hooks."""

    free_variables: tuple[str, ...] = ()

    def __init__(self, target: Target) -> None:
        self.callee = _callee(target)
        self.call: Callable[..., Any] = self.callee.original
        in_descriptor = target.kind in (TargetKind.PROPERTY, TargetKind.CACHED_PROPERTY) or (
            # Around the function and not around the descriptor, which some take apart (vars(Class)["f"].__func__).
            type(target.raw) in (classmethod, staticmethod) and type(target.inner) is types.FunctionType
        )
        wrapped = target.inner if in_descriptor else target.raw
        of_c_class = isinstance(wrapped, types.ClassMethodDescriptorType)
        if of_c_class:  # bound through an instance it does not say to which class: a classmethod does
            original = self.callee.original
            wrapped = functools.update_wrapper(lambda *args, **kwargs: original(*args, **kwargs), wrapped)
        wrapper = wrapper_class()(wrapped, self._wrapper(target.binds), target.name, self)
        self.value = _behind_descriptor(target, wrapper) if in_descriptor else wrapper
        if of_c_class:
            self.value = classmethod(wrapper)

    def _wrapper(self, binds: bool) -> Callable[..., Any]:
        # wrapt hands over what a method is bound to (self or cls) apart from the arguments, or None where the caller
        # passed everything itself; hooks see it as the first argument.
        if not binds:

            def wrapper(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                return self.call(*args, **kwargs)

            return wrapper

        def binding_wrapper(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if instance is None:
                return self.call(*args, **kwargs)
            return self.call(instance, *args, **kwargs)

        return binding_wrapper

    def use(self, fused: Fused) -> None:
        self.call = fused.function()

    def retire(self) -> None:
        self.call = self.callee.original
