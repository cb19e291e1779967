"""Functions that hooks are fused into: the text of :mod:`hookery.generation`, given the hooks that it is about."""

from __future__ import annotations

import builtins
import functools
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from hookery import generation, signatures
from hookery.callees import Call, Callee, Kind
from hookery.generation import HookShape, SegmentShape, UsualCall
from hookery.hooks import Hook, HookState, HookType, HookWarning, Mark
from hookery.signatures import Parameters

_CODE_HAS_QUALIFIED_NAME = hasattr(types.CodeType, "co_qualname")  # from CPython 3.11 on
_NO_PARAMETERS = Parameters((), (), None, (), None, frozenset())


class Fused(NamedTuple):
    """A function that is still to be made: its code, the names that the code looks up, and what it will be called.

    Every time it is made the code is a new object, which is how a compiler notices that something changed.
    """

    code: types.CodeType
    names: dict[str, Any]
    qualified_name: str
    defaults: tuple[Any, ...] | None = None
    keyword_defaults: dict[str, Any] | None = None
    shortcut: Shortcut | None = None  # for what stands at one of the names

    def function(self) -> types.FunctionType:
        """A function of its own."""
        names = {"__builtins__": builtins, **self.names}  # looked for there by those who read the code
        self._attach(names, "")
        made = types.FunctionType(self._code(self.code.co_names), names, argdefs=self.defaults)
        made.__kwdefaults__ = self.keyword_defaults
        return made

    def install(self, namespace: dict[str, Any], suffix: str) -> tuple[types.CodeType, list[str]]:
        """Put the names into ``namespace``, made unique by ``suffix``; returns the code that looks them up there, and
        the names."""
        looked_up = tuple([name + suffix if name in self.names else name for name in self.code.co_names])
        names = {name + suffix: value for name, value in self.names.items()}
        namespace.update(names)
        self._attach(namespace, suffix)
        return self._code(looked_up), list(names)

    def _attach(self, namespace: dict[str, Any], suffix: str) -> None:
        for name, value in self.names.items():
            if type(value) is FirstRun:
                value.afterwards.append((namespace, name + suffix, None))
        if self.shortcut is not None:
            self.shortcut.first.afterwards.append((namespace, self.shortcut.name + suffix, self.shortcut.taken))

    def _code(self, names: tuple[str, ...]) -> types.CodeType:
        name = self.qualified_name.rpartition(".")[2]
        if _CODE_HAS_QUALIFIED_NAME:
            return self.code.replace(co_name=name, co_qualname=self.qualified_name, co_names=names)
        return self.code.replace(co_name=name, co_names=names)


class FirstRun:
    """What fused code calls before a hook until it has run once; it then takes itself out of the code's way.

    Code that torch compiles goes on calling it, which costs nothing there: were it taken out while such code runs, the
    compiler would see a changed global and compile again.
    """

    __slots__ = ("afterwards", "mark")

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.afterwards: list[tuple[dict[str, Any], str, Any]] = []  # in which globals which name stands for what then

    def __call__(self) -> None:
        self.mark.ran = True
        if not _being_compiled():
            afterwards, self.afterwards = self.afterwards, []
            for namespace, name, value in afterwards:
                if name in namespace:  # else this code is not in use any more
                    namespace[name] = value

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy that somebody makes of the function, globals and all, marks nothing here


def _being_compiled() -> bool:
    compiler = sys.modules.get("torch.compiler")
    return compiler is not None and hasattr(compiler, "is_compiling") and compiler.is_compiling()


class Shortcut(NamedTuple):
    """Once a hook has run, a name stands for something that leads there faster."""

    first: FirstRun
    name: str
    taken: Call


