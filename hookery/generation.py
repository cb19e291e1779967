"""The source text of the functions that hooks are fused into, and the functions made from it."""

from __future__ import annotations

import builtins
import functools
import sys
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hookery import signatures
from hookery.callees import Call, Callee, Kind, is_coroutine_function
from hookery.hooks import NONE, Hook, HookState, HookType, HookWarning
from hookery.signatures import Parameters, TypedCall


@dataclass(frozen=True)
class Fused:
    """A function that is still to be made: its code, and the names that the code looks up."""

    code: types.CodeType
    names: dict[str, Any]
    defaults: tuple[Any, ...] | None = None
    keyword_defaults: dict[str, Any] | None = None

    def function(self) -> types.FunctionType:
        """A function of its own."""
        names = {"__builtins__": builtins, **self.names}  # looked for there by those who read the code
        made = types.FunctionType(self.code, names, argdefs=self.defaults)
        made.__kwdefaults__ = self.keyword_defaults
        return made


@dataclass
class _Values:
    """The variables that hold the arguments at one point of the fused function."""

    variables: tuple[str, ...]  # one for each parameter; or, where it takes anything, those of args and kwargs
    bound: tuple[str, ...] | None = None  # there: the variables that hold them parameter by parameter
    usual: str | None = None  # in the text of a usual call: what stands between the parentheses


@dataclass(frozen=True)
class _Usual:
    """A usual way to call the target: so many arguments by position, and perhaps one by name."""

    count: int
    keyword: str | None = None


_USUAL_COUNTS = 3  # each has a text of its own


def _usual_calls(parameters: Parameters) -> list[_Usual]:
    positional = [*parameters.positional_only, *parameters.positional]
    least = sum(name not in parameters.optional for name in positional)
    counts = range(least, min(len(positional), least + _USUAL_COUNTS - 1) + 1)
    needed = [name for name in parameters.keyword_only if name not in parameters.optional]
    if len(needed) > 1:
        return []
    usual = [_Usual(count) for count in counts] if not needed else []
    # At most one: of two, the order in which the caller passed them would be lost.
    for keyword in needed or parameters.keyword_only[:2]:
        usual += [_Usual(count, keyword) for count in counts[:2]]
    return usual


