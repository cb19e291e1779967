"""The hooks of one target and the original, fused into one function made from source text.

However many hooks there are, a call runs one function, and at most one more for each AROUND: what it is given as
``original_fn``. Each hook is marked as *ran* before it is called for the first time; afterwards one comparison is all
that is left of it. Order: a REPLACE stands innermost; the others wrap it by rising priority, then in the order of
registration, so that the highest priority is the outermost.

Where every hook is typed the function has the target's own parameters and calls by position. Otherwise it takes
``*args, **kwargs`` and hands them on as they came. The usual calls of the target (few arguments by position, at most a
keyword-only one by name) have a text of their own in which hooks are called with just these arguments, which costs
about half of unpacking ``*args, **kwargs`` for each.
"""

from __future__ import annotations

from collections.abc import Iterable

from hookery import signatures
from hookery.callees import Call, Callee, Kind, is_coroutine_function
from hookery.fused import Fused, Fuser
from hookery.generation import HookShape
from hookery.hooks import Hook, HookType


def replacement_order(hook: Hook) -> tuple[int, int]:
    """Sort key of REPLACE hooks: the last one wins (the highest priority, then the last registered)."""
    return (hook.priority, hook.order)


def fuse(
    callee: Callee, hooks: Iterable[Hook], *, prelude: Call | None = None, free_variables: tuple[str, ...] = ()
) -> Fused:
    """Fuse ``hooks`` and the original.

    For a coroutine function the fused one is a coroutine function: AFTER sees the awaited value, a synchronous AROUND
    or REPLACE may return an awaitable. For a generator function the hooks run at the first ``next`` and AFTER sees the
    generator object; likewise for an asynchronous generator.

    Args:
        prelude: called at the start of every call; where it returns true, the call goes to the original.
        free_variables: names that the code shall have as free variables, which it does not use.

    Raises:
        TypeError: a coroutine function hooks a target that is not one, or a typed hook does not fit the target.
    """
    ordered = sorted(hooks, key=replacement_order)
    shapes: dict[int, HookShape] = {}
    for hook in ordered:
        asynchronous = is_coroutine_function(hook.function)
        if asynchronous and callee.kind is not Kind.COROUTINE:
            raise TypeError(
                f"{hook.describe()}: the hook is a coroutine function but its target is not; nothing would await it"
            )
        typed = signatures.typed_call(hook, callee.signature, first_is_bound=callee.first_is_bound)
        shapes[id(hook)] = HookShape(hook.type, hook.on_error, hook.counted, asynchronous, typed)
    fuser = Fuser(callee, shapes)
    replacements = [hook for hook in ordered if hook.type is HookType.REPLACE]
    core = replacements[-1] if replacements else None
    layers: list[Hook] = []
    inner: Call = callee.original
    for hook in (hook for hook in ordered if hook.type is not HookType.REPLACE):  # from the inside out
        if hook.type is HookType.AROUND:
            if layers or core is not None:
                inner = fuser.inner(layers, core, inner)
            layers, core = [], hook
        else:
            layers.insert(0, hook)
    return fuser.segment(layers, core, inner, outermost=True, prelude=prelude, free_variables=free_variables)
