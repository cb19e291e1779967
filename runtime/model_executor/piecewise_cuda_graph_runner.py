"""Recorded steps with prompts, compiled in the pieces that lie between one attention and the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch

from runtime.model_executor.breakable_cuda_graph_runner import BreakableCudaGraphRunner, BreakRecorder


class PiecewiseCudaGraphRunner(BreakableCudaGraphRunner):
    """`BreakableCudaGraphRunner`, its pieces compiled with the platform's compile backend before they are recorded.

    The compiler ends a piece where the recording is left and starts another behind it. Every size is compiled for
    itself, so that a start takes seconds per size and layer unless the compiler finds its former work on disk.
    """

    compiles: ClassVar[bool] = True

    def make_recorder(self) -> BreakRecorder:
        """One at which the compiler stops, to go on behind it: what is left out of the recording is left out of the
        pieces too."""
        recorder = super().make_recorder()

        def run_eagerly(function: Callable[..., torch.Tensor], *args: object) -> torch.Tensor:
            # Looked up at each call: a hook that is applied later takes too.
            return type(recorder).run_eagerly(recorder, function, *args)

        # Not where the method is defined: that would import the compiler, a second or more, with every scheduler.
        recorder.run_eagerly = torch.compiler.disable(run_eagerly)  # type: ignore[method-assign]
        return recorder
