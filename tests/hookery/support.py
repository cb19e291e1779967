"""Modules made for one test, and Python programs run for one test."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Modules:
    """A folder on `sys.path` that a test writes modules into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **sources: str) -> None:
        """Write one module per keyword; `shop__cart` is `shop.cart`, and `shop__init` is the package's own code."""
        for name, source in sources.items():
            if name.endswith("__init"):
                path = self.folder / name.removesuffix("__init").replace("__", "/") / "__init__.py"
            else:
                path = (self.folder / name.replace("__", "/")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    def load(self, name: str = "shop", source: str | None = None) -> types.ModuleType:
        """Import a module, which is written first if a source is given."""
        if source is not None:
            self.write(**{name.replace(".", "__"): source})
        return importlib.import_module(name)

    def forget(self) -> None:
        """Take every module that came from the folder out of `sys.modules`."""
        for name, module in list(sys.modules.items()):
            if not isinstance(module, types.ModuleType):
                continue
            spec = getattr(module, "__spec__", None)
            places = [getattr(spec, "origin", None) or "", *(getattr(spec, "submodule_search_locations", None) or [])]
            if any(str(place).startswith(str(self.folder)) for place in places):
                del sys.modules[name]


def environment_of(path: Sequence[Path], more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a process that is started for a test, with folders on its `PYTHONPATH`."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HOOKERY_") or name == "HOOKERY_STATE_DIR"
    }
    variables["PYTHONPATH"] = os.pathsep.join(map(str, [*path, ROOT]))
    variables["PYTHONDONTWRITEBYTECODE"] = "1"
    variables.update(more or {})
    return variables


def run_hookery(
    *arguments: str | Path,
    folder: Path,
    path: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    status: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a command of hookery in a folder and return what came of it; `status` is what it is expected to end with."""
    done = subprocess.run(
        [sys.executable, "-m", "hookery", *map(str, arguments)],
        cwd=folder,
        env=environment_of(path, environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert status is None or done.returncode == status, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done


def run_python(
    source: str,
    *,
    path: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = ("-W", "error"),
    fails: bool = False,
) -> str:
    """Run a program in a fresh interpreter where warnings are errors; return what it printed.

    Args:
        path: folders to put on `PYTHONPATH`.
        environment: variables to add; the caller's own `HOOKERY_*` variables are not passed on.
        fails: expect a non-zero exit status, and return what went to standard error.
    """
    done = start_python([*options, "-c", textwrap.dedent(source)], path=path, environment=environment)
    assert (done.returncode != 0) is fails, done.stderr + done.stdout
    return done.stderr if fails else done.stdout


def start_python(
    arguments: Sequence[str],
    *,
    path: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter to its end, in the working directory `folder`; arguments and the rest as above."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment_of(path, environment),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
