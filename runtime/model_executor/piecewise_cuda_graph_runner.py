"""Recorded steps with prompts, compiled in the pieces that lie between one attention and the next."""

from __future__ import annotations

from typing import ClassVar

from runtime.model_executor.breakable_cuda_graph_runner import BreakableCudaGraphRunner


class PiecewiseCudaGraphRunner(BreakableCudaGraphRunner):
    """`BreakableCudaGraphRunner`, its pieces compiled with the platform's compile backend before they are recorded.

    The compiler ends a piece where the recording is left and starts another behind it. Every size is compiled for
    itself, so that a start takes seconds per size and layer unless the compiler finds its former work on disk.
    """

    compiles: ClassVar[bool] = True
