"""Hooks on a module that is run as the program, by ``python -m``.

Such a module's code runs under the name ``__main__``, and what it defines there is not what an import of it would give:
a hook on ``http.server.SimpleHTTPRequestHandler`` would never run under ``python -m http.server``. So each hook on the
module is also put on what ``__main__`` has defined, at the moment when its ``if __name__ == "__main__":`` begins.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

from hookery.hooks import Hook, HookState, HookWarning
from hookery.registry import registry
from hookery.reporting import warn
from hookery.sameness import options_of

_MAIN = "__main__"


def watch() -> None:
    """See to the hooks on the module that this process is about to run as its program. Called before that."""
    import runpy

    # runpy has no public place for this: the function that finds the code of the program is private to it.
    find: Any = runpy._get_module_details  # type: ignore[attr-defined]

    def find_and_change(name: str, *rest: Any) -> tuple[str, ModuleSpec, types.CodeType]:
        runpy._get_module_details = find  # type: ignore[attr-defined]
        found_name, spec, code = find(name, *rest)
        if _hooks_on(found_name):
            code = _with_call(found_name, spec, code)
        return found_name, spec, code

    runpy._get_module_details = find_and_change  # type: ignore[attr-defined]


def apply_to_main(module: str) -> None:
    """Put the hooks on ``module`` on what ``__main__`` has defined too.

    Raises:
        HookError: they do not fit, as :meth:`HookRegistry.apply_hooks` says.
    """
    register: Callable[..., Hook] = registry.register  # has seen the same options already
    for hook, qualname in _hooks_on(module):
        # Those outside their versions are not among them, and __main__ is of no distribution to compare with.
        options = {**options_of(hook), "versions": None}
        register(f"{_MAIN}:{qualname}", hook.function, hook.type, **options, source=hook.source)
    registry.apply_hooks()


def _hooks_on(module: str) -> list[tuple[Hook, str]]:
    """The hooks on something in ``module``, with its name there."""
    found = []
    for hook in registry.hooks():
        if hook.state not in (HookState.REVERTED, HookState.SKIPPED):
            for start in (f"{module}.", f"{module}:"):
                if hook.target.startswith(start):
                    found.append((hook, hook.target.removeprefix(start)))
    return found


def _with_call(module: str, spec: ModuleSpec, code: types.CodeType) -> types.CodeType:
    """The code of the program with one call more: before its ``if __name__ == "__main__":``."""
    loader: Any = spec.loader
    source = loader.get_source(module) if hasattr(loader, "get_source") else None
    tree = ast.parse(source, code.co_filename) if source is not None else None
    guard = next((at for at, statement in enumerate(tree.body) if _is_guard(statement)), None) if tree else None
    if tree is None or guard is None:
        names = ", ".join(hook.describe() for hook, _ in _hooks_on(module))
        why = "its source is not there" if tree is None else 'it has no `if __name__ == "__main__":`'
        message = f"{module} is run as the program, and hooks cannot be put on what it defines ({why}): {names}"
        warn([HookWarning(message)], never_raise=True)
        return code
    call = ast.parse(f"__import__({__name__!r}, fromlist=['apply_to_main']).apply_to_main({module!r})").body[0]
    for node in ast.walk(call):
        ast.copy_location(node, tree.body[guard])
    tree.body.insert(guard, call)
    changed: types.CodeType = compile(tree, code.co_filename, "exec", dont_inherit=True)
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
        and any(isinstance(side, ast.Constant) and side.value == _MAIN for side in sides)
    )
