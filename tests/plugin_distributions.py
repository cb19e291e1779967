"""Installing the plugin distributions of `tests/plugins`, as a user would install them.

Nothing here asks an index or needs a network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"
OFFLINE = ("--no-deps", "--no-index", "--no-cache-dir")


def install_plugin(source_dir: Path, target_dir: Path) -> None:
    """Build the distribution in `source_dir` and install it into `target_dir`, which goes on `PYTHONPATH`.

    The build happens in a copy, so that it leaves nothing in the source.

    Raises:
        RuntimeError: pip failed; the message holds what it said.
    """
    with tempfile.TemporaryDirectory(prefix="plugin-") as scratch:
        copy = _copied(source_dir, Path(scratch))
        _pip("install", "--no-build-isolation", *OFFLINE, "--no-compile", "--upgrade", "--target", target_dir, copy)


def build_wheel(source_dir: Path, target_dir: Path) -> Path:
    """Build the distribution in `source_dir`, with what this environment has, into a wheel in `target_dir`.

    Raises:
        RuntimeError: pip failed; the message holds what it said.
    """
    with tempfile.TemporaryDirectory(prefix="plugin-") as scratch:
        copy = _copied(source_dir, Path(scratch))
        _pip("wheel", "--no-build-isolation", *OFFLINE, "--wheel-dir", target_dir, copy)
    (wheel,) = target_dir.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment of a test's own, which sees what the environment of the tests has.

    Attributes:
        python: its interpreter.
    """

    def __init__(self, directory: Path) -> None:
        venv.create(directory, with_pip=False, symlinks=True)
        self.python = directory / "bin" / "python"
        (packages,) = directory.glob("lib/python*/site-packages")
        (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, wheel: Path) -> None:
        """Install a wheel, without what it depends on.

        Raises:
            RuntimeError: pip failed; the message holds what it said.
        """
        _pip("--python", self.python, "install", *OFFLINE, "--no-compile", wheel)

    def uninstall(self, distribution: str) -> None:
        """Uninstall a distribution.

        Raises:
            RuntimeError: pip failed; the message holds what it said.
        """
        _pip("--python", self.python, "uninstall", "--yes", distribution)


def _copied(source_dir: Path, scratch: Path) -> Path:
    copy = scratch / source_dir.name
    return shutil.copytree(source_dir, copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))


def _pip(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)],
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"pip {' '.join(map(str, arguments))} failed:\n{done.stdout}{done.stderr}")
