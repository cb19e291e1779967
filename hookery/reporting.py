"""Telling the program of hooks that will not run as asked, where it must not be stopped by that."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

from hookery.hooks import HookWarning


def warn(notes: Iterable[HookWarning], *, never_raise: bool = False) -> None:
    """Warn, on behalf of the caller's caller. Call it without any lock held.

    Args:
        never_raise: where warnings are errors, print them: of an import, which must not fail.
    """
    for note in notes:
        try:
            warnings.warn(note, stacklevel=3)
        except HookWarning:
            if not never_raise:
                raise
            print(f"{type(note).__name__}: {note}", file=sys.stderr)
