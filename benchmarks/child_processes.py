"""What it costs a spawned process to have the hooks of the one that started it.

Over the imports of hookery and of the plugin, which the main module of the child does here: the processor time from the
arrival of the manifest until the hooks are in place or wait for their modules. Median [10th to 90th percentile].
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

PLUGIN = """
from hookery import HookType, plugin_hook

{hooks}
"""
HOOK = """
@plugin_hook("shop.price{number}", HookType.AFTER)
def hook{number}(result, *args, **kwargs): return result
"""
PROGRAM = """
import time
import hookery.manifest, plugged
from hookery import processes

arrive = processes._arrive
spent = []

def timed(*arguments):
    started = time.process_time()
    arrive(*arguments)
    spent.append(time.process_time() - started)

processes._arrive = timed

def work(pipe): pipe.send(spent)

if __name__ == "__main__":
    import multiprocessing
    hookery.load_plugins(modules=["plugged"], names=[])
    theirs, ours = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=work, args=(ours,))
    child.start()
    (milliseconds,) = theirs.recv()
    child.join()
    print(milliseconds * 1000)
"""


def spent(folder: Path) -> float:
    """Milliseconds of processor time that a child took to put the hooks in place."""
    done = subprocess.run(
        [sys.executable, str(folder / "program.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def quantile(values: Sequence[float], portion: float) -> float:
    return sorted(values)[round(portion * (len(values) - 1))]


def measure(count: int, rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What the targets are in is not imported by the child: the hooks wait for it.
        (folder / "shop.py").write_text("".join(f"def price{number}(): pass\n" for number in range(count)))
        hooks = "".join(HOOK.format(number=number) for number in range(count))
        (folder / "plugged.py").write_text(PLUGIN.format(hooks=hooks))
        (folder / "program.py").write_text(PROGRAM)
        return [spent(folder) for _ in range(rounds)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hooks", type=int, nargs="+", default=[1, 10, 100])
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.hooks) < 1:
        parser.error("there has to be something to measure")
    print(f"{'hooks':>5}  {'milliseconds in the child':>26}")
    medians = []
    for count in options.hooks:
        found = measure(count, options.rounds)
        medians.append(statistics.median(found))
        cell = f"{medians[-1]:.2f} [{quantile(found, 0.1):.2f}-{quantile(found, 0.9):.2f}]"
        print(f"{count:>5}  {cell:>26}")
    said = "kept" if medians[0] <= LIMIT_MILLISECONDS else "NOT KEPT"
    print(f"\nlimit with {options.hooks[0]}: {LIMIT_MILLISECONDS} ms; {medians[0]:.2f} ms, {said}")


if __name__ == "__main__":
    main()
