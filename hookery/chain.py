"""The hooks of one target and the original, fused into one function made from source text.

However many hooks there are, a call runs one function, and one more for each AROUND: what it is given as
``original_fn``. Each hook is marked as *ran*, by one constant store, before it is called. Order: a REPLACE stands
innermost; the others wrap it by rising priority, then in the order of registration, so that the highest priority is the
outermost.

Where every hook is typed the function has the target's own parameters and calls by position. Otherwise it takes
``*args, **kwargs``, hands them on as they came, and leaves the empty dictionary out: ``f(*args)`` costs about half of
``f(*args, **kwargs)``.
"""

from __future__ import annotations

import builtins
import enum
import functools
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hookery import signatures
from hookery.hooks import NONE, Hook, HookType
from hookery.signatures import Parameters, TypedCall

if TYPE_CHECKING:
    import inspect

Call = Callable[..., Any]


class Kind(enum.Enum):
    """What calling the target makes."""

    FUNCTION = "function"
    COROUTINE = "coroutine"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"


@dataclass(frozen=True)
class Callee:
    """What the hooks are put around.

    ``original`` takes the arguments that hooks see; ``like`` is the function that says what kind of callable the target
    is; ``plain`` is the function whose parameters the fused one may take as its own, where the target is one.
    """

    original: Call
    like: Any
    plain: types.FunctionType | None
    signature: Callable[[], inspect.Signature | None]
    first_is_bound: bool
    name: str

    @property
    def kind(self) -> Kind:
        return kind_of(self.like)


@dataclass(frozen=True)
class Fused:
    """A function that is still to be made: its code, and the names that the code looks up."""

    code: types.CodeType
    names: dict[str, Any]
    defaults: tuple[Any, ...] | None = None
    keyword_defaults: dict[str, Any] | None = None

    def function(self) -> types.FunctionType:
        """A function of its own."""
        made = types.FunctionType(self.code, self.names, argdefs=self.defaults)
        made.__kwdefaults__ = self.keyword_defaults
        return made


def replacement_order(hook: Hook) -> tuple[int, int]:
    """Sort key of REPLACE hooks: the last one wins (the highest priority, then the last registered)."""
    return (hook.priority, hook.order)


def kind_of(function: Any) -> Kind:
    """What calling ``function`` makes; for an object with ``__call__`` that method decides."""
    import inspect

    if is_coroutine_function(function):
        return Kind.COROUTINE
    if inspect.isgeneratorfunction(function):
        return Kind.GENERATOR
    if inspect.isasyncgenfunction(function):
        return Kind.ASYNC_GENERATOR
    return Kind.FUNCTION


def is_coroutine_function(function: Any) -> bool:
    import inspect

    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(vars(type(function)).get("__call__"))


def fuse(
    callee: Callee, hooks: Iterable[Hook], *, prelude: Call | None = None, free_variables: tuple[str, ...] = ()
) -> Fused:
    """Fuse ``hooks`` and the original.

    For a coroutine function the fused one is a coroutine function: AFTER sees the awaited value, a synchronous AROUND or
    REPLACE may return an awaitable. For a generator function the hooks run at the first ``next`` and AFTER sees the
    generator object; likewise for an asynchronous generator.

    Args:
        prelude: called at the start of every call.
        free_variables: names that the code shall have as free variables, which it does not use.

    Raises:
        TypeError: a coroutine function hooks a target that is not one, or a typed hook does not fit the target.
    """
    ordered = sorted(hooks, key=replacement_order)
    kind = callee.kind
    for hook in ordered:
        if kind is not Kind.COROUTINE and is_coroutine_function(hook.function):
            raise TypeError(
                f"{hook.describe()}: the hook is a coroutine function but its target is not; nothing would await it"
            )
    typed = {
        id(hook): signatures.typed_call(hook, callee.signature, first_is_bound=callee.first_is_bound)
        for hook in ordered
    }
    exact = callee.plain is not None and all(typed.values())
    shape = _Shape(callee, kind, exact, typed)
    replacements = [hook for hook in ordered if hook.type is HookType.REPLACE]
    core = replacements[-1] if replacements else None
    layers: list[Hook] = []
    inner: Call = callee.original
    for hook in (hook for hook in ordered if hook.type is not HookType.REPLACE):  # from the inside out
        if hook.type is HookType.AROUND:
            if layers or core is not None:
                inner = shape.segment(layers, core, inner).function()
            layers, core = [], hook
        else:
            layers.insert(0, hook)
    return shape.segment(layers, core, inner, outermost=True, prelude=prelude, free_variables=free_variables)


