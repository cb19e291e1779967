"""Run the tests of hookery on every CPython from 3.10 up that the machine has, without torch.

Interpreters are found as `pythonX.Y` on PATH and among pyenv's versions, one per minor version. Each gets a virtual
environment in a cache outside the tree, which is made again when the list of packages changes. Which interpreters ran,
and which of those the project supports were not found, is printed.

    python tests/run_on_every_python.py
    python tests/run_on_every_python.py --only 3.10 3.13 -- -k reach -x
    python tests/run_on_every_python.py --others
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)
PACKAGES = (
    "wrapt>=1.16",
    "packaging>=23",
    "pytest>=8.3",
    "cloudpickle>=3",
    "hypothesis>=6.100",
    "pytest-mock>=3.14",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "setuptools>=77",
)
Version = tuple[int, int]


def candidates() -> Iterator[Path]:
    """Every file that may be an interpreter, pyenv's own before its shims."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    if pyenv.is_dir():
        yield from sorted(pyenv.glob("*/bin/python3.*"), reverse=True)
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder and Path(folder).is_dir():
            yield from sorted(Path(folder).glob("python3.*"))
    yield Path(sys.executable)


def version_of(python: Path) -> Version | None:
    """The version of a CPython that can make virtual environments; `None` for anything else."""
    code = "import sys, venv, ensurepip; print(sys.implementation.name, *sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.fullmatch(r"cpython (\d+) (\d+)\s*", done.stdout) if done.returncode == 0 else None
    return (int(found[1]), int(found[2])) if found else None


def interpreters() -> dict[Version, Path]:
    """One interpreter per minor version from the oldest that is supported."""
    found: dict[Version, Path] = {}
    for python in candidates():
        if not re.fullmatch(r"python3\.\d+|python3?", python.name) and python != Path(sys.executable):
            continue
        version = version_of(python)
        if version is not None and version >= OLDEST:
            found.setdefault(version, python)
    return dict(sorted(found.items()))


def environment(python: Path, version: Version, cache: Path) -> Path:
    """The interpreter of a virtual environment with the packages, made if it is not there.

    Raises:
        subprocess.CalledProcessError: the environment cannot be made, or the packages cannot be installed.
    """
    key = hashlib.sha256("\n".join((str(python.resolve()), *PACKAGES)).encode()).hexdigest()[:12]
    folder = cache / f"{version[0]}.{version[1]}-{key}"
    inside = folder / "bin" / "python"
    if (folder / "complete").exists():
        return inside
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    subprocess.run([inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], check=True)
    (folder / "complete").touch()
    return inside


def run_tests(python: Path, arguments: Sequence[str]) -> int:
    """Run the tests of hookery with an interpreter; the tree itself is what is imported."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HOOKERY_", "COV_"))}
    variables["PYTHONPATH"] = str(ROOT)
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # tests start processes, and each would compile what it imports
    command = [python, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider", "tests/hookery", *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="X.Y", help="these versions; one that is not found is an error")
    parser.add_argument(
        "--others",
        action="store_true",
        help="leave out the version that this script runs with, and on the others what tests the tests themselves",
    )
    parser.add_argument("--list", action="store_true", help="print the interpreters that were found and end")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / f"hookery-pythons-{os.getuid()}",
        help="where the virtual environments are kept (default: %(default)s)",
    )
    options = parser.parse_args(arguments[:split])
    found = interpreters()
    missing = [(3, minor) for minor in range(OLDEST[1], NEWEST[1] + 1) if (3, minor) not in found]
    if options.only:
        asked = {(int(name.split(".")[0]), int(name.split(".")[1])) for name in options.only}
        if asked - found.keys():
            parser.error(f"not found: {', '.join(f'{major}.{minor}' for major, minor in sorted(asked - found.keys()))}")
        found = {version: python for version, python in found.items() if version in asked}
    if options.others:
        found.pop(sys.version_info[:2], None)
    for version, python in found.items():
        print(f"{version[0]}.{version[1]}: {python}")
    for major, minor in missing:
        print(f"{major}.{minor}: supported, but not found on this machine")
    if options.list:
        return 0
    outcomes: dict[Version, str] = {}
    seconds: dict[Version, float] = {}
    chosen = arguments[split + 1 :]
    for version, python in found.items():
        print(f"\n--- CPython {version[0]}.{version[1]} ({python})", flush=True)
        begin = time.monotonic()
        try:
            status = run_tests(
                environment(python, version, options.cache), ["-k", "not no-op", *chosen] if options.others else chosen
            )
        except subprocess.CalledProcessError as error:
            outcomes[version] = f"no environment: {error}"
        else:
            outcomes[version] = "passed" if status == 0 else f"failed (pytest exit status {status})"
        seconds[version] = time.monotonic() - begin
    print()
    for version, outcome in outcomes.items():
        print(f"CPython {version[0]}.{version[1]}: {outcome} after {seconds[version]:.0f} s")
    if not outcomes:
        print("no other CPython that is supported was found" if options.others else "no CPython was found")
    return int((not outcomes and not options.others) or any(outcome != "passed" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
