"""Hooks on what the program defines itself: a module that is run by ``python -m``, or a script.

Such code runs under the name ``__main__``, and what it defines there is not what an import of it would give: a hook on
``http.server.SimpleHTTPRequestHandler`` would never run under ``python -m http.server``, nor one on ``prog.work`` under
``python prog.py``. So each hook on the module, and each on ``__main__``, is put on what ``__main__`` has defined, when
its ``if __name__ == "__main__":`` begins.

A program may be asked for as a module of hooks too. It is not imported for that under its own name, where it would
register them a second time: those that it has registered as ``__main__`` are applied at the same place.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any

from hookery import targets
from hookery.command_lines import PythonCommand
from hookery.hooks import Hook, HookState, HookWarning
from hookery.naming import MAIN
from hookery.registry import registry
from hookery.reporting import warn
from hookery.sameness import options_of

_SUFFIXES = (".py", ".pyw")
_CALLED = "hookery.running"  # what the program comes by: it ends a process whose hooks fail


def is_program(module: str, program: PythonCommand) -> bool:
    """Whether ``module`` is what ``program`` runs as ``__main__``. Nothing is imported to find out."""
    if program.how == "-m":
        spec = _find(module) if module == program.what else None
        is_package = spec is None or spec.submodule_search_locations is not None
        return module == f"{program.what}.__main__" or (module == program.what and not is_package)
    if program.how != "script":
        return False
    file = os.path.join(program.what, "__main__.py") if os.path.isdir(program.what) else program.what
    spec = _find(module)
    origin = spec.origin if spec is not None and spec.has_location else None
    return origin is not None and os.path.exists(origin) and os.path.exists(file) and os.path.samefile(origin, file)


def _find(module: str) -> ModuleSpec | None:
    """The spec of a module, without an import of the packages that it is in."""
    first, *others = module.split(".")
    spec = importlib.util.find_spec(first)
    name = first
    for part in others:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    return spec


def watch_module(*, has_hooks: bool) -> None:
    """See to the hooks on the module, folder or archive that this process is about to run. Called before that.

    Args:
        has_hooks: it is asked for as a module of hooks.
    """
    import runpy

    # runpy has no public place for this: the function that finds the code of the program is private to it.
    find: Any = runpy._get_module_details  # type: ignore[attr-defined]

    def find_and_change(name: str, *rest: Any) -> tuple[str, ModuleSpec, types.CodeType]:
        runpy._get_module_details = find  # type: ignore[attr-defined]
        found_name, spec, code = find(name, *rest)
        changed = None
        if has_hooks or _hooks_on(found_name):
            loader: Any = spec.loader
            source = loader.get_source(found_name) if hasattr(loader, "get_source") else None
            changed = _with_call(found_name, source, code.co_filename, has_hooks)
        targets.main_is_to_come = changed is not None
        return found_name, spec, changed or code

    runpy._get_module_details = find_and_change  # type: ignore[attr-defined]


def watch_script(script: str, *, has_hooks: bool) -> bool:
    """As :func:`watch_module`, for a script, where there are hooks on it or in it. Returns whether there are.

    Python reads a script in C, where nothing can be changed; but first it asks whether something can import from the
    script's path, as from a folder or archive, which is then run by :mod:`runpy`. So that is claimed here, and what
    makes a script another thing than that is undone.
    """
    path, module = os.path.abspath(script), os.path.splitext(os.path.basename(script))[0]
    if not path.endswith(_SUFFIXES) or not (has_hooks or _hooks_on(module)):
        return False
    import runpy

    find: Any = runpy._get_main_module_details  # type: ignore[attr-defined]
    run: Any = runpy._run_code  # type: ignore[attr-defined]

    def claim(entry: str) -> Any:
        if os.path.abspath(entry) != path:
            raise ImportError(f"{entry} is not {path}")
        sys.path_hooks.remove(claim)
        runpy._get_main_module_details = find_script  # type: ignore[attr-defined]
        runpy._run_code = run_script  # type: ignore[attr-defined]
        return _NothingInIt()

    def find_script(*_: Any) -> tuple[str, None, types.CodeType]:
        runpy._get_main_module_details = find  # type: ignore[attr-defined]
        sys.path_importer_cache.pop(sys.path[0], None)
        sys.path[:1] = [] if getattr(sys.flags, "safe_path", False) else [os.path.dirname(os.path.realpath(path))]
        with open(path, "rb") as file:
            source = file.read()
        changed = _with_call(module, source, path, has_hooks)
        targets.main_is_to_come = changed is not None
        code: types.CodeType = changed or compile(source, path, "exec", dont_inherit=True)
        return MAIN, None, code

    def run_script(code: types.CodeType, namespace: dict[str, Any], *_: Any) -> dict[str, Any]:
        runpy._run_code = run  # type: ignore[attr-defined]
        loader = SourceFileLoader(MAIN, path)
        namespace.update(__name__=MAIN, __file__=path, __cached__=None, __loader__=loader, __package__=None)
        namespace.update(__spec__=None, __doc__=None)
        exec(code, namespace)
        return namespace

    sys.path_hooks.insert(0, claim)
    return True


class _NothingInIt:
    """The finder of a script's path."""

    def find_spec(self, name: str, target: object = None) -> None:
        """No module is in a script."""