@dataclass
class _Values:
    """The variables that hold the arguments at one point of the fused function."""

    variables: tuple[str, ...]  # one for each parameter; or, where it takes anything, those of args and kwargs
    bound: tuple[str, ...] | None = None  # there: the variables that hold them parameter by parameter


@dataclass
class _Shape:
    """Writes the functions that one set of hooks is fused into."""

    callee: Callee
    kind: Kind
    exact: bool
    typed: dict[int, TypedCall | None]
    prefix: str = field(init=False)
    parameters: Parameters = field(init=False)  # the target's; empty where nothing needs them

    def __post_init__(self) -> None:
        self.parameters = _NO_PARAMETERS
        if self.exact and self.callee.plain is not None:
            self.parameters = signatures.of_function(self.callee.plain)
        elif any(self.typed.values()):
            signature = self.callee.signature()
            assert signature is not None
            self.parameters = signatures.of_signature(signature)
        self.prefix = "__hookery_"
        while any(name.startswith(self.prefix) for name in self.parameters.names):
            self.prefix += "_"

    def segment(
        self,
        layers: Sequence[Hook],
        core: Hook | None,
        inner: Call,
        *,
        outermost: bool = False,
        prelude: Call | None = None,
        free_variables: tuple[str, ...] = (),
    ) -> Fused:
        """One function: the BEFORE and AFTER ``layers`` from the outside in, around the call of ``core``, or of
        ``inner`` if there is none."""
        writer = _Writer(self, {f"{self.prefix}inner": inner})
        if prelude is not None:
            writer.names[f"{self.prefix}prelude"] = prelude
            writer.line(f"{self.prefix}prelude()")
        writer.body(layers, core, self.kind if outermost else None)
        if free_variables:
            writer.line(f"if 0: {', '.join(free_variables)}")
        takes = self.parameters.declaration() if self.exact else f"*{self.prefix}args, **{self.prefix}kwargs"
        coroutine = self.kind is Kind.COROUTINE or (outermost and self.kind is Kind.ASYNC_GENERATOR)
        lines = [f"{'async ' if coroutine else ''}def function({takes}):", *(f"    {line}" for line in writer.lines)]
        if free_variables:
            lines = [f"def scope({', '.join(free_variables)}):", *(f"    {line}" for line in lines)]
        plain = self.callee.plain if self.exact else None
        return Fused(
            named(_compiled("\n".join(lines), len(free_variables)), self.callee.name),
            writer.names,
            plain.__defaults__ if plain else None,
            plain.__kwdefaults__ if plain else None,
        )

    def binder(self) -> Call:
        """A function that takes what the target takes and returns a tuple of it, parameter by parameter."""
        values = "".join(f"{name}, " for name in self.parameters.names)
        code = _compiled(f"def function({self.parameters.declaration()}):\n    return ({values})", 0)
        plain = self.callee.plain if self.exact else None
        if plain is not None:
            defaults, keyword_defaults = plain.__defaults__, plain.__kwdefaults__
        else:
            signature = self.callee.signature()
            assert signature is not None
            given = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
            keyword_defaults = {name: given.pop(name) for name in self.parameters.keyword_only if name in given}
            defaults = tuple(given.values())
        return Fused(named(code, self.callee.name), {}, defaults, keyword_defaults).function()


