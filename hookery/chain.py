"""The hooks of one target, made into one callable.

Each layer marks its hook as *ran* before calling it. Order: a REPLACE stands innermost; the others wrap it by rising
priority, then in the order of registration, so that the highest priority is the outermost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from hookery.hooks import NONE, Hook, HookType

Call = Callable[..., Any]


def replacement_order(hook: Hook) -> tuple[int, int]:
    """Sort key of REPLACE hooks: the last one wins (the highest priority, then the last registered)."""
    return (hook.priority, hook.order)


def build(original: Call, hooks: Iterable[Hook], *, like: Any = None) -> Call:
    """Fuse ``hooks`` and ``original`` into one callable that takes what ``original`` takes.

    ``like`` is the function that says what kind of callable the target is, where ``original`` only leads to it.

    For a coroutine function the layers are coroutine functions: AFTER sees the awaited value, a synchronous AROUND or
    REPLACE may return an awaitable. For a generator function the hooks run at the first ``next`` and AFTER sees the
    generator object; likewise for an asynchronous generator.

    Raises:
        TypeError: a coroutine function hooks a target that is not one.
    """
    ordered = sorted(hooks, key=replacement_order)
    replacements = [hook for hook in ordered if hook.type is HookType.REPLACE]
    others = [hook for hook in ordered if hook.type is not HookType.REPLACE]
    like = original if like is None else like
    asynchronous = _is_coroutine_function(like)
    for hook in ordered:
        if not asynchronous and _is_coroutine_function(hook.function):
            raise TypeError(
                f"{hook.describe()}: the hook is a coroutine function but its target is not; nothing would await it"
            )
    layers = _ASYNCHRONOUS if asynchronous else _SYNCHRONOUS
    call = layers[HookType.REPLACE](original, replacements[-1]) if replacements else original
    for hook in others:
        call = layers[hook.type](call, hook)
    if inspect.isgeneratorfunction(like):
        return _at_first_next(call)
    if inspect.isasyncgenfunction(like):
        return _at_first_anext(call)
    return call


def _is_coroutine_function(function: Any) -> bool:
    """Whether calling it makes a coroutine; for an object with ``__call__`` that method decides."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(vars(type(function)).get("__call__"))


def _mark(hook: Hook) -> Call:
    """What a layer calls: the hook itself; with counting on, the hook behind a counter."""
    function = hook.function
    if not hook.counted:
        return function

    def counted(*args: Any, **kwargs: Any) -> Any:
        hook.calls += 1
        return function(*args, **kwargs)

    return counted


def _arguments(hook: Hook, changed: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check what a BEFORE hook returned."""
    if type(changed) is tuple and len(changed) == 2 and isinstance(changed[0], tuple) and isinstance(changed[1], dict):
        return changed
    raise TypeError(f"{hook.describe()}: a BEFORE hook returns None or (args, kwargs), not {changed!r}")


def _replace(original: Call, hook: Hook) -> Call:
    call_hook = _mark(hook)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        hook.ran = True
        return call_hook(*args, **kwargs)

    return replaced


def _before(inner: Call, hook: Hook) -> Call:
    call_hook = _mark(hook)

    def before(*args: Any, **kwargs: Any) -> Any:
        hook.ran = True
        changed = call_hook(*args, **kwargs)
        if changed is not None:
            args, kwargs = _arguments(hook, changed)
        return inner(*args, **kwargs)

    return before


def _after(inner: Call, hook: Hook) -> Call:
    call_hook = _mark(hook)

    def after(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        hook.ran = True
        changed = call_hook(result, *args, **kwargs)
        if changed is None:
            return result
        return None if changed is NONE else changed

    return after


def _around(inner: Call, hook: Hook) -> Call:
    call_hook = _mark(hook)

    def around(*args: Any, **kwargs: Any) -> Any:
        hook.ran = True
        return call_hook(inner, *args, **kwargs)

    return around


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _replace_async(original: Call, hook: Hook) -> Call:
    call_hook = _mark(hook)

    async def replaced(*args: Any, **kwargs: Any) -> Any:
        hook.ran = True
        return await _settled(call_hook(*args, **kwargs))

    return replaced


def _before_async(inner: Call, hook: Hook) -> Call:
    call_hook = _mark(hook)

    async def before(*args: Any, **kwargs: Any) -> Any:
        hook.ran = True
        changed = await _settled(call_hook(*args, **kwargs))
        if changed is not None:
            args, kwargs = _arguments(hook, changed)
        return await inner(*args, **kwargs)

    return before


def _after_async(inner: Call, hook: Hook) -> Call:
    call_hook = _mark(hook)
    hook_is_async = _is_coroutine_function(hook.function)

    async def after(*args: Any, **kwargs: Any) -> Any:
        result = await inner(*args, **kwargs)
        hook.ran = True
        changed = call_hook(result, *args, **kwargs)
        if hook_is_async:
            changed = await changed
        if changed is None:
            return result
        return None if changed is NONE else changed

    return after


def _around_async(inner: Call, hook: Hook) -> Call:
    call_hook = _mark(hook)

    async def around(*args: Any, **kwargs: Any) -> Any:
        hook.ran = True
        return await _settled(call_hook(inner, *args, **kwargs))

    return around


_SYNCHRONOUS = {
    HookType.REPLACE: _replace,
    HookType.BEFORE: _before,
    HookType.AFTER: _after,
    HookType.AROUND: _around,
}
_ASYNCHRONOUS = {
    HookType.REPLACE: _replace_async,
    HookType.BEFORE: _before_async,
    HookType.AFTER: _after_async,
    HookType.AROUND: _around_async,
}


def _at_first_next(call: Call) -> Call:
    def generator(*args: Any, **kwargs: Any) -> Any:
        return (yield from call(*args, **kwargs))

    return generator


def _at_first_anext(call: Call) -> Call:
    """``yield from`` for asynchronous generators; what ``call`` returns need be no more than an async iterable."""

    async def generator(*args: Any, **kwargs: Any) -> Any:
        inner = aiter(call(*args, **kwargs))
        try:
            value = await anext(inner)
            while True:
                try:
                    sent = yield value
                except GeneratorExit:
                    if hasattr(inner, "aclose"):
                        await inner.aclose()
                    raise
                except BaseException as error:  # athrow hands whatever it is to the inner generator
                    if not hasattr(inner, "athrow"):
                        raise
                    value = await inner.athrow(error)
                else:
                    value = await (anext(inner) if sent is None else inner.asend(sent))
        except StopAsyncIteration:
            return

    return generator
