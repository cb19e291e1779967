"""Installing the plugin distributions of `tests/plugins`, as a user would install them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"


def install_plugin(source_dir: Path, target_dir: Path) -> None:
    """Build the distribution in `source_dir` and install it into `target_dir`, which goes on `PYTHONPATH`.

    Asks no index and needs no network; the build happens in a copy, so that it leaves nothing in the source.

    Raises:
        RuntimeError: pip failed; the message holds what it said.
    """
    with tempfile.TemporaryDirectory(prefix="plugin-") as scratch:
        copy = Path(scratch) / source_dir.name
        shutil.copytree(source_dir, copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--no-compile", "--upgrade"),
                *("--target", str(target_dir), str(copy)),
            ],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"pip could not install {source_dir}:\n{done.stdout}{done.stderr}")