@dataclass
class _Writer:
    """The text of one function, and the names that it looks up."""

    shape: _Shape
    names: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    _variables: int = 0

    def line(self, text: str, depth: int = 0) -> None:
        self.lines.append("    " * depth + text)

    def name(self, what: str, value: Any) -> str:
        found = f"{self.shape.prefix}{what}"
        self.names[found] = value
        return found

    def fresh(self, count: int) -> tuple[str, ...]:
        self._variables += 1
        return tuple(f"{self.shape.prefix}value{self._variables}_{index}" for index in range(count))

    def body(self, layers: Sequence[Hook], core: Hook | None, outermost_kind: Kind | None) -> None:
        prefix, shape = self.shape.prefix, self.shape
        awaits = shape.kind is Kind.COROUTINE
        values = _Values(shape.parameters.names if shape.exact else (f"{prefix}args", f"{prefix}kwargs"))
        afters: list[tuple[int, Hook, _Values]] = []
        for index, hook in enumerate(layers):
            if hook.type is HookType.BEFORE:
                values = self._before(index, hook, values, keep=bool(afters))
            else:
                afters.append((index, hook, values))
        simple = not afters and outermost_kind in (None, Kind.FUNCTION, Kind.COROUTINE)
        if core is None:
            call = self._forward(f"{prefix}inner", values)
            self.line(f"{'return' if simple else f'{prefix}result ='} {f'await {call}' if awaits else call}")
        else:
            leading = f"{prefix}inner" if core.type is HookType.AROUND else None
            self._mark("core", core)
            call = self._call("core", core, leading, values)
            settles = awaits and not is_coroutine_function(core.function)
            if settles:
                self.line(f"{prefix}result = {call}")
                self._settle("result", condition="")
                if simple:
                    self.line(f"return {prefix}result")
            else:
                call = f"await {call}" if awaits else call
                self.line(f"{'return' if simple else f'{prefix}result ='} {call}")
        for index, hook, seen in reversed(afters):
            self._after(index, hook, seen)
        if simple:
            return
        if outermost_kind is Kind.GENERATOR:
            self.line(f"return (yield from {prefix}result)")
        elif outermost_kind is Kind.ASYNC_GENERATOR:
            for builtin in ("aiter", "anext", "hasattr", "GeneratorExit", "BaseException", "StopAsyncIteration"):
                self.name(builtin, getattr(builtins, builtin))
            self.lines += _DELEGATE.replace("@", prefix).splitlines()
        else:
            self.line(f"return {prefix}result")

    def _mark(self, what: str | int, hook: Hook, depth: int = 0) -> None:
        record = self.name(f"record{what}", hook)
        self.line(f"{record}.ran = True", depth)
        if hook.counted:
            self.line(f"{record}.calls += 1", depth)

    def _settle(self, variable: str, *, condition: str, depth: int = 0) -> None:
        import inspect

        awaitable = self.name("isawaitable", inspect.isawaitable)
        name = f"{self.shape.prefix}{variable}"
        self.line(f"if {condition}{awaitable}({name}): {name} = await {name}", depth)

    def _forward(self, function: str, values: _Values) -> str:
        """A call of the target, or of what leads to it."""
        if self.shape.exact:
            return f"{function}({self.shape.parameters.forward(values.variables)})"
        args, kwargs = values.variables
        return f"({function}(*{args}, **{kwargs}) if {kwargs} else {function}(*{args}))"

    def _call(self, what: str | int, hook: Hook, leading: str | None, values: _Values, depth: int = 0) -> str:
        """A call of a hook; a typed one behind ``*args, **kwargs`` has them bound to the target's parameters first."""
        function = self.name(f"hook{what}", hook.function)
        first = f"{leading}, " if leading else ""
        typed = self.shape.typed[id(hook)]
        if typed is not None:
            return f"{function}({first}{typed.arguments(self._bound(values, depth))})"
        args, kwargs = values.variables
        return f"({function}({first}*{args}, **{kwargs}) if {kwargs} else {function}({first}*{args}))"

    def _bound(self, values: _Values, depth: int) -> tuple[str, ...]:
        if self.shape.exact:
            return values.variables
        if values.bound is None:
            self._bind_name()
            names = self.fresh(len(self.shape.parameters.names))
            target = f"{', '.join(names)}, = " if names else ""
            self.line(f"{target}{self._forward(f'{self.shape.prefix}bind', values)}", depth)
            if depth == 0:
                values.bound = names
            return names
        return values.bound

    def _bind_name(self) -> Call:
        name = f"{self.shape.prefix}bind"
        if name not in self.names:
            self.names[name] = self.shape.binder()
        found: Call = self.names[name]
        return found

    def _observe(self, what: int, hook: Hook, leading: str | None, values: _Values, check: str | None) -> None:
        """Call a hook that only looks on, leave what it returned in ``changed``, and do with an error as it asked."""
        prefix, depth = self.shape.prefix, 0
        changed = f"{prefix}changed"
        tolerant = hook.on_error != "raise"
        if self.shape.typed[id(hook)] is not None:
            self._bound(values, 0)  # a call that does not fit the target is the caller's error, not the hook's
        if tolerant:
            record = self.name(f"record{what}", hook)
            self.line(f"{changed} = None")
            if hook.on_error == "disable":
                self.line(f"if not {record}.disabled:")
                depth += 1
        self._mark(what, hook, depth)
        if tolerant:
            self.line("try:", depth)
            depth += 1
        asynchronous = is_coroutine_function(hook.function)
        call = self._call(what, hook, leading, values, depth)
        self.line(f"{changed} = {f'await {call}' if asynchronous else call}", depth)
        if hook.type is HookType.BEFORE and self.shape.kind is Kind.COROUTINE and not asynchronous:
            self._settle("changed", condition=f"{changed} is not None and ", depth=depth)
        if tolerant:
            if check:
                self.line(f"if {changed} is not None: {changed} = {check}({changed})", depth)
            depth -= 1
            failed = self.name(f"failed{what}", functools.partial(_failed, hook))
            error = self.name("Exception", Exception)
            self.line(f"except {error} as {prefix}error:", depth)
            self.line(f"{changed} = None", depth + 1)
            self.line(f"{failed}({prefix}error)", depth + 1)

    def _before(self, index: int, hook: Hook, values: _Values, *, keep: bool) -> _Values:
        """``keep``: an AFTER hook further out is still to be called with the arguments as they were."""
        changed = f"{self.shape.prefix}changed"
        if self.shape.exact:
            bind = self._bind_name()
            check = self.name(f"checked{index}", lambda changed: bind(*_arguments(hook, changed)[0], **changed[1]))
        else:
            check = self.name(f"checked{index}", functools.partial(_arguments, hook))
        self._observe(index, hook, None, values, check)
        after = _Values(values.variables)
        if keep and values.variables:
            after = _Values(self.fresh(len(values.variables)))
            self.line(f"{', '.join(after.variables)}, = {', '.join(values.variables)},")
        value = changed if hook.on_error != "raise" else f"{check}({changed})"
        target = f"{', '.join(after.variables)}, = " if after.variables else ""
        self.line(f"if {changed} is not None: {target}{value}")
        return after

    def _after(self, index: int, hook: Hook, values: _Values) -> None:
        prefix = self.shape.prefix
        self._observe(index, hook, f"{prefix}result", values, None)
        none = self.name("NONE", NONE)
        self.line(f"if {prefix}changed is not None:")
        self.line(f"{prefix}result = None if {prefix}changed is {none} else {prefix}changed", 1)


