"""Looking at other people's objects without running other people's code.

``isinstance``, ``getattr`` and even ``vars`` ask an object's own ``__class__``, ``__getattr__`` and ``__dict__``: a
lazy mapping loads itself then, and has crashed. What is here goes by the exact type and by the slots of ``type`` alone.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, cast

_type_namespace: Any = type.__dict__["__dict__"]
_type_mro: Any = type.__dict__["__mro__"]
_type_bases: Any = type.__dict__["__bases__"]
_type_module: Any = type.__dict__["__module__"]
_type_qualname: Any = type.__dict__["__qualname__"]
module_namespace: Any = vars(types.ModuleType)["__dict__"].__get__  # of any subclass too; TypeError for what is none


def is_class(thing: object) -> bool:
    return issubclass(type(thing), type)


def is_module(thing: object) -> bool:
    return issubclass(type(thing), types.ModuleType)


def class_namespace(cls: type) -> Mapping[str, Any]:
    namespace: Mapping[str, Any] = _type_namespace.__get__(cls)
    return namespace


def mro(cls: type) -> tuple[type, ...]:
    found: tuple[type, ...] = _type_mro.__get__(cls)
    return found


def bases(cls: type) -> tuple[type, ...]:
    found: tuple[type, ...] = _type_bases.__get__(cls)
    return found


def class_module(cls: type) -> str:
    """The name of the module that a class says it is from."""
    try:
        module = _type_module.__get__(cls)
    except AttributeError:
        return "builtins"
    return module if type(module) is str else "builtins"


def class_qualname(cls: type) -> str:
    return str(_type_qualname.__get__(cls))


def class_name(cls: type) -> str:
    """``pkg.mod.Class``."""
    return f"{class_module(cls)}.{class_qualname(cls)}"


def subclasses(cls: type) -> Iterator[type]:
    """Every class below ``cls``, each once."""
    seen = {id(cls)}
    waiting: list[type] = [cls]
    while waiting:
        below: list[type] = type.__subclasses__(waiting.pop())
        for found in below:
            if id(found) not in seen:
                seen.add(id(found))
                waiting.append(found)
                yield found


def namespace(thing: object) -> dict[str, Any] | None:
    """The ``__dict__`` of an object, or ``None`` where it has none of the ordinary kind."""
    if is_module(thing):
        return _plain(module_namespace(thing))
    for base in mro(type(thing)):
        descriptor: Any = class_namespace(base).get("__dict__")
        if type(descriptor) is types.GetSetDescriptorType:
            try:
                return _plain(descriptor.__get__(thing))
            except (AttributeError, TypeError):
                return None
        if descriptor is not None:  # a property of somebody's
            return None
    return None


def _plain(namespace: Any) -> dict[str, Any] | None:
    return namespace if type(namespace) is dict else None


def attributes(holder: object) -> Mapping[str, Any]:
    """What a module or a class has bound itself."""
    return class_namespace(cast("type", holder)) if is_class(holder) else namespace(holder) or {}


def slots(thing: object) -> Iterator[tuple[str, Any]]:
    """The slots of an object that are filled, ``__slots__`` and the members of C types alike."""
    for base in mro(type(thing)):
        for name, descriptor in list(class_namespace(base).items()):
            if type(descriptor) is types.MemberDescriptorType:
                try:
                    yield name, descriptor.__get__(thing)
                except (AttributeError, TypeError):
                    continue


def module_namespaces() -> dict[int, tuple[str, dict[str, Any]]]:
    """The globals of every loaded module, by identity: the module's name and the dictionary."""
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    for name, module in list(sys.modules.items()):
        if is_module(module):
            values = namespace(module)
            if values is not None:
                found.setdefault(id(values), (name, values))
    apart = main_globals_apart()
    if apart is not None:
        found[id(apart)] = ("__mp_main__", apart)
    return found


def main_globals_apart() -> dict[str, Any] | None:
    """The globals that the functions of a child process's main module use, where they are not those of the module:
    multiprocessing runs the main module under another name and gives the module a copy of what came of it."""
    module = sys.modules.get("__mp_main__")
    copied = namespace(module) if is_module(module) else None
    for value in list(copied.values()) if copied is not None else ():
        members = list(class_namespace(value).values()) if is_class(value) else ()
        for function in (value, *members):
            inner = function.__func__ if type(function) in (staticmethod, classmethod) else function
            if type(inner) is types.FunctionType and inner.__globals__.get("__name__") == "__mp_main__":
                return None if inner.__globals__ is copied else inner.__globals__
    return None


def module_globals(owner: Any) -> dict[str, Any] | None:
    """The globals of the functions of a module; ``None`` for anything else."""
    if not is_module(owner):
        return None
    if "__mp_main__" not in sys.modules:
        return namespace(owner)
    apart = main_globals_apart() if owner is sys.modules["__mp_main__"] else None
    return namespace(owner) if apart is None else apart


def leads_to(module: str, qualname: str, thing: object) -> bool:
    """Whether ``module.qualname`` is ``thing``, looking through the namespaces of modules and classes alone."""
    step: Any = sys.modules.get(module)
    for part in qualname.split("."):
        values: Mapping[str, Any] | None = None
        if is_class(step):
            values = class_namespace(step)
        elif is_module(step):
            values = namespace(step)
        step = None if values is None else values.get(part)
        if type(step) in (staticmethod, classmethod):
            step = step.__func__
    return step is thing and thing is not None
