"""What was used, written by each process to the file that the environment variable ACME_TRACE names, a JSON object per
line: for tests, and for whoever wonders whether a part of the plugin runs at all."""

from __future__ import annotations

import json
import multiprocessing
import os


def note(what: str, **fields: object) -> None:
    """Write one line, if anybody wants to know."""
    path = os.environ.get("ACME_TRACE")
    if path is None:
        return
    line = {"what": what, "process": multiprocessing.current_process().name, **fields}
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
