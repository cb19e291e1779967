"""How another process finds a hook: by the module and the qualified name of its function."""

from __future__ import annotations

import functools
import os
import sys
import types
from typing import Any, NamedTuple

from hookery import raw
from hookery.hooks import Hook, HookFunction

MAIN = "__main__"
_MAIN_IN_A_CHILD = "__mp_main__"  # what multiprocessing calls the main module of a program in its children


class HookName(NamedTuple):
    """What says which hook is meant, in every process: whatever the target's spelling, whatever main is called."""

    target: str
    type: str
    module: str
    qualname: str

    @property
    def function(self) -> str:
        """``module:qualname``."""
        return f"{self.module}:{self.qualname}"


def module_name_of(function: HookFunction) -> str:
    """The module that a hook's function says it is of; the main module's is ``__main__`` in every process."""
    found = getattr(function, "__module__", None) or type(function).__module__
    return MAIN if found == _MAIN_IN_A_CHILD else str(found)


def qualname_of(function: HookFunction) -> str:
    """The qualified name of a hook's function; of an object that has none, that of its type between <>."""
    found = getattr(function, "__qualname__", None)
    return found if isinstance(found, str) else f"<{type(function).__qualname__} object>"


def name_of(hook: Hook) -> HookName:
    """The name under which another process knows ``hook``."""
    return HookName(hook.plain_target, hook.type._value_, module_name_of(hook.function), qualname_of(hook.function))


def real_name_of_main() -> str | None:
    """The name under which the main module of this process would be imported, if it is a file."""
    main = sys.modules.get(MAIN)
    spec_name = getattr(getattr(main, "__spec__", None), "name", None)
    file = getattr(main, "__file__", None)
    if spec_name is not None or not isinstance(file, str):
        return spec_name
    return os.path.splitext(os.path.basename(file))[0]


def look_up(module: str, qualname: str) -> Any:
    """What stands at ``qualname`` in a module that is imported, in any process of the program.

    Raises:
        AttributeError: nothing does.
        KeyError: the module is not imported.
    """
    if module == MAIN and _MAIN_IN_A_CHILD in sys.modules:
        module = _MAIN_IN_A_CHILD
    return functools.reduce(getattr, qualname.split("."), sys.modules[module])


def why_local(hook: Hook) -> str | None:
    """Why no other process can find the hook's function by its name, or ``None`` if one can."""
    function = hook.function
    module, qualname = module_name_of(function), qualname_of(function)
    if getattr(function, "__qualname__", None) is None:
        return f"an object of the type {raw.class_name(type(function))} has no name to be found by"
    if isinstance(function, types.MethodType) and not isinstance(function.__self__, type):
        return "a bound method belongs to an object of this process"
    if "<lambda>" in qualname:
        return "a lambda has no name to be found by"
    if "<locals>" in qualname:
        return "it is defined inside a function"
    why_not = why_main_stays() if module == MAIN else None
    if why_not is not None:
        return why_not
    if hook.declared:
        return None  # the decorator registers it wherever its module is imported, whatever its name leads to
    try:
        found = look_up(module, qualname)
    except (AttributeError, KeyError):
        return f"its name, {module}:{qualname}, leads to nothing"
    return None if found is function or found == function else f"its name, {module}:{qualname}, leads to something else"


def why_main_stays() -> str | None:
    """Why the children of this process do not have the main module, or ``None`` if they do."""
    main = sys.modules.get(MAIN)
    spec_name = getattr(getattr(main, "__spec__", None), "name", None)
    if spec_name is not None:
        if spec_name == MAIN or spec_name.endswith(f".{MAIN}"):
            return f"it is defined in {spec_name}, which runs as a program and is not imported by child processes"
        return None
    file = getattr(main, "__file__", None)
    if not isinstance(file, str) or file == "<stdin>":
        return "it is defined in a main module that is no file (python -c, or an interactive session)"
    if os.path.splitext(os.path.basename(file))[0] == "ipython":  # multiprocessing leaves that one alone
        return "it is defined in an interactive session"
    return None