_NO_PARAMETERS = Parameters((), (), None, (), None, frozenset())

# ``yield from`` for asynchronous generators; what was returned need be no more than an asynchronous iterable.
_DELEGATE = """\
@inner_generator = @aiter(@result)
try:
    @value = await @anext(@inner_generator)
    while True:
        try:
            @sent = yield @value
        except @GeneratorExit:
            if @hasattr(@inner_generator, "aclose"):
                await @inner_generator.aclose()
            raise
        except @BaseException as @error:
            if not @hasattr(@inner_generator, "athrow"):
                raise
            @value = await @inner_generator.athrow(@error)
        else:
            @value = await (@anext(@inner_generator) if @sent is None else @inner_generator.asend(@sent))
except @StopAsyncIteration:
    return"""


@functools.lru_cache(maxsize=1024)
def _compiled(source: str, depth: int) -> types.CodeType:
    """The code of the function that ``source`` defines. Most hooks share their text, so compiling is rare."""
    code = compile(source, "<hookery>", "exec", dont_inherit=True)
    for _ in range(2 if depth else 1):
        code = next(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return code


def named(code: types.CodeType, qualified_name: str) -> types.CodeType:
    """A copy under another name: a new object always, which is how a compiler notices that something changed."""
    name = qualified_name.rpartition(".")[2]
    if hasattr(code, "co_qualname"):
        return code.replace(co_name=name, co_qualname=qualified_name)
    return code.replace(co_name=name)


def renamed(fused: Fused, suffix: str) -> Fused:
    """The same with every name that it looks up made unique, to live in a namespace beside others."""
    names = tuple(name + suffix if name in fused.names else name for name in fused.code.co_names)
    return replace(
        fused,
        code=fused.code.replace(co_names=names),
        names={name + suffix: value for name, value in fused.names.items()},
    )


def _arguments(hook: Hook, changed: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check what a BEFORE hook returned."""
    if type(changed) is tuple and len(changed) == 2 and isinstance(changed[0], tuple) and isinstance(changed[1], dict):
        return changed
    raise TypeError(f"{hook.describe()}: a BEFORE hook returns None or (args, kwargs), not {changed!r}")


def _failed(hook: Hook, error: Exception) -> None:
    """An observer raised and asked for the program to go on."""
    import warnings

    from hookery.hooks import HookState, HookWarning

    hook.last_error = f"{type(error).__name__}: {error}"
    if hook.on_error == "disable":
        if hook.disabled:
            return  # a call that was under way in another thread
        hook.disabled = True
        hook.state, hook.detail = HookState.SKIPPED, f"disabled after an error: {hook.last_error}"
        warnings.warn(HookWarning(f"{hook.describe()} is disabled: it raised {hook.last_error}"), stacklevel=3)
    else:
        warnings.warn(HookWarning(f"{hook.describe()} raised {hook.last_error}"), stacklevel=3)
