"""Targets whose module is not imported yet: apply their hooks right after the module's code has run.

A meta-path finder of our own, because wrapt's post-import hooks fire once and forget, do not see a reload and also fire
for a module whose code is still running. It finds modules through the other finders and only swaps the loader for the
moment of loading, so that the module and its spec show the real one.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

from hookery import raw


class _NotifyingLoader:
    """Stands in for a module's loader until the module's code runs, then reports that it has run."""

    def __init__(self, spec: ModuleSpec, on_executed: Callable[[str], None]) -> None:
        self._spec = spec
        self._loader: Any = spec.loader
        self._on_executed = on_executed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        create: Callable[[ModuleSpec], types.ModuleType | None] = self._loader.create_module
        return create(spec)

    def get_code(self, name: str) -> types.CodeType | None:
        """Whoever asks for the code runs it as something else (``python -m`` does): not an import of this module."""
        self._spec.loader = self._loader
        code: types.CodeType | None = self._loader.get_code(name)
        return code

    def exec_module(self, module: types.ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._on_executed(module.__name__)


class _NotifyingSpec(ModuleSpec):
    """The spec of a module whose import was under way when it came to be watched; reports when that has ended.

    The import system lets go of a module by setting ``_initializing`` on its spec: a private name, which tests watch.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            on_executed: Callable[[str], None] = self.__dict__.pop("_hookery_on_executed")
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            if self.name in sys.modules:
                on_executed(self.name)


class ImportWatcher:
    """A meta-path finder that calls back after a watched module's code has run, on import and on reload.

    ``on_executed`` runs in the importing thread, inside the import: it must not raise and must not import.
    """

    def __init__(self, on_executed: Callable[[str], None]) -> None:
        self._on_executed = on_executed
        self._watched: frozenset[str] = frozenset()
        self._seen: set[str] = set()  # those of them that were imported before, or whose import was reported

    def watch(self, modules: frozenset[str]) -> None:
        """Watch exactly ``modules``. With none, the finder leaves ``sys.meta_path``."""
        for name in modules - self._watched:
            if name in sys.modules:
                self._attend(name)
        self._seen = {name for name in modules if name in self._seen or name in sys.modules}
        self._watched = modules
        if not modules:
            if self in sys.meta_path:
                # A new list: taking it out of the old one would make an import under way elsewhere skip a finder.
                sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        elif not sys.meta_path or sys.meta_path[0] is not self:
            # First, so that no other finder takes a watched module before this one sees it.
            sys.meta_path[:] = [self, *(finder for finder in sys.meta_path if finder is not self)]

    def _attend(self, name: str) -> bool:
        """Have a module that is in ``sys.modules`` already report when its code has run; whether that is to come."""
        module = sys.modules[name]
        spec = (raw.namespace(module) or {}).get("__spec__")
        if type(spec) is not ModuleSpec:
            return False
        if raw.class_name(type(module)) == "importlib.util._LazyModule":
            spec.loader = _NotifyingLoader(spec, self._on_executed)  # type: ignore[assignment]
            return True
        if not getattr(spec, "_initializing", False):
            return False
        spec.__dict__["_hookery_on_executed"] = self._on_executed
        spec.__class__ = _NotifyingSpec
        return True

    def _come_first(self) -> None:
        """Somebody has put a finder before this one. What it found meanwhile is reported now, and the place is taken
        again: in a new list, because the import under way goes through the old one."""
        sys.meta_path = [self, *(finder for finder in sys.meta_path if finder is not self)]
        for name in sorted(self._watched - self._seen):
            if name in sys.modules:
                self._seen.add(name)
                if not self._attend(name):
                    self._on_executed(name)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._watched and sys.meta_path and sys.meta_path[0] is not self:
            self._come_first()
        if name not in self._watched:
            return None
        self._seen.add(name)
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _NotifyingLoader(spec, self._on_executed)  # type: ignore[assignment]
                return spec
        return None

    def invalidate_caches(self) -> None:
        """The finders behind this one are asked by the import system itself."""


def modules_to_watch(target_names: Collection[str]) -> set[str]:
    """The modules whose import can make targets resolvable: every prefix of a dotted name, one for a colon name."""
    in_colon_form = {name.partition(":")[0] for name in target_names if ":" in name}
    found: set[str] = set()
    for prefix in {name.rpartition(".")[0] for name in target_names if ":" not in name}:
        while prefix and prefix not in found:  # else the shorter ones are there too
            found.add(prefix)
            prefix = prefix.rpartition(".")[0]
    return found | in_colon_form
