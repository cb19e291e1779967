"""What a hook's own module may still import.

A module that imports the target after it was hooked is given the original, before the hook can run into itself. Looking
after that costs at every call, and a compiler cannot follow it; so it is done only where such an import is written, and
no longer than it can still be carried out.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from hookery import raw


def _opcode(name: str) -> int:
    import opcode

    return opcode.opmap.get(name, -1)


def looking_after(
    own: Sequence[dict[str, Any]],
    stand_in: Any,
    original: Any,
    imported: Callable[[], Collection[str]],
    done: Callable[[], None],
) -> Callable[[], bool] | None:
    """What ``stand_in`` has to call first so that the modules with the globals ``own``, if they import it later, have
    ``original``. ``None`` where no such import is written.

    It returns whether the call comes from a hook whose module was given the original just now: it was meant for that.

    Args:
        imported: says which names the target can be imported by, once everything is in place.
        done: called when nothing is left to be looked after.
    """
    late = [found for namespace in own if (found := _asked_once(namespace)) is not None]
    if not late:
        return None
    calls, passing = 0, True

    def look_after() -> bool:
        nonlocal calls, late, passing
        given = [module.namespace for module in late if module.give_back(stand_in, original)]
        if passing:
            calls += 1
            if calls & (calls - 1) == 0:  # the 1st call, the 2nd, the 4th, the 8th, ...
                late = _late_imports(own, imported())
                passing = any(module.passing for module in late)
                if not late:
                    done()
        return bool(given) and _is_called_by_its_hook(sys._getframe(1), given)

    return look_after


_asked: dict[int, Late | None] = {}  # by the identity of a module's globals, for as long as one change is being made


def forget() -> None:
    """Ask every module anew what it may import."""
    _asked.clear()


def any_imports_later(own: Sequence[dict[str, Any]]) -> bool:
    """Whether there is anything to be looked after."""
    return any(_asked_once(namespace) is not None for namespace in own)


def _asked_once(namespace: dict[str, Any]) -> Late | None:
    if id(namespace) not in _asked:
        _asked[id(namespace)] = late_imports(namespace)
    return _asked[id(namespace)]


def _is_called_by_its_hook(stand_in: types.FrameType, own: Sequence[dict[str, Any]]) -> bool:
    """Whether the call that runs in the frame ``stand_in`` comes from one of the modules, inside another such call."""
    caller = stand_in.f_back
    while caller is not None and caller.f_globals.get("__name__") == "hookery.engines":
        caller = caller.f_back
    if caller is None or all(caller.f_globals is not namespace for namespace in own):
        return False
    while caller is not None and caller.f_code is not stand_in.f_code:
        caller = caller.f_back
    return caller is not None


def _late_imports(own: Sequence[dict[str, Any]], imported: Collection[str] | None) -> list[Late]:
    return [late for namespace in own if (late := late_imports(namespace, imported)) is not None]


class Late:
    """The global names that a module may bind to something imported from now on; ``None`` if that can be any name.

    ``passing`` says that its body is running, after which there may be fewer.
    """

    def __init__(self, namespace: dict[str, Any], names: Collection[str] | None, passing: bool) -> None:
        self.namespace, self.names, self.passing = namespace, names, passing

    def give_back(self, stand_in: Any, original: Any) -> bool:
        """Let the names that lead to ``stand_in`` lead to ``original``; whether there were any."""
        found = False
        for name in self.namespace.copy() if self.names is None else self.names:
            if self.namespace.get(name) is stand_in:
                self.namespace[name] = original
                found = True
        return found


def late_imports(namespace: dict[str, Any], imported: Collection[str] | None = None) -> Late | None:
    """What the module with these globals may import later: in the rest of its body, at an interactive prompt, or in a
    function that imports into a global. ``None`` if nothing.

    Args:
        imported: the names to be imported that are of interest; by default all.
    """
    if namespace.get("__name__") == "__main__" and (hasattr(sys, "ps1") or sys.flags.interactive):
        return Late(namespace, None, False)
    bodies = _running_bodies(namespace)
    initializing = getattr(namespace.get("__spec__"), "_initializing", False)
    if (initializing and not bodies) or any(_imports_star(code, position) for code, position in bodies):
        return Late(namespace, None, True)
    of_body: set[str] = set()
    for code, position in bodies:
        of_body.update(_imported_names(code, position + 2, ("STORE_NAME", "STORE_GLOBAL"), imported))
    of_functions = {name for code in _functions(namespace) for name in _imported_by_function(code, imported)}
    names = of_body | of_functions
    return Late(namespace, tuple(sorted(names)), bool(of_body)) if names else None


def _running_bodies(namespace: dict[str, Any]) -> list[tuple[types.CodeType, int]]:
    """The code of the module's body wherever a thread runs it, and how far that is."""
    found = []
    frames = list(sys._current_frames().values())
    while frames:
        frame: types.FrameType | None = frames.pop()
        while frame is not None:
            if frame.f_globals is namespace and frame.f_code.co_name == "<module>":
                found.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
    return found  # no frame is kept: this one is among them, and would keep all that led to it


def _imports_star(code: types.CodeType, position: int) -> bool:
    rest = code.co_code[position + 2 :]
    star = _opcode("IMPORT_STAR")
    if star >= 0:
        return star in rest[::2]
    intrinsic = _opcode("CALL_INTRINSIC_1")  # with the argument 2 that is a star import, from CPython 3.12 on
    return any(rest[index] == intrinsic and rest[index + 1] == 2 for index in range(0, len(rest) - 1, 2))


def _imported_names(
    code: types.CodeType, start: int, stores: Collection[str], imported: Collection[str] | None
) -> Iterator[str]:
    """The names that ``from ... import ...`` binds by one of the instructions ``stores``."""
    storing = [_opcode(name) for name in stores]
    import_from, extended_arg = _opcode("IMPORT_FROM"), _opcode("EXTENDED_ARG")
    instructions = code.co_code
    high, importing = 0, False
    for index in range(start, len(instructions) - 1, 2):
        operation, argument = instructions[index], instructions[index + 1] | high
        if operation == extended_arg:
            high = argument << 8
            continue
        if importing and operation in storing:
            yield code.co_names[argument]
        importing = operation == import_from and (imported is None or code.co_names[argument] in imported)
        high = 0


def _functions(namespace: dict[str, Any]) -> Iterator[types.CodeType]:
    holders = [namespace]
    for value in list(namespace.values()):
        if raw.is_class(value) and raw.class_module(value) == namespace.get("__name__"):
            holders.append(dict(raw.class_namespace(value)))
    for holder in holders:
        for value in list(holder.values()):
            function = value.__func__ if type(value) in (classmethod, staticmethod) else value
            if type(function) is types.FunctionType and function.__globals__ is namespace:
                yield function.__code__


def _imported_by_function(code: types.CodeType, imported: Collection[str] | None) -> Iterator[str]:
    """The globals that a function, or one inside it, imports into."""
    yield from _imported_names(code, 0, ("STORE_GLOBAL",), imported)
    for inner in code.co_consts:
        if type(inner) is types.CodeType:
            yield from _imported_by_function(inner, imported)
