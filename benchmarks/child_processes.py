"""What it costs a spawned process to have the hooks of the one that started it.

The processor time from the arrival of the manifest until the hooks are in place or wait for their modules: over the
imports of hookery and of the plugin, which the main module of the child does first, and with them, the bytecode cached.
Median [10th to 90th percentile].

There is a limit where the hooks wait for one module that the child has not imported, as most do while a process starts.
Beside that: hooks that wait for a module each, where every module has to be looked for on the path; and hooks on a
module that the child has imported, which are put in place at once, as in any process (see `benchmarks/apply.py`).

    python benchmarks/child_processes.py
    python benchmarks/child_processes.py --rounds 50 --hooks 100 --targets waiting
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MILLISECONDS = 2.0
TARGETS = ("waiting", "apart", "imported")

PLUGIN = """
from hookery import HookType, plugin_hook

{hooks}
"""
HOOK = """
@plugin_hook("{module}.price{number}", HookType.AFTER)
def hook{number}(result, *args, **kwargs): return result
"""
PROGRAM = """
import time
{imported}
began = time.process_time()
import hookery, hookery.listing, hookery.publication, plugged
from hookery import processes
imported = time.process_time() - began

arrive = processes._arrive
spent = []

def timed(*arguments):
    started = time.process_time()
    arrive(*arguments)
    spent.append(time.process_time() - started)
    spent.append(imported)

processes._arrive = timed

def work(pipe): pipe.send(spent)

if __name__ == "__main__":
    import multiprocessing
    hookery.load_plugins(modules=["plugged"], names=[])
    theirs, ours = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=work, args=(ours,))
    child.start()
    arriving, importing = theirs.recv()
    child.join()
    print(arriving * 1000, (arriving + importing) * 1000)
"""


def spent(folder: Path) -> tuple[float, float]:
    """Milliseconds of processor time that a child took to put the hooks in place: over the imports, and with them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder)])
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    done = subprocess.run(
        [sys.executable, str(folder / "program.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    over, whole = map(float, done.stdout.split())
    return over, whole


def quantile(values: Sequence[float], portion: float) -> float:
    return sorted(values)[round(portion * (len(values) - 1))]


def measure(count: int, rounds: int, targets: str = "waiting") -> tuple[list[float], list[float]]:
    """Over the imports, and with them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        modules = [f"shop{number}" if targets == "apart" else "shop" for number in range(count)]
        for number, module in enumerate(modules):
            with (folder / f"{module}.py").open("a") as file:
                file.write(f"def price{number}(): pass\n")
        hooks = "".join(HOOK.format(module=module, number=number) for number, module in enumerate(modules))
        (folder / "plugged.py").write_text(PLUGIN.format(hooks=hooks))
        (folder / "program.py").write_text(PROGRAM.format(imported="import shop" if targets == "imported" else ""))
        spent(folder)  # writes the bytecode
        both = [spent(folder) for _ in range(rounds)]
        return [over for over, _ in both], [whole for _, whole in both]


def cell(found: Sequence[float]) -> str:
    return f"{statistics.median(found):.2f} [{quantile(found, 0.1):.2f}-{quantile(found, 0.9):.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hooks", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.hooks) < 1:
        parser.error("there has to be something to measure")
    head = f"{'hooks':>5}  {'targets':<8}  {'ms over the imports':>20}  {'ms with the imports':>22}"
    print(f"{head}  at most {LIMIT_MILLISECONDS} ms over")
    for targets in options.targets:
        for count in options.hooks:
            over, whole = measure(count, options.rounds, targets)
            said = "kept" if statistics.median(over) <= LIMIT_MILLISECONDS else "NOT KEPT"
            row = f"{count:>5}  {targets:<8}  {cell(over):>20}  {cell(whole):>22}"
            print(f"{row}  {said if targets == 'waiting' else '-'}")


if __name__ == "__main__":
    main()
