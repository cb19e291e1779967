"""Tables on standard output: drawn by rich on a terminal that they fit on where it is installed, plain otherwise.

Other processes have a say in what stands in them, so that nothing in a cell can begin another row or steer a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from hookery.listing import align

_STYLES = {"applied": "green", "pending": "yellow", "skipped": "yellow", "missed": "bold red", "reverted": "dim"}


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Iterable[str] = ()) -> None:
    """Print rows under the names of their columns, and lines under them."""
    rows = [tuple(map(on_one_line, row)) for row in rows]
    if not (sys.stdout.isatty() and _print_with_rich(columns, rows)):
        for line in align([columns, *rows]):
            print(line)
    for note in notes:
        print(on_one_line(note))


def on_one_line(text: str) -> str:
    """``text`` with everything escaped in it that cannot be printed: ends of lines, what steers terminals, and what
    stands for bytes of a file name that are no text."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _print_with_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether rich is there to do it, and the terminal is wide enough."""
    try:
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.measure import Measurement
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console = Console()
    unlimited = console.options.update(width=1 << 16)
    if Measurement.get(console, unlimited, table).maximum > console.width:
        return False  # names in pieces, one below the other, can be neither read nor copied
    console.print(table)
    return True