@dataclass
class Shape:
    """Writes the functions that one set of hooks is fused into."""

    callee: Callee
    kind: Kind
    exact: bool
    typed: dict[int, TypedCall | None]
    prefix: str = field(init=False)
    parameters: Parameters = field(init=False)  # the target's; empty where nothing needs them
    usual: list[_Usual] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = _NO_PARAMETERS
        if self.exact and self.callee.plain is not None:
            self.parameters = signatures.of_function(self.callee.plain)
        elif any(self.typed.values()):
            signature = self.callee.signature()
            assert signature is not None
            self.parameters = signatures.of_signature(signature)
        plain = self.callee.plain
        self.usual = _usual_calls(signatures.of_function(plain)) if plain is not None and not self.exact else []
        if any(self.typed.values()):
            self.usual = []  # what a typed hook sees has to be bound anyhow
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
        usual: bool = True,
    ) -> Fused:
        """One function: the BEFORE and AFTER ``layers`` from the outside in, around the call of ``core``, or of
        ``inner`` if there is none.

        Args:
            usual: give the usual calls texts of their own.
        """
        writer = _Writer(self, {f"{self.prefix}inner": inner})
        if prelude is not None:
            writer.names[f"{self.prefix}prelude"] = prelude
            writer.prelude(self.callee.original)
        kind = self.kind if outermost else None
        takes = self.parameters.declaration() if self.exact else f"*{self.prefix}args, **{self.prefix}kwargs"
        defaults, keyword_defaults = None, None
        if self.exact and self.callee.plain is not None:
            defaults, keyword_defaults = self.callee.plain.__defaults__, self.callee.plain.__kwdefaults__
        alone = not layers and core is not None and core.type is HookType.REPLACE
        # Where a REPLACE is all there is, the tuple may as well be handed on as it is.
        calls = [each for each in self.usual if each.keyword or not alone] if usual and kind not in _LAZY else []
        if calls and (layers or core is not None):
            if outermost or any(each.keyword for each in calls):
                writer.usual_calls(calls, layers, core, inner)
            else:
                defaults = (_MISSING,) * calls[-1].count
                takes = writer.usual_positional_calls(layers, core, inner)
        writer.body(layers, core, kind)
        if free_variables:
            writer.line(f"if 0: {', '.join(free_variables)}")
        coroutine = self.kind is Kind.COROUTINE or (outermost and self.kind is Kind.ASYNC_GENERATOR)
        lines = [f"{'async ' if coroutine else ''}def function({takes}):", *(f"    {line}" for line in writer.lines)]
        if free_variables:
            lines = [f"def scope({', '.join(free_variables)}):", *(f"    {line}" for line in lines)]
        code = named(_compiled("\n".join(lines), len(free_variables)), self.callee.name)
        return Fused(code, writer.names, defaults, keyword_defaults)

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

    shape: Shape
    names: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    _variables: int = 0
    _numbers: dict[int, int] = field(default_factory=dict)

    def line(self, text: str, depth: int = 0) -> None:
        self.lines.append("    " * depth + text)

    def name(self, what: str, value: Any) -> str:
        found = f"{self.shape.prefix}{what}"
        self.names[found] = value
        return found

    def fresh(self, count: int) -> tuple[str, ...]:
        self._variables += 1
        return tuple(f"{self.shape.prefix}value{self._variables}_{index}" for index in range(count))

    def prelude(self, original: Call) -> None:
        """Call it; a call that it says is meant for the original goes there."""
        prefix, shape = self.shape.prefix, self.shape
        if shape.kind is Kind.ASYNC_GENERATOR:  # it cannot return what another yields
            self.line(f"{prefix}prelude()")
            return
        values = _Values(shape.parameters.names if shape.exact else (f"{prefix}args", f"{prefix}kwargs"))
        call = self._forward(self.name("original", original), values)
        self.line(f"if {prefix}prelude():")
        how = {Kind.COROUTINE: "await ", Kind.GENERATOR: "yield from "}.get(shape.kind, "")
        self.line(f"return ({how}{call})", 1)

    def body(self, layers: Sequence[Hook], core: Hook | None, outermost_kind: Kind | None) -> None:
        """The text for any call."""
        prefix, shape = self.shape.prefix, self.shape
        values = _Values(shape.parameters.names if shape.exact else (f"{prefix}args", f"{prefix}kwargs"))
        afters: list[tuple[Hook, _Values]] = []
        for hook in layers:
            if hook.type is HookType.BEFORE:
                values = self._before(self._number(hook), hook, values, keep=bool(afters))
            else:
                afters.append((hook, values))
        simple = not afters and outermost_kind not in _LAZY
        self._core(core, values, tail=simple, depth=0)
        for hook, seen in reversed(afters):
            self._after(self._number(hook), hook, seen, 0)
        if outermost_kind is Kind.GENERATOR:
            self.line(f"return (yield from {prefix}result)")
        elif outermost_kind is Kind.ASYNC_GENERATOR:
            for builtin in ("aiter", "anext", "hasattr", "GeneratorExit", "BaseException", "StopAsyncIteration"):
                self.name(builtin, getattr(builtins, builtin))
            self.lines += _DELEGATE.replace("@", prefix).splitlines()
        elif not simple:
            self.line(f"return {prefix}result")

    def _core(self, core: Hook | None, values: _Values, *, tail: bool, depth: int) -> None:
        """The call of what is innermost: the original, a REPLACE, or an AROUND that is given what is further in."""
        prefix = self.shape.prefix
        awaits = self.shape.kind is Kind.COROUTINE
        target = "return " if tail else f"{prefix}result = "
        if core is None:
            call = self._forward(f"{prefix}inner", values)
            self.line(f"{target}{f'await {call}' if awaits else call}", depth)
            return
        self._mark("core", core, depth)
        leading = f"{prefix}inner" if core.type is HookType.AROUND else None
        call = self._call("core", core, leading, values, depth)
        if awaits and not is_coroutine_function(core.function):
            self.line(f"{prefix}result = {call}", depth)
            self._settle("result", condition="", depth=depth)
            if tail:
                self.line(f"return {prefix}result", depth)
        else:
            self.line(f"{target}{f'await {call}' if awaits else call}", depth)

    def usual_calls(self, calls: Sequence[_Usual], layers: Sequence[Hook], core: Hook | None, inner: Call) -> None:
        """Texts for the usual calls of a function that takes ``*args, **kwargs``."""
        prefix = self.shape.prefix
        length = self.name("len", len)
        by_keyword: dict[str | None, list[_Usual]] = {}
        for each in calls:
            by_keyword.setdefault(each.keyword, []).append(each)
        for keyword, like_it in by_keyword.items():
            if keyword is None:
                self.line(f"if not {prefix}kwargs:")
            else:
                self.line(f"if {length}({prefix}kwargs) == 1 and {keyword!r} in {prefix}kwargs:")
            for each in like_it:
                names = self._positional(each.count)
                self.line(f"if {length}({prefix}args) == {each.count}:", 1)
                if names:
                    self.line(f"{', '.join(names)}, = {prefix}args", 2)
                values = [*names]
                if keyword is not None:
                    self.line(f"{prefix}keyword = {prefix}kwargs[{keyword!r}]", 2)
                    values.append(f"{keyword}={prefix}keyword")
                self._usual_body(layers, core, inner, _Values((), usual=", ".join(values)), 2, tail=True)

    def usual_positional_calls(self, layers: Sequence[Hook], core: Hook | None, inner: Call) -> str:
        """Texts for the usual calls, of an inner function whose parameters take them without making a tuple; returns
        the parameters."""
        prefix = self.shape.prefix
        missing = self.name("missing", _MISSING)
        most = self.shape.usual[-1].count
        names = self._positional(most)
        for each in self.shape.usual:
            conditions = [f"{names[each.count]} is {missing}" if each.count < most else f"not {prefix}args"]
            conditions.append(f"not {prefix}kwargs")
            conditions += [f"{names[each.count - 1]} is not {missing}"] if each.count else []
            self.line(f"if {' and '.join(conditions)}:")
            values = _Values((), usual=", ".join(names[: each.count]))
            self._usual_body(layers, core, inner, values, 1, tail=True)
        for count in range(most, 0, -1):
            self.line(f"{'if' if count == most else 'elif'} {names[count - 1]} is not {missing}:")
            self.line(f"{prefix}args = ({', '.join(names[:count])}, *{prefix}args)", 1)
        declared = [f"{name}=None" for name in names]
        return ", ".join([*declared, *(["/"] if names else []), f"*{prefix}args", f"**{prefix}kwargs"])

    def _positional(self, count: int) -> list[str]:
        return [f"{self.shape.prefix}{index}" for index in range(count)]

    def _usual_body(
        self, layers: Sequence[Hook], core: Hook | None, inner: Call, values: _Values, depth: int, *, tail: bool
    ) -> None:
        """The layers and what is in them, for arguments that are known one by one. A BEFORE hook that changes them
        leaves this text: what is further in is then done by a function that takes anything.

        ``tail``: nothing is left to be done with the result.
        """
        prefix = self.shape.prefix
        awaits = "await " if self.shape.kind is Kind.COROUTINE else ""
        target = "return " if tail else f"{prefix}result = "
        if not layers:
            self._core(core, values, tail=tail, depth=depth)
            return
        hook, further_in = layers[0], layers[1:]
        if hook.type is HookType.AFTER:
            self._usual_body(further_in, core, inner, values, depth, tail=False)
            self._after(self._number(hook), hook, values, depth)
            if tail:
                self.line(f"return {prefix}result", depth)
            return
        number = self._number(hook)
        changed = f"{prefix}changed"
        check = self.name(f"checked{number}", functools.partial(_arguments, hook))
        self._observe(number, hook, None, values, check, depth)
        self.line(f"if {changed} is None:", depth)
        self._usual_body(further_in, core, inner, values, depth + 1, tail=tail)
        self.line("else:", depth)
        rest = f"{prefix}rest{number}"
        if rest not in self.names:
            plain = not further_in and core is None
            self.names[rest] = inner if plain else self.shape.segment(further_in, core, inner, usual=False).function()
        value = changed if hook.on_error != "raise" else f"{check}({changed})"
        self.line(f"{prefix}args, {prefix}kwargs = {value}", depth + 1)
        self.line(f"{target}{awaits}{rest}(*{prefix}args, **{prefix}kwargs)", depth + 1)

    def _number(self, hook: Hook) -> int:
        return self._numbers.setdefault(id(hook), len(self._numbers))

    def _mark(self, what: str | int, hook: Hook, depth: int = 0) -> None:
        self.line(f"{self.name(f'mark{what}', hook.mark)}.ran = True", depth)
        if hook.counted:
            self.line(f"{self.name(f'record{what}', hook)}.calls += 1", depth)

    def _settle(self, variable: str, *, condition: str, depth: int = 0) -> None:
        import inspect

        awaitable = self.name("isawaitable", inspect.isawaitable)
        name = f"{self.shape.prefix}{variable}"
        self.line(f"if {condition}{awaitable}({name}): {name} = await {name}", depth)

    def _forward(self, function: str, values: _Values) -> str:
        """A call of the target, or of what leads to it."""
        if values.usual is not None:
            return f"{function}({values.usual})"
        if self.shape.exact:
            return f"{function}({self.shape.parameters.forward(values.variables)})"
        args, kwargs = values.variables
        return f"({function}(*{args}, **{kwargs}) if {kwargs} else {function}(*{args}))"

    def _call(self, what: str | int, hook: Hook, leading: str | None, values: _Values, depth: int = 0) -> str:
        """A call of a hook; a typed one behind ``*args, **kwargs`` has them bound to the target's parameters first."""
        function = self.name(f"hook{what}", hook.function)
        first = f"{leading}, " if leading else ""
        typed = self.shape.typed[id(hook)]
        if values.usual is not None:
            return f"{function}({first}{values.usual})"
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

    def _observe(
        self, what: int, hook: Hook, leading: str | None, values: _Values, check: str | None, depth: int
    ) -> None:
        """Call a hook that only looks on, leave what it returned in ``changed``, and do with an error as it asked."""
        prefix = self.shape.prefix
        changed = f"{prefix}changed"
        tolerant = hook.on_error != "raise"
        if self.shape.typed[id(hook)] is not None:
            self._bound(values, depth)  # a call that does not fit the target is the caller's error, not the hook's
        if tolerant:
            record = self.name(f"record{what}", hook)
            self.line(f"{changed} = None", depth)
            if hook.on_error == "disable":
                self.line(f"if not {record}.disabled:", depth)
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
        self._observe(index, hook, None, values, check, 0)
        after = _Values(values.variables)
        if keep and values.variables:
            after = _Values(self.fresh(len(values.variables)))
            self.line(f"{', '.join(after.variables)}, = {', '.join(values.variables)},")
        value = changed if hook.on_error != "raise" else f"{check}({changed})"
        target = f"{', '.join(after.variables)}, = " if after.variables else ""
        self.line(f"if {changed} is not None: {target}{value}")
        return after

    def _after(self, index: int, hook: Hook, values: _Values, depth: int) -> None:
        prefix = self.shape.prefix
        self._observe(index, hook, f"{prefix}result", values, None, depth)
        none = self.name("NONE", NONE)
        self.line(f"if {prefix}changed is not None:", depth)
        self.line(f"{prefix}result = None if {prefix}changed is {none} else {prefix}changed", depth + 1)


_LAZY = (Kind.GENERATOR, Kind.ASYNC_GENERATOR)  # starting one costs more than handing on its arguments
_MISSING = object()
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
