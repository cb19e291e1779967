"""Tables on standard output: drawn by rich on a terminal where it is installed, plain otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from hookery.listing import align

_STYLES = {"applied": "green", "pending": "yellow", "skipped": "yellow", "missed": "bold red", "reverted": "dim"}


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Iterable[str] = ()) -> None:
    """Print rows under the names of their columns, and lines under them."""
    if not (sys.stdout.isatty() and _print_with_rich(columns, rows)):
        for line in align([columns, *rows]):
            print(line)
    for note in notes:
        print(note)


def _print_with_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether rich is there to do it."""
    try:
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)
    return True