class Fuser:
    """Makes the functions that one set of hooks is fused into.

    Args:
        shapes: what texts depend on, by the identity of each hook.
    """

    def __init__(self, callee: Callee, shapes: dict[int, HookShape]) -> None:
        self.callee, self.kind, self._shapes = callee, callee.kind, shapes
        typed = [shape.typed is not None for shape in shapes.values()]
        # Where every hook is typed the functions have the target's own parameters.
        self.exact = callee.plain is not None and all(typed)
        self._shortcuts: dict[int, tuple[FirstRun, Call]] = {}  # by the identity of the function that is passed by
        self.parameters = _NO_PARAMETERS
        self.usual: tuple[UsualCall, ...] = ()
        if self.exact:
            assert callee.plain is not None
            self.parameters = signatures.of_function(callee.plain)
        elif any(typed):  # what a typed hook sees has to be bound anyhow, so no call is a usual one
            signature = callee.signature()
            assert signature is not None
            self.parameters = signatures.of_signature(signature)
        elif callee.plain is not None:
            self.usual = generation.usual_calls(signatures.of_function(callee.plain))

    def inner(self, layers: Sequence[Hook], core: Hook | None, inner: Call) -> Call:
        """What an AROUND hook further out is given as ``original_fn``: the function of a segment. Where that would do
        nothing but call one AROUND hook, it does so for the first time; afterwards there is no need of a function."""
        alone = core is not None and core.type is HookType.AROUND and not layers and self.kind is Kind.FUNCTION
        if core is None or not alone or core.counted or self._shapes[id(core)].typed:
            return self.segment(layers, core, inner).function()
        straight = functools.partial(core.function, inner)
        name = self.callee.name
        vars(straight).update(__name__=name.rpartition(".")[2], __qualname__=name)
        if core.mark.ran:
            return straight
        fused = self.segment(layers, core, inner)
        function = fused.function()
        first = next(value for value in fused.names.values() if type(value) is FirstRun)
        self._shortcuts[id(function)] = (first, straight)
        return function

    def segment(
        self,
        layers: Sequence[Hook],
        core: Hook | None,
        inner: Call,
        *,
        outermost: bool = False,
        prelude: Call | None = None,
        free_variables: tuple[str, ...] = (),
        usual: bool = True,
    ) -> Fused:
        """One function: the BEFORE and AFTER ``layers`` from the outside in, around the call of ``core``, or of
        ``inner`` if there is none.

        Args:
            usual: give the usual calls texts of their own.
        """
        text = generation.write(
            SegmentShape(
                kind=self.kind,
                exact=self.exact,
                parameters=self.parameters,
                usual=self.usual if usual else (),
                layers=tuple([self._shapes[id(hook)] for hook in layers]),
                core=None if core is None else self._shapes[id(core)],
                outermost=outermost,
                prelude=prelude is not None,
                free_variables=free_variables,
            )
        )
        names = dict(text.constants)
        shortcut = None
        for name, (role, number) in text.roles.items():
            hook = core if number is None else layers[number]
            if role == "inner":
                names[name] = inner
                if id(inner) in self._shortcuts:
                    first, straight = self._shortcuts[id(inner)]
                    shortcut = Shortcut(first, name, straight)
            elif role == "prelude":
                names[name] = prelude
            elif role == "original":
                names[name] = self.callee.original
            elif role == "bind":
                names[name] = self._binder
            elif role == "rest":
                assert number is not None
                further_in = layers[number + 1 :]
                plain = not further_in and core is None
                names[name] = inner if plain else self.segment(further_in, core, inner, usual=False).function()
            else:
                assert hook is not None
                names[name] = self._of_hook(role, hook)
        defaults: tuple[Any, ...] | None = (generation.MISSING,) * text.missing
        keyword_defaults = None
        if self.exact:
            assert self.callee.plain is not None
            defaults, keyword_defaults = self.callee.plain.__defaults__, self.callee.plain.__kwdefaults__
        return Fused(text.code, names, self.callee.name, defaults, keyword_defaults, shortcut)

    def _of_hook(self, role: str, hook: Hook) -> Any:
        """What a name stands for that is about one hook."""
        if role == "hook":
            return hook.function
        if role == "first":
            return None if hook.mark.ran else FirstRun(hook.mark)
        if role == "record":
            return hook
        if role == "failed":
            return functools.partial(_failed, hook)
        if role == "checked":
            if not self.exact:
                return functools.partial(_arguments, hook)
            bind = self._binder
            return lambda changed: bind(*_arguments(hook, changed)[0], **changed[1])
        raise AssertionError(f"the text gives no meaning to {role!r}")

    @functools.cached_property
    def _binder(self) -> Call:
        """A function that takes what the target takes and returns a tuple of it, parameter by parameter."""
        plain = self.callee.plain if self.exact else None
        if plain is not None:
            defaults, keyword_defaults = plain.__defaults__, plain.__kwdefaults__
        else:
            signature = self.callee.signature()
            assert signature is not None
            given = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
            keyword_defaults = {name: given.pop(name) for name in self.parameters.keyword_only if name in given}
            defaults = tuple(given.values())
        code = generation.write_binder(self.parameters)
        return Fused(code, {}, self.callee.name, defaults, keyword_defaults).function()


def _arguments(hook: Hook, changed: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check what a BEFORE hook returned."""
    if type(changed) is tuple and len(changed) == 2 and isinstance(changed[0], tuple) and isinstance(changed[1], dict):
        return changed
    raise TypeError(f"{hook.describe()}: a BEFORE hook returns None or (args, kwargs), not {changed!r}")


def _failed(hook: Hook, error: Exception) -> None:
    """An observer raised and asked for the program to go on."""
    hook.last_error = f"{type(error).__name__}: {error}"
    if hook.on_error == "warn":
        _warn(f"{hook.describe()} raised {hook.last_error}")
    elif not hook.disabled:  # else in a call that was under way in another thread
        hook.disabled = True
        hook.state, hook.detail = HookState.SKIPPED, f"disabled after an error: {hook.last_error}"
        _warn(f"{hook.describe()} is disabled, because it raised {hook.last_error}")


def _warn(message: str) -> None:
    """Warn; where warnings are errors, print: the program shall go on."""
    try:
        warnings.warn(HookWarning(message), stacklevel=4)
    except HookWarning:
        print(f"HookWarning: {message}", file=sys.stderr)
