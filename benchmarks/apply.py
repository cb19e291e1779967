"""What applying hooks costs: 200 hooks at once beside one scan of the globals of everything that is loaded, in one run.

torch and transformers are loaded, because the time depends on how much there is to look through. The targets are
functions and methods of both, each with one hook. A scan is the loop that finds by identity which globals of which
modules are one object, written as plainly as Python allows; an engine that scanned once per target would cost 200 of
them. What is timed is one `apply_hooks()` of hooks that are registered, and the `revert()` after it, on fresh
processes' terms: the engine's own lazy imports are made before.

`import hookery` is timed in fresh interpreters, each beside one that does nothing, and the modules that it brings along
are listed.

    python benchmarks/apply.py
    python benchmarks/apply.py --rounds 30 --json
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hookery
from hookery import HookRegistry, HookType

ROOT = Path(__file__).resolve().parent.parent
MOST_SCANS = 3.0
MOST_IMPORT_MS = 25.0
LOADED = ("torch", "transformers")
# Modules of public functions and classes; a target that a version does not have is passed over.
PLACES = {
    "torch": ("torch.nn.functional", "torch.functional", "torch.nn.init", "torch.nn.modules.module"),
    "transformers": (
        "transformers.modeling_utils",
        "transformers.tokenization_utils_base",
        "transformers.utils.generic",
    ),
    "": ("json", "json.decoder", "argparse", "textwrap", "inspect", "shutil", "tempfile", "pathlib", "zipfile", "ast"),
}


def hook(*args: Any, **kwargs: Any) -> None:
    return None


def targets(places: Sequence[str], count: int) -> list[str]:
    """Up to `count` names of plain functions and methods that are defined in the modules named."""
    found: list[str] = []
    for place in places:
        module = sys.modules.get(place)
        for name, value in sorted(vars(module).items()) if module is not None else ():
            if getattr(value, "__module__", None) != place or name.startswith("__"):
                continue
            if isinstance(value, types.FunctionType):
                found.append(f"{place}:{name}")
            elif isinstance(value, type):
                found += [
                    f"{place}:{name}.{member}"
                    for member, function in sorted(vars(value).items())
                    if isinstance(function, types.FunctionType) and not member.startswith("__")
                ]
    step = max(1, len(found) // count)
    return found[::step][:count]


def loaded_globals() -> Iterator[dict[str, Any]]:
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType):
            yield vars(module)


def scan(wanted: object) -> list[tuple[dict[str, Any], str]]:
    """The globals of loaded modules that are `wanted`: where and by which name, which is what rebinding has to know."""
    found = []
    for namespace in loaded_globals():
        for name, value in list(namespace.items()):
            if value is wanted:
                found.append((namespace, name))
    return found


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that `work` takes, without the garbage collector in between."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) * 1e3
    finally:
        if enabled:
            gc.enable()


def summary(times: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(times)
    last = len(ordered) - 1
    return {
        "ms_median": statistics.median(ordered),
        "ms_p10": ordered[round(last * 0.1)],
        "ms_p90": ordered[round(last * 0.9)],
    }


def measure_apply(names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time scan, apply and revert in turn; the ratio is the median of the ratios of each round."""
    times: dict[str, list[float]] = {"one scan": [], "apply": [], "revert": [], "unreached": []}
    for number in range(rounds + 1):
        registry = HookRegistry()
        for name in names:
            registry.register(name, hook, HookType.BEFORE)
        scanned = timed(lambda: scan(hook))
        applied = timed(registry.apply_hooks)
        searched = timed(registry.unreached)
        reverted = timed(registry.revert)
        registry.reset()
        if number:  # the first round warms the caches, and imports what is imported when it is needed
            for what, milliseconds in zip(times, (scanned, applied, reverted, searched), strict=True):
                times[what].append(milliseconds)
    rows = {what: summary(taken) for what, taken in times.items()}
    for what, taken in times.items():
        rows[what]["scans"] = statistics.median(
            mine / scanned for mine, scanned in zip(taken, times["one scan"], strict=True)
        )
    return {
        "hooks": len(names),
        "modules": len(list(loaded_globals())),
        "globals": sum(map(len, loaded_globals())),
        "rows": rows,
        "most_scans": MOST_SCANS,
    }


def measure_import(rounds: int) -> dict[str, Any]:
    """Time `import hookery` in fresh interpreters, each beside one that imports nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(ROOT)

    def run(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        return (time.perf_counter() - started) * 1e3

    run("import hookery")  # writes the bytecode
    pairs = [(run("pass"), run("import hookery")) for _ in range(rounds)]
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; b = set(sys.modules); import hookery; print(*sorted(set(sys.modules) - b))",
        ],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        **summary([with_it - without for without, with_it in pairs]),
        "bare_ms_median": statistics.median(without for without, _ in pairs),
        "most_ms": MOST_IMPORT_MS,
        "imports": listed.stdout.split(),
    }


def versions(loaded: Sequence[str]) -> dict[str, str]:
    found = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "hookery": hookery.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
    return found | {name: str(getattr(sys.modules[name], "__version__", "?")) for name in loaded}


def load(names: Sequence[str]) -> list[str]:
    """Import those of the packages that are installed, and return their names."""
    import importlib

    loaded = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError:
                continue
            loaded.append(name)
            for place in PLACES[name]:
                importlib.import_module(place)
        for place in PLACES[""]:
            importlib.import_module(place)
    return loaded


def format_tables(applied: dict[str, Any], imported: dict[str, Any]) -> str:
    lines = [
        f"{applied['hooks']} hooks, {applied['modules']} modules loaded with {applied['globals']} globals",
        f"{'':<12}{'ms [p10-p90]':>24}{'in scans':>10}{'at most':>9}",
    ]
    for what, row in applied["rows"].items():
        spread = f"{row['ms_median']:.2f} [{row['ms_p10']:.2f}-{row['ms_p90']:.2f}]"
        most = f"{applied['most_scans']:.1f}x" if what == "apply" else ""
        lines.append(f"{what:<12}{spread:>24}{row['scans']:>9.2f}x{most:>9}")
    spread = f"{imported['ms_median']:.1f} [{imported['ms_p10']:.1f}-{imported['ms_p90']:.1f}]"
    lines += [
        "",
        f"import hookery, over a bare interpreter of {imported['bare_ms_median']:.1f} ms: {spread} ms,"
        f" at most {imported['most_ms']:.0f} ms",
        f"it imports {len(imported['imports'])} modules: {', '.join(imported['imports'])}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each measurement (default: 20)")
    parser.add_argument("--hooks", type=int, default=200, help="hooks to apply (default: 200)")
    parser.add_argument("--bare", action="store_true", help="load neither torch nor transformers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.hooks < 1:
        parser.error("--rounds and --hooks must be at least 1")
    loaded = load(() if options.bare else LOADED)
    names = targets([place for name in (*loaded, "") for place in PLACES[name]], options.hooks)
    applied, imported = measure_apply(names, options.rounds), measure_import(options.rounds)
    if options.json:
        print(json.dumps({**versions(loaded), "apply": applied, "import": imported}, indent=2))
        return
    for name, value in versions(loaded).items():
        print(f"{name:>12}: {value}")
    print(format_tables(applied, imported))


if __name__ == "__main__":
    main()
