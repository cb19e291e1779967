"""How the host's threads wait for each other. To be set before torch is imported: OpenMP reads it when it is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_POLICY_ENV = "OMP_WAIT_POLICY"


def wait_passively() -> None:
    """Let OpenMP threads sleep instead of spin at a barrier, unless the environment says otherwise.

    A decode step is hundreds of parallel regions of some ten microseconds. A thread that spins until a slower one
    arrives keeps the processor from exactly that thread as soon as anything else runs on the machine: with four
    programs on two cores, spinning decoded 18 to 32 tokens/s where sleeping decoded 900 to 1600.
    """
    os.environ.setdefault(WAIT_POLICY_ENV, "PASSIVE")


@contextmanager
def children_wait_passively() -> Iterator[None]:
    """Processes that are started in the body wait passively; this one stays as it is.

    A spawned child imports the user's main module before anything of ours, and torch with it, perhaps: its
    environment has to be right from the start.
    """
    given = os.environ.get(WAIT_POLICY_ENV)
    wait_passively()
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(WAIT_POLICY_ENV, None)
