"""Attributes that a lazy package makes when they are asked for: told of at the moment when somebody asks.

Hooks never wake a package. Where one waits for such an attribute, the package's ``__getattr__`` (its own, or that of
its class) is asked through one that reports what it has made, until nobody waits any more.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from hookery import raw


class LazyWatcher:
    """Calls back, in the thread that asked, once a package has made an attribute that is waited for.

    ``on_made`` gets the names of the package and of the attribute. It must not raise.
    """

    def __init__(self, on_made: Callable[[str, str], None]) -> None:
        self._on_made = on_made
        self._wanted: dict[str, set[str]] = {}
        self._watched: list[tuple[types.ModuleType, Callable[[], None]]] = []

    def watch(self, wanted: Mapping[str, set[str]]) -> None:
        """Watch exactly these attributes, given by the name of their package."""
        self._wanted = {package: set(attributes) for package, attributes in wanted.items()}
        packages: dict[str, Any] = {name: sys.modules.get(name) for name in wanted}
        for module, give_back in self._watched:
            if not any(module is package for package in packages.values()):
                give_back()
        self._watched = [pair for pair in self._watched if any(pair[0] is package for package in packages.values())]
        for name, package in packages.items():
            if raw.is_module(package) and all(package is not module for module, _ in self._watched):
                undo = self._interpose(name, package)
                if undo is not None:
                    self._watched.append((package, undo))

    def _interpose(self, name: str, module: Any) -> Callable[[], None] | None:
        """Stand between the package and who asks it; returns what takes that away again."""
        namespace = raw.namespace(module) or {}
        cls: Any = type(module)
        if "__getattr__" in namespace:
            make = namespace["__getattr__"]

            def of_module(attribute: str) -> Any:
                return self._made(name, module, attribute, make(attribute))

            def restore_function() -> None:
                if namespace.get("__getattr__") is of_module:
                    namespace["__getattr__"] = make

            namespace["__getattr__"] = of_module
            return restore_function
        makers = [base for base in raw.mro(cls) if "__getattr__" in raw.class_namespace(base)]
        make_by_class = raw.class_namespace(makers[0])["__getattr__"] if makers else None
        if make_by_class is None:
            return None

        def of_class(self_: Any, attribute: str) -> Any:
            return self._made(name, module, attribute, make_by_class(self_, attribute))

        attributes = {"__slots__": (), "__getattr__": of_class, "__module__": cls.__module__, "__doc__": cls.__doc__}
        metaclass: Any = type(cls)
        reporting = metaclass(cls.__name__, (cls,), {**attributes, "__qualname__": cls.__qualname__})

        def restore_class() -> None:
            if type(module) is reporting:
                types.ModuleType.__setattr__(module, "__class__", cls)

        types.ModuleType.__setattr__(module, "__class__", reporting)
        return restore_class

    def _made(self, name: str, module: Any, attribute: str, value: Any) -> Any:
        wanted = self._wanted.get(name, set())
        if attribute not in wanted:
            return value
        wanted.discard(attribute)  # to hook it is to ask for it, too
        self._on_made(name, attribute)
        return (raw.namespace(module) or {}).get(attribute, value)
