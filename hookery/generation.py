"""The source text of the functions that hooks are fused into.

Text depends on the shapes of the hooks and of the target alone, never on a hook or a target itself: what is written
once serves all that look alike. The names that the code looks up are given to it by :mod:`hookery.fused`.
"""

from __future__ import annotations

import builtins
import functools
import types
from typing import Any, Final, NamedTuple

from hookery.callees import Kind
from hookery.hooks import NONE, HookType
from hookery.signatures import Parameters, TypedCall

MISSING: Final = object()  # the default of a parameter that the caller may leave out


class HookShape(NamedTuple):
    """What of a hook its text depends on. ``typed``: how a typed hook is called."""

    type: HookType
    on_error: str
    counted: bool
    asynchronous: bool
    typed: TypedCall | None


class SegmentShape(NamedTuple):
    """One function to be written: the BEFORE and AFTER ``layers`` from the outside in, around the call of ``core``, or
    of what is further in if there is none.

    Args:
        kind: what calling the target makes.
        parameters: the target's, where the function has them as its own (``exact``) or a typed hook needs them.
        usual: the calls that have texts of their own.
    """

    kind: Kind
    exact: bool
    parameters: Parameters
    usual: tuple[UsualCall, ...]
    layers: tuple[HookShape, ...]
    core: HookShape | None
    outermost: bool
    prelude: bool
    free_variables: tuple[str, ...]


class Text(NamedTuple):
    """What was written. ``constants`` and ``roles`` are the names that the code looks up: a role says by a word, and by
    the number of a layer (``None``: the core), what the name stands for. ``missing`` is the number of parameters whose
    default is :data:`MISSING`.
    """

    code: types.CodeType
    constants: dict[str, Any]
    roles: dict[str, tuple[str, int | None]]
    missing: int


@functools.lru_cache(maxsize=1024)
def write(segment: SegmentShape) -> Text:
    """The text for one segment."""
    prefix = "__hookery_"
    while any(name.startswith(prefix) for name in segment.parameters.names):
        prefix += "_"
    writer = _Writer(segment, prefix)
    if segment.prelude:
        writer.prelude()
    takes = segment.parameters.declaration() if segment.exact else f"*{prefix}args, **{prefix}kwargs"
    core, layers = segment.core, segment.layers
    lazy = segment.outermost and segment.kind in _LAZY
    alone = not layers and core is not None and core.type is HookType.REPLACE
    # Where a REPLACE is all there is, the tuple may as well be handed on as it is.
    calls = [] if lazy else [each for each in segment.usual if each.keyword or not alone]
    missing = 0
    if calls and (layers or core is not None):
        if segment.outermost or any(each.keyword for each in calls):
            writer.usual_calls(calls)
        else:
            missing = calls[0].positional
            takes = writer.usual_positional_calls()
    writer.body()
    if segment.free_variables:
        writer.line(f"if 0: {', '.join(segment.free_variables)}")
    coroutine = segment.kind is Kind.COROUTINE or (segment.outermost and segment.kind is Kind.ASYNC_GENERATOR)
    lines = [f"{'async ' if coroutine else ''}def function({takes}):", *(f"    {line}" for line in writer.lines)]
    if segment.free_variables:
        lines = [f"def scope({', '.join(segment.free_variables)}):", *(f"    {line}" for line in lines)]
    code = _compiled("\n".join(lines), nested=bool(segment.free_variables))
    return Text(code, writer.constants, writer.roles, missing)


@functools.lru_cache(maxsize=1024)
def write_binder(parameters: Parameters) -> types.CodeType:
    """The text of a function that takes what the target takes and returns a tuple of it, parameter by parameter."""
    values = "".join(f"{name}, " for name in parameters.names)
    return _compiled(f"def function({parameters.declaration()}):\n    return ({values})", nested=False)


class UsualCall(NamedTuple):
    """A usual way to call the target: so many arguments by position, and perhaps one by name."""

    positional: int
    keyword: str | None = None


_USUAL_COUNTS = 3  # each has a text of its own


@functools.lru_cache(maxsize=1024)
def usual_calls(parameters: Parameters) -> tuple[UsualCall, ...]:
    positional = [*parameters.positional_only, *parameters.positional]
    least = sum(name not in parameters.optional for name in positional)
    counts = range(least, min(len(positional), least + _USUAL_COUNTS - 1) + 1)
    needed = [name for name in parameters.keyword_only if name not in parameters.optional]
    if len(needed) > 1:
        return ()
    usual = [UsualCall(count) for count in counts] if not needed else []
    # At most one: of two, the order in which the caller passed them would be lost.
    for keyword in needed or parameters.keyword_only[:2]:
        usual += [UsualCall(count, keyword) for count in counts[:2]]
    return tuple(usual)


