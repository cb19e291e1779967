"""What runs while a step runs as it is written: the functions in it, and the hooks.

Hooks whose calls are counted tell by that. Of the others, and of what is hooked later, it is known by the functions
that ran: those that are written in Python by their code, those in C as far as a profiler is told of them. What neither
tells is not known, and said to be so.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import hookery
from hookery import patch_table
from hookery.engines import written_code
from hookery.locking import lock

Watcher = Callable[[types.FrameType, str, object], None]
Known = bool | None
"""Whether something is so; `None` where that cannot be told."""

# The identity of a function or of a class, and a name: the objects themselves would be listed as held past the hooks.
_InC = tuple[int, str]

_INSTEAD = (hookery.HookType.REPLACE, hookery.HookType.AROUND)


class Noticed:
    """What ran in a step, or in several.

    Attributes:
        hooks: the hooks that ran in it, each with whether that is sure.
    """

    def __init__(self) -> None:
        self.hooks: dict[hookery.Hook, bool] = {}
        self._codes: set[types.CodeType] = set()
        self._functions: set[_InC] = set()
        self._watched = True
        self._saw_functions_in_c = True

    def add(self, other: Noticed) -> None:
        """What ran in another step is in this too."""
        self.hooks |= other.hooks
        self._codes |= other._codes
        self._functions |= other._functions
        self._watched &= other._watched
        self._saw_functions_in_c &= other._saw_functions_in_c

    def has(self, function: object) -> Known:
        """Whether a function ran. One that a decorator has made without `functools.wraps` is taken for all that it
        made."""
        while True:
            if isinstance(function, (functools.partial, functools.partialmethod)):
                function = function.func
            elif isinstance(function, types.MethodType):
                function = function.__func__
            else:
                break
        if function is None:
            return False  # there was nothing to run
        if isinstance(function, type):  # what counts is whether one was made
            made = function.__init__  # type: ignore[misc]
            return self.has(made) if isinstance(made, types.FunctionType) else False
        written = inspect.unwrap(function) if callable(function) else function
        if isinstance(written, types.FunctionType):
            ran = written_code(written) in self._codes
            # What remembers its results may have been called all the same.
            return ran or (False if self._watched and isinstance(function, types.FunctionType) else None)
        in_c = isinstance(function, (types.BuiltinFunctionType, types.MethodDescriptorType))
        if in_c and not self._saw_functions_in_c:
            return None
        if isinstance(function, types.BuiltinFunctionType):
            return not self._functions.isdisjoint(_in_c(function))
        if isinstance(function, types.MethodDescriptorType):
            ran = (id(function.__objclass__), function.__name__) in self._functions
            return ran or (None if function.__name__.startswith("__") else False)  # operators call it unseen
        called = inspect.getattr_static(type(function), "__call__", None)
        # Another of its class may have been called.
        return None if not isinstance(called, types.FunctionType) or self.has(called) is not False else False

    def has_target_of(self, hook: hookery.Hook) -> Known:
        """Whether something ran that `hook` is on."""
        return any_of(self.has(patch.target.inner) for patch in _patches_of(hook))

    def _note_hooks(self, before: dict[hookery.Hook, int]) -> None:
        self.hooks |= dict.fromkeys(_ran_since(before), True)
        for hook in applied_hooks():
            if not hook.counted:
                sure = self._ran(hook)
                if sure is not False:
                    self.hooks.setdefault(hook, sure is True)
        # What a hook runs in place of is part of the step, and whoever hooks it later hooks that.
        for hook in self.hooks:
            for patch in _patches_of(hook):
                if any(other.type in _INSTEAD and other in self.hooks for other in patch.hooks):
                    self._take(patch.target.inner)

    def _ran(self, hook: hookery.Hook) -> Known:
        """Whether a hook whose calls are not counted ran."""
        itself = self.has(hook.function)
        if itself is False:
            return False
        # It may be on several targets.
        on = any_of(
            any_of(self.has(function) for function in (patch.target.inner, *_instead_of(patch)))
            for patch in _patches_of(hook)
        )
        return None if on and itself is None else on

    def _take(self, function: object) -> None:
        function = inspect.unwrap(function) if callable(function) else function
        if isinstance(function, types.FunctionType):
            self._codes.add(written_code(function))
        elif isinstance(function, types.BuiltinFunctionType):
            self._functions.update(_in_c(function))
        elif isinstance(function, types.MethodDescriptorType):
            self._functions.add((id(function.__objclass__), function.__name__))


def any_of(answers: Iterable[Known]) -> Known:
    """Whether one of several things is so."""
    found = set(answers)
    return True if True in found else None if None in found else False


def _instead_of(patch: patch_table.Patch) -> list[object]:
    """What may run in place of a target."""
    return [hook.function for hook in patch.hooks if hook.type in _INSTEAD]


def _in_c(function: types.BuiltinFunctionType) -> list[_InC]:
    """What a function in C is known by; a method by each class that it may be found in."""
    of = function.__self__
    if of is None or isinstance(of, (type, types.ModuleType)):
        return [(id(function), function.__name__)]
    return [(id(cls), function.__name__) for cls in type(of).__mro__]


# How often each hook had run when the step began or was last gone on with; None while nobody wants to know.
_before: dict[hookery.Hook, int] | None = None
# What notes functions meanwhile, and what has it do so.
_note: Watcher | None = None
_watch: Callable[[Watcher | None], None] | None = None


@contextmanager
def noticed() -> Iterator[Noticed]:
    """A context in which a step runs as it is written, and that tells what has run in it, but for what ran only where
    it is `left`.

    Needs counting (`hookery.registry.counting`), which every process of the runtime has switched on.
    """
    global _before, _note, _watch
    found = Noticed()
    codes: dict[int, types.CodeType] = {}
    functions = found._functions

    def note(frame: types.FrameType, event: str, arg: object) -> None:
        if event == "call":
            codes[id(frame.f_code)] = frame.f_code
        elif event == "c_call" and isinstance(arg, types.BuiltinFunctionType):
            functions.update(_in_c(arg))

    _before = _calls()
    _note, _watch = note, _free_watch()
    found._watched, found._saw_functions_in_c = _watch is not None, _watch is sys.setprofile
    if _watch is not None:
        _watch(note)
    try:
        yield found
    finally:
        if _watch is not None:
            _watch(None)
        before, _before, _note, _watch = _before, None, None, None
    found._codes.update(codes.values())
    found._note_hooks(before)


def _free_watch() -> Callable[[Watcher | None], None] | None:
    """What tells of the calls in this thread and is not in use: there is one profiler and one tracer in a thread, and
    one that is written in C cannot be put back before CPython 3.12."""
    if sys.getprofile() is None:
        return sys.setprofile
    return sys.settrace if sys.gettrace() is None else None


@contextmanager
def left() -> Iterator[None]:
    """A context in which what runs is no part of the step that is recorded or compiled."""
    global _before
    if _before is None:
        yield
        return
    inside = _ran_since(_before)
    if _watch is not None:
        _watch(None)
    try:
        yield
    finally:
        if _watch is not None:
            _watch(_note)
        # What has run in the step so far must still show at its end.
        _before = {hook: calls - (hook in inside) for hook, calls in _calls().items()}


def applied_hooks() -> list[hookery.Hook]:
    """The hooks of all registries that are applied."""
    with lock:
        return list(dict.fromkeys(hook for patch in patch_table.all_patches() for hook in patch.hooks))


def _patches_of(hook: hookery.Hook) -> list[patch_table.Patch]:
    with lock:  # another thread may be applying hooks
        return patch_table.patches_of(hook)


def _ran_since(before: dict[hookery.Hook, int]) -> list[hookery.Hook]:
    return [hook for hook, calls in _calls().items() if calls > before.get(hook, 0)]


def _calls() -> dict[hookery.Hook, int]:
    return {hook: hook.calls for hook in applied_hooks()}
