"""How the arguments of a call are handed on: as the caller passed them, or by the target's own parameters.

A hook without ``*args`` or ``**kwargs`` of its own is *typed*: it names the target's parameters. It is checked against
the target when it is applied, so that every call that the target accepts reaches it, and gets defaults filled in.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hookery.hooks import Hook, HookType

if TYPE_CHECKING:
    import inspect

_VARARGS, _VARKEYWORDS = 0x04, 0x08  # inspect.CO_VARARGS and CO_VARKEYWORDS; importing inspect costs milliseconds
_LEADING = {HookType.AFTER: "result", HookType.AROUND: "original_fn"}


class Parameters(NamedTuple):
    """The parameters of a target by kind, as source text needs them; defaults are set on the finished function."""

    positional_only: tuple[str, ...]
    positional: tuple[str, ...]
    variadic: str | None
    keyword_only: tuple[str, ...]
    keywords: str | None
    optional: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order of a signature."""
        return (
            *self.positional_only,
            *self.positional,
            *((self.variadic,) if self.variadic else ()),
            *self.keyword_only,
            *((self.keywords,) if self.keywords else ()),
        )

    def declaration(self) -> str:
        """What stands between the parentheses of a ``def``; every default is a placeholder."""
        parts = [self._declare(name) for name in self.positional_only]
        if parts:
            parts.append("/")
        parts += [self._declare(name) for name in self.positional]
        if self.variadic:
            parts.append(f"*{self.variadic}")
        elif self.keyword_only:
            parts.append("*")
        parts += [self._declare(name) for name in self.keyword_only]
        if self.keywords:
            parts.append(f"**{self.keywords}")
        return ", ".join(parts)

    def _declare(self, name: str) -> str:
        return f"{name}=None" if name in self.optional else name

    def forward(self, values: Sequence[str]) -> str:
        """What stands between the parentheses of a call of the target; ``values`` are the variables, as ``names``."""
        value = dict(zip(self.names, values, strict=True))
        parts = [value[name] for name in (*self.positional_only, *self.positional)]
        if self.variadic:
            parts.append(f"*{value[self.variadic]}")
        parts += [f"{name}={value[name]}" for name in self.keyword_only]
        if self.keywords:
            parts.append(f"**{value[self.keywords]}")
        return ", ".join(parts)


def of_function(function: types.FunctionType) -> Parameters:
    """The parameters of a plain function, read from its code."""
    code = function.__code__
    names = code.co_varnames
    count, keyword_count = code.co_argcount, code.co_kwonlyargcount
    positional, keyword_only = names[:count], names[count : count + keyword_count]
    following = count + keyword_count
    variadic = names[following] if code.co_flags & _VARARGS else None
    keywords = names[following + (variadic is not None)] if code.co_flags & _VARKEYWORDS else None
    optional = {*positional[count - len(function.__defaults__ or ()) :], *(function.__kwdefaults__ or {})}
    return Parameters(
        positional[: code.co_posonlyargcount],
        positional[code.co_posonlyargcount :],
        variadic,
        keyword_only,
        keywords,
        frozenset(optional),
    )


def of_signature(signature: inspect.Signature) -> Parameters:
    """The parameters that a signature shows."""
    kinds: dict[str, list[str]] = {}
    for parameter in signature.parameters.values():
        kinds.setdefault(parameter.kind.name, []).append(parameter.name)
    return Parameters(
        tuple(kinds.get("POSITIONAL_ONLY", ())),
        tuple(kinds.get("POSITIONAL_OR_KEYWORD", ())),
        next(iter(kinds.get("VAR_POSITIONAL", ())), None),
        tuple(kinds.get("KEYWORD_ONLY", ())),
        next(iter(kinds.get("VAR_KEYWORD", ())), None),
        frozenset(name for name, parameter in signature.parameters.items() if parameter.default is not parameter.empty),
    )


def signature_of(function: Any) -> inspect.Signature | None:
    """Its signature, or ``None`` where it has none that can be read (some C functions)."""
    import inspect

    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def read_when_asked(read: Callable[[], inspect.Signature | None]) -> inspect.Signature:
    """A signature that is read when somebody looks at it: most never are, and reading one takes a third of the time of
    hooking a function. ``read`` must give one, and the same one every time."""
    made: inspect.Signature = _deferred_signature()(read)
    return made


