"""What `import hookery` brings along."""

from __future__ import annotations

import pytest

from tests.hookery.support import run_python


@pytest.mark.parametrize("module", ["torch", "wrapt", "runtime", "numpy", "packaging"])
def test_importing_hookery_does_not_import(module: str) -> None:
    out = run_python(f"import sys, hookery; print({module!r} in sys.modules)")
    assert out == "False\n"


def test_importing_and_loading_no_plugins_leaves_the_import_system_as_it_was() -> None:
    out = run_python(
        """
        import sys
        before = list(sys.meta_path)
        import hookery
        hookery.load_plugins()
        print(sys.meta_path == before, "wrapt" in sys.modules)
        """,
        environment={"HOOKERY_PLUGINS": ""},
    )
    assert out == "True False\n"


def test_wrapt_comes_with_the_first_hook_that_needs_it() -> None:
    out = run_python(
        """
        import sys, hookery
        hookery.registry.register("json.dumps", lambda *args: None, hookery.HookType.BEFORE)
        hookery.registry.register("wsgiref.util.guess_scheme", lambda *args: None, hookery.HookType.BEFORE)
        hookery.registry.apply_hooks()
        assert "wsgiref" not in sys.modules
        before = "wrapt" in sys.modules
        import json
        with_json = "wrapt" in sys.modules
        hookery.registry.register("math.gcd", lambda *args: None, hookery.HookType.BEFORE)
        hookery.registry.apply_hooks(eager=True)
        print(before, with_json, "wrapt" in sys.modules)
        """
    )
    assert out == "False False True\n"