class _Values:
    """The variables that hold the arguments at one point of the fused function.

    Args:
        variables: one for each parameter; or, where the function takes anything, those of args and kwargs.
        usual: in the text of a usual call: what stands between the parentheses.
    """

    def __init__(self, variables: tuple[str, ...], usual: str | None = None) -> None:
        self.variables = variables
        self.bound: tuple[str, ...] | None = None  # where it takes anything: those that hold them one by one
        self.usual = usual


class _Writer:
    """The text of one function, and the names that it looks up."""

    def __init__(self, segment: SegmentShape, prefix: str) -> None:
        self.segment = segment
        self.prefix = prefix
        self.constants: dict[str, Any] = {}
        self.roles: dict[str, tuple[str, int | None]] = {}
        self.lines: list[str] = []
        self._variables = 0

    def line(self, text: str, depth: int = 0) -> None:
        self.lines.append("    " * depth + text)

    def constant(self, what: str, value: Any) -> str:
        name = f"{self.prefix}{what}"
        self.constants[name] = value
        return name

    def role(self, role: str, number: int | None = None) -> str:
        name = f"{self.prefix}{role}{'' if number is None else number}"
        self.roles[name] = (role, number)
        return name

    def fresh(self, count: int) -> tuple[str, ...]:
        self._variables += 1
        return tuple(f"{self.prefix}value{self._variables}_{index}" for index in range(count))

    def prelude(self) -> None:
        """Call it; a call that it says is meant for the original goes there."""
        prefix, segment = self.prefix, self.segment
        prelude = self.role("prelude")
        if segment.kind is Kind.ASYNC_GENERATOR:  # it cannot return what another yields
            self.line(f"{prelude}()")
            return
        values = _Values(segment.parameters.names if segment.exact else (f"{prefix}args", f"{prefix}kwargs"))
        call = self._forward(self.role("original"), values)
        self.line(f"if {prelude}():")
        how = {Kind.COROUTINE: "await ", Kind.GENERATOR: "yield from "}.get(segment.kind, "")
        self.line(f"return ({how}{call})", 1)

    def body(self) -> None:
        """The text for any call."""
        prefix, segment = self.prefix, self.segment
        values = _Values(segment.parameters.names if segment.exact else (f"{prefix}args", f"{prefix}kwargs"))
        afters: list[tuple[int, _Values]] = []
        for number, hook in enumerate(segment.layers):
            if hook.type is HookType.BEFORE:
                values = self._before(number, values, keep=bool(afters))
            else:
                afters.append((number, values))
        lazy = segment.outermost and segment.kind in _LAZY
        simple = not afters and not lazy
        self._core(values, tail=simple, depth=0)
        for number, seen in reversed(afters):
            self._after(number, seen, 0)
        if lazy and segment.kind is Kind.GENERATOR:
            self.line(f"return (yield from {prefix}result)")
        elif lazy:
            for builtin in ("aiter", "anext", "hasattr", "GeneratorExit", "BaseException", "StopAsyncIteration"):
                self.constant(builtin, getattr(builtins, builtin))
            self.lines += _DELEGATE.replace("@", prefix).splitlines()
        elif not simple:
            self.line(f"return {prefix}result")

    def _core(self, values: _Values, *, tail: bool, depth: int) -> None:
        """The call of what is innermost: the original, a REPLACE, or an AROUND that is given what is further in."""
        core = self.segment.core
        awaits = self.segment.kind is Kind.COROUTINE
        target = "return " if tail else f"{self.prefix}result = "
        if core is None:
            call = self._forward(self.role("inner"), values)
            self.line(f"{target}{f'await {call}' if awaits else call}", depth)
            return
        self._note_first_run(None, core, depth)
        leading = self.role("inner") if core.type is HookType.AROUND else None
        call = self._call(None, core, leading, values, depth)
        if awaits and not core.asynchronous:
            self.line(f"{self.prefix}result = {call}", depth)
            self._settle("result", condition="", depth=depth)
            if tail:
                self.line(f"return {self.prefix}result", depth)
        else:
            self.line(f"{target}{f'await {call}' if awaits else call}", depth)

    def usual_calls(self, calls: list[UsualCall]) -> None:
        """Texts for the usual calls of a function that takes ``*args, **kwargs``."""
        prefix = self.prefix
        length = self.constant("len", len)
        by_keyword: dict[str | None, list[UsualCall]] = {}
        for each in calls:
            by_keyword.setdefault(each.keyword, []).append(each)
        for keyword, like_it in by_keyword.items():
            if keyword is None:
                self.line(f"if not {prefix}kwargs:")
            else:
                self.line(f"if {length}({prefix}kwargs) == 1 and {keyword!r} in {prefix}kwargs:")
            for each in like_it:
                names = self._positional(each.positional)
                self.line(f"if {length}({prefix}args) == {each.positional}:", 1)
                if names:
                    self.line(f"{', '.join(names)}, = {prefix}args", 2)
                values = [*names]
                if keyword is not None:
                    self.line(f"{prefix}keyword = {prefix}kwargs[{keyword!r}]", 2)
                    values.append(f"{keyword}={prefix}keyword")
                self._usual_body(0, _Values((), usual=", ".join(values)), 2, tail=True)

    def usual_positional_calls(self) -> str:
        """Texts for the usual calls, of an inner function that takes what is always passed without making a tuple;
        returns the parameters."""
        prefix, usual = self.prefix, self.segment.usual
        least = usual[0].positional
        names = self._positional(usual[-1].positional)
        missing = self.constant("missing", MISSING)
        given = f"{names[least - 1]} is not {missing}" if least else None
        for each in usual:
            extra = names[least : each.positional]
            if each.positional == least:
                self.line(
                    " and ".join([f"if not {prefix}args", f"not {prefix}kwargs", *([given] if given else [])]) + ":"
                )
            else:
                count = f"{self.constant('len', len)}({prefix}args) == {len(extra)}"
                self.line(f"if {count} and not {prefix}kwargs:")
                self.line(f"{', '.join(extra)}, = {prefix}args", 1)
            self._usual_body(0, _Values((), usual=", ".join(names[: each.positional])), 1, tail=True)
        for taken in range(least, 0, -1):
            self.line(f"{'if' if taken == least else 'elif'} {names[taken - 1]} is not {missing}:")
            self.line(f"{prefix}args = ({', '.join(names[:taken])}, *{prefix}args)", 1)
        declared = [f"{name}=None" for name in names[:least]]
        return ", ".join([*declared, *(["/"] if least else []), f"*{prefix}args", f"**{prefix}kwargs"])

    def _positional(self, count: int) -> list[str]:
        return [f"{self.prefix}{index}" for index in range(count)]

    def _usual_body(self, number: int, values: _Values, depth: int, *, tail: bool) -> None:
        """The layers from ``number`` on and what is in them, for arguments that are known one by one. A BEFORE hook
        that changes them leaves this text: what is further in is then done by a function that takes anything.

        ``tail``: nothing is left to be done with the result.
        """
        prefix = self.prefix
        awaits = "await " if self.segment.kind is Kind.COROUTINE else ""
        target = "return " if tail else f"{prefix}result = "
        if number == len(self.segment.layers):
            self._core(values, tail=tail, depth=depth)
            return
        hook = self.segment.layers[number]
        if hook.type is HookType.AFTER:
            self._usual_body(number + 1, values, depth, tail=False)
            self._after(number, values, depth)
            if tail:
                self.line(f"return {prefix}result", depth)
            return
        changed = f"{prefix}changed"
        check = self.role("checked", number)
        self._observe(number, None, values, check, depth)
        self.line(f"if {changed} is None:", depth)
        self._usual_body(number + 1, values, depth + 1, tail=tail)
        self.line("else:", depth)
        value = changed if hook.on_error != "raise" else f"{check}({changed})"
        self.line(f"{prefix}args, {prefix}kwargs = {value}", depth + 1)
        self.line(f"{target}{awaits}{self.role('rest', number)}(*{prefix}args, **{prefix}kwargs)", depth + 1)

    def _note_first_run(self, number: int | None, hook: HookShape, depth: int) -> None:
        # Storing that it ran at every call would cost twice as much as asking whether this is the first one.
        first = self.role("first", number)
        self.line(f"if {first} is not None: {first}()", depth)
        if hook.counted:
            self.line(f"{self.role('record', number)}.calls += 1", depth)

    def _settle(self, variable: str, *, condition: str, depth: int = 0) -> None:
        import inspect

        awaitable = self.constant("isawaitable", inspect.isawaitable)
        name = f"{self.prefix}{variable}"
        self.line(f"if {condition}{awaitable}({name}): {name} = await {name}", depth)

    def _forward(self, function: str, values: _Values) -> str:
        """A call of the target, or of what leads to it."""
        if values.usual is not None:
            return f"{function}({values.usual})"
        if self.segment.exact:
            return f"{function}({self.segment.parameters.forward(values.variables)})"
        args, kwargs = values.variables
        return f"({function}(*{args}, **{kwargs}) if {kwargs} else {function}(*{args}))"

    def _call(self, number: int | None, hook: HookShape, leading: str | None, values: _Values, depth: int = 0) -> str:
        """A call of a hook; a typed one behind ``*args, **kwargs`` has them bound to the target's parameters first."""
        function = self.role("hook", number)
        first = f"{leading}, " if leading else ""
        if values.usual is not None:
            return f"{function}({first}{values.usual})"
        if hook.typed is not None:
            return f"{function}({first}{hook.typed.arguments(self._bound(values, depth))})"
        args, kwargs = values.variables
        return f"({function}({first}*{args}, **{kwargs}) if {kwargs} else {function}({first}*{args}))"

    def _bound(self, values: _Values, depth: int) -> tuple[str, ...]:
        if self.segment.exact:
            return values.variables
        if values.bound is None:
            names = self.fresh(len(self.segment.parameters.names))
            target = f"{', '.join(names)}, = " if names else ""
            self.line(f"{target}{self._forward(self.role('bind'), values)}", depth)
            if depth == 0:
                values.bound = names
            return names
        return values.bound

    def _observe(self, number: int, leading: str | None, values: _Values, check: str | None, depth: int) -> None:
        """Call a hook that only looks on, leave what it returned in ``changed``, and do with an error as it asked."""
        hook = self.segment.layers[number]
        changed = f"{self.prefix}changed"
        tolerant = hook.on_error != "raise"
        if hook.typed is not None:
            self._bound(values, depth)  # a call that does not fit the target is the caller's error, not the hook's
        if tolerant:
            self.line(f"{changed} = None", depth)
            if hook.on_error == "disable":
                self.line(f"if not {self.role('record', number)}.disabled:", depth)
                depth += 1
        self._note_first_run(number, hook, depth)
        if tolerant:
            self.line("try:", depth)
            depth += 1
        call = self._call(number, hook, leading, values, depth)
        self.line(f"{changed} = {f'await {call}' if hook.asynchronous else call}", depth)
        if hook.type is HookType.BEFORE and self.segment.kind is Kind.COROUTINE and not hook.asynchronous:
            self._settle("changed", condition=f"{changed} is not None and ", depth=depth)
        if tolerant:
            if check:
                self.line(f"if {changed} is not None: {changed} = {check}({changed})", depth)
            depth -= 1
            error = self.constant("Exception", Exception)
            self.line(f"except {error} as {self.prefix}error:", depth)
            self.line(f"{changed} = None", depth + 1)
            self.line(f"{self.role('failed', number)}({self.prefix}error)", depth + 1)

    def _before(self, number: int, values: _Values, *, keep: bool) -> _Values:
        """``keep``: an AFTER hook further out is still to be called with the arguments as they were."""
        changed = f"{self.prefix}changed"
        check = self.role("checked", number)
        self._observe(number, None, values, check, 0)
        after = _Values(values.variables)
        if keep and values.variables:
            after = _Values(self.fresh(len(values.variables)))
            self.line(f"{', '.join(after.variables)}, = {', '.join(values.variables)},")
        value = changed if self.segment.layers[number].on_error != "raise" else f"{check}({changed})"
        target = f"{', '.join(after.variables)}, = " if after.variables else ""
        self.line(f"if {changed} is not None: {target}{value}")
        return after

    def _after(self, number: int, values: _Values, depth: int) -> None:
        prefix = self.prefix
        self._observe(number, f"{prefix}result", values, None, depth)
        none = self.constant("NONE", NONE)
        self.line(f"if {prefix}changed is not None:", depth)
        self.line(f"{prefix}result = None if {prefix}changed is {none} else {prefix}changed", depth + 1)


_LAZY: Final = (Kind.GENERATOR, Kind.ASYNC_GENERATOR)  # starting one costs more than handing on its arguments

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
def _compiled(source: str, *, nested: bool) -> types.CodeType:
    """The code of the function that ``source`` defines."""
    code = compile(source, "<hookery>", "exec", dont_inherit=True)
    for _ in range(2 if nested else 1):
        code = next(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return code