@functools.cache
def _deferred_signature() -> Any:
    import inspect

    class DeferredSignature(inspect.Signature):
        __slots__ = ("_read",)

        def __init__(self, read: Callable[[], inspect.Signature]) -> None:
            self._read = read

        @property
        def _parameters(self) -> Any:
            return self._read().parameters

        @property
        def _return_annotation(self) -> Any:
            return self._read().return_annotation

        def replace(self, **changes: Any) -> inspect.Signature:  # type: ignore[override]
            return self._read().replace(**changes)

        def __reduce__(self) -> Any:
            return self._read().__reduce__()

    return DeferredSignature


class TypedCall(NamedTuple):
    """How a typed hook is called: per parameter of the target, by position (``None``) or as a keyword of this name."""

    keywords: tuple[str | None, ...]
    stars: tuple[str, ...]

    def arguments(self, values: Sequence[str]) -> str:
        """What stands between the parentheses after the hook's own first argument."""
        return ", ".join(
            f"{stars}{value}" if stars or keyword is None else f"{keyword}={value}"
            for value, keyword, stars in zip(values, self.keywords, self.stars, strict=True)
        )


def typed_call(hook: Hook, target: Callable[[], inspect.Signature | None], *, first_is_bound: bool) -> TypedCall | None:
    """How ``hook`` is called if it is typed, or ``None`` for one that takes arguments as the caller passed them.

    Args:
        target: gives the target's signature; asked for only if the hook may be typed.
        first_is_bound: the target's first parameter is ``self`` or ``cls``, whatever the hook calls it.

    Raises:
        TypeError: a typed hook does not fit; the message shows both signatures.
    """
    function = hook.function
    both = _VARARGS | _VARKEYWORDS
    if type(function) is types.FunctionType and function.__code__.co_flags & both == both:
        code = function.__code__
        if code.co_argcount + code.co_kwonlyargcount <= (hook.type in _LEADING):
            return None
    signature = signature_of(function)
    if signature is None:
        return None
    of_target = target()
    if of_target is None:
        return None
    own = of_signature(signature)
    found = _match(own, of_signature(of_target), leading=hook.type in _LEADING, first_is_bound=first_is_bound)
    if isinstance(found, TypedCall):
        return found
    if own.variadic or own.keywords:
        return None
    leading = f"{_LEADING[hook.type]}, and then " if hook.type in _LEADING else ""
    raise TypeError(
        f"{hook.describe()}: the hook's parameters are {signature}, the target's are {of_target}; a typed hook takes"
        f" {leading}what the target takes ({found}); take *args, **kwargs for arguments as the caller passed them"
    )


def _match(own: Parameters, target: Parameters, *, leading: bool, first_is_bound: bool) -> TypedCall | str:
    """Match the hook's parameters with the target's, or say in words what does not fit."""
    if (own.variadic and not target.variadic) or (own.keywords and not target.keywords):
        return "it takes any arguments, not the target's parameters"
    unbound = {name: name in own.positional_only for name in (*own.positional_only, *own.positional)}
    if leading:
        if not unbound:
            return "its first parameter is missing"
        del unbound[next(iter(unbound))]
    by_keyword = {*unbound, *own.keyword_only} - {name for name, only in unbound.items() if only}
    taken: set[str] = set()
    keywords: list[str | None] = []
    stars: list[str] = []
    positional = [*target.positional_only, *target.positional]
    in_order = True
    for name in target.names:
        following = next((mine for mine in unbound if mine not in taken), None) if in_order else None
        keyword, star = None, ""
        if name == target.variadic or name == target.keywords:
            mine = own.variadic if name == target.variadic else own.keywords
            if mine is None or (name == target.variadic and following is not None):
                return f"nothing takes {'*' if name == target.variadic else '**'}{name}"
            star = "*" if name == target.variadic else "**"
        elif (
            name in positional
            and following is not None
            and (
                following == name
                or unbound[following]
                or name in target.positional_only
                or (first_is_bound and name == positional[0])
            )
        ):
            taken.add(following)
        elif name in by_keyword and name not in taken and name not in target.positional_only:
            keyword = name
            taken.add(name)
            in_order = in_order and name not in positional
        else:
            return f"nothing takes {name!r}"
        keywords.append(keyword)
        stars.append(star)
    if target.variadic and not in_order:
        return f"*{target.variadic} cannot follow parameters in another order"
    left = [name for name in (*unbound, *own.keyword_only) if name not in taken and name not in own.optional]
    if left:
        return f"nothing is passed for {left[0]!r}"
    return TypedCall(tuple(keywords), tuple(stars))
