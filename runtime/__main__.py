"""`python -m runtime`. Spawned children import this module too, so it does nothing unless it is the program."""

import os
import sys


def _open_standard_files() -> None:
    """A program may be started with its standard files closed. What is opened next would then take their numbers, and
    whatever is printed would go into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115  (for good)


def _run() -> int:
    _open_standard_files()
    try:
        from runtime.entrypoints import cli

        return cli.main()
    except KeyboardInterrupt:  # while it was imported
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(_run())
