"""Whether a hook's own module may still import names.

A module that imports the target after it was hooked is given the original, before the hook can run into itself. Looking
after that costs at a call, and a compiler cannot follow it; so it is done only where such an import is written.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

from hookery import raw


def _opcode(name: str) -> int:
    import opcode

    return opcode.opmap.get(name, -1)


def may_import_later(namespace: dict[str, Any]) -> bool:
    """Whether the module with these globals may bind an imported name from now on: in the rest of its body, at an
    interactive prompt, or in a function that imports into a global."""
    if namespace.get("__name__") == "__main__" and (hasattr(sys, "ps1") or sys.flags.interactive):
        return True
    bodies = _running_bodies(namespace)
    if any(_imports_after(code, position) for code, position in bodies):
        return True
    initializing = getattr(namespace.get("__spec__"), "_initializing", False)
    if initializing and not bodies:
        return True  # between its creation and its body
    return any(_imports_into_global(code) for code in _functions(namespace))


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


def _imports_after(code: types.CodeType, position: int) -> bool:
    rest = code.co_code[position + 2 :]
    operations = rest[::2]
    if _opcode("IMPORT_FROM") in operations:
        return True
    star = _opcode("IMPORT_STAR")
    if star >= 0:
        return star in operations
    intrinsic = _opcode("CALL_INTRINSIC_1")  # with the argument 2 that is a star import, from CPython 3.12 on
    return any(rest[index] == intrinsic and rest[index + 1] == 2 for index in range(0, len(rest) - 1, 2))


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


def _imports_into_global(code: types.CodeType) -> bool:
    operations = code.co_code[::2]
    if _opcode("STORE_GLOBAL") in operations and _opcode("IMPORT_FROM") in operations:
        return True
    return any(_imports_into_global(inner) for inner in code.co_consts if isinstance(inner, types.CodeType))