def apply_to_main(module: str, *, strict: bool) -> None:
    """Put the hooks on ``module``, which runs as the program, on what ``__main__`` has defined, and apply those that
    are in it.

    Raises:
        HookError: they do not fit, as :meth:`HookRegistry.apply_hooks` says.
    """
    targets.main_is_to_come = False
    register: Callable[..., Hook] = registry.register  # has seen the same options already
    for hook in _hooks_on(module):
        qualname = hook.plain_target.removeprefix(f"{module}.")
        if qualname != hook.plain_target:
            # Those outside their versions are not among them, and __main__ is of no distribution to compare with.
            options = {**options_of(hook), "versions": None}
            register(f"{MAIN}:{qualname}", hook.function, hook.type, **options, source=hook.source)
    registry.apply_hooks(strict=strict)


def _hooks_on(module: str) -> list[Hook]:
    """The hooks on something in ``module``, which runs as the program, or in ``__main__``."""
    starts = (f"{module}.", f"{MAIN}.")
    left_out = (HookState.REVERTED, HookState.SKIPPED)
    return [hook for hook in registry.hooks() if hook.state not in left_out and hook.plain_target.startswith(starts)]


def _with_call(module: str, source: str | bytes | None, path: str, has_hooks: bool) -> types.CodeType | None:
    """The code of the program with one call more: before its ``if __name__ == "__main__":``. ``None``: it has no
    place for it."""
    tree = ast.parse(source, path) if source is not None else None
    guard = next((at for at, statement in enumerate(tree.body) if _is_guard(statement)), None) if tree else None
    if tree is None or guard is None:
        names = ", ".join(hook.describe() for hook in _hooks_on(module))
        why = "its source is not there" if tree is None else 'it has no `if __name__ == "__main__":`'
        messages = []
        if names:
            messages.append(
                f"{module} is run as the program, and hooks cannot be put on what it defines ({why}): {names}; start"
                " its work under such a line, or define what is hooked in a module that it imports"
            )
        if has_hooks:
            messages.append(
                f"{module} is run as the program, and the hooks in it are applied only where it calls"
                f" hookery.load_plugins() ({why}); start its work under such a line, or move the hooks to a module of"
                " their own"
            )
        warn([HookWarning(message) for message in messages], never_raise=True)
        return None
    call = ast.parse(f"__import__({_CALLED!r}, fromlist=['apply_to_main']).apply_to_main({module!r})").body[0]
    for node in ast.walk(call):
        ast.copy_location(node, tree.body[guard])
    tree.body.insert(guard, call)
    changed: types.CodeType = compile(tree, path, "exec", dont_inherit=True)
    return changed


def _is_guard(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.If) or not isinstance(statement.test, ast.Compare):
        return False
    test = statement.test
    sides = [test.left, *test.comparators]
    return (
        len(sides) == 2
        and isinstance(test.ops[0], ast.Eq)
        and any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
        and any(isinstance(side, ast.Constant) and side.value == MAIN for side in sides)
    )
