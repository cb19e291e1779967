"""What a layer may want to know while a step is recorded: whether it may ask the device for a number.

A recorded step is run again by the device alone, so that a layer which looks at a result to decide what to do next
must do something else, or leave the recording for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class Recorder(Protocol):
    """Who records the step that runs now.

    Attributes:
        breaks: the recording can be left: `run_eagerly` may be called.
    """

    breaks: bool

    def run_eagerly(self, function: Callable[..., torch.Tensor], *args: object) -> torch.Tensor:
        """`function(*args)` outside the recording, each time the step runs, on the tokens that are no padding.

        Args:
            function: gives a tensor with one row per token; called anew each time.
            *args: tensors with one row per token, also in a dataclass, are cut to the tokens there are.

        Returns:
            As many rows as the step has, zeros for padding.
        """


_current: Recorder | None = None


def current() -> Recorder | None:
    """Who records now; None while nothing is recorded."""
    return _current


@contextmanager
def recorded_by(recorder: Recorder | None) -> Iterator[None]:
    """A context in which `recorder` is the current one, and after which it is not, whatever happened."""
    global _current
    before = _current
    _current = recorder
    try:
        yield
    finally:
        _current = before
