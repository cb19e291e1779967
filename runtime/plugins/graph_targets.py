"""The seams of graph runners that are there to be hooked: what each is for, and whether it runs at every step.

Sizes, buffers and capture are decided once, when a runner is made. A hook on something else that runs only then, inside
the step that is recorded, is warned about: see `recorded_hooks`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

_EXECUTOR = "runtime.model_executor"


class When(enum.Enum):
    """When a target runs."""

    CAPTURE = "capture"
    """When a runner is made, and never again."""
    STEP = "step"
    """At every step, outside what is recorded."""


@dataclass(frozen=True)
class GraphTarget:
    """One seam.

    Attributes:
        name: dotted name.
        when: how often it runs.
        purpose: what a hook on it is for.
    """

    name: str
    when: When
    purpose: str


def _of(prefix: str, when: When, **purposes: str) -> list[GraphTarget]:
    return [GraphTarget(f"{_EXECUTOR}.{prefix}.{name}", when, purpose) for name, purpose in purposes.items()]


def _of_runner(cls: str, **own: str) -> list[GraphTarget]:
    return [
        *_of(
            cls,
            When.CAPTURE,
            make_backend="how steps are recorded",
            parallel_sizes="how ranks share the rows of a step",
            choose_capture_sizes="the sizes of this runner alone",
            build_registry="its input buffers",
            make_recorder="what layers ask while a step runs",
            capture_keys="the shapes of its steps",
            capture="everything that happens at capture",
            capture_one="the capture of one shape",
            step_for="the step itself",
            **own,
        ),
        *_of(
            cls,
            When.STEP,
            can_run="which batches are replayed",
            key_for="the shape that a batch runs in",
            fill="what is written into the buffers",
            build_replay_fb_view="what the preparation of attention sees",
            init_replay_metadata="what attention reads",
            replay="a whole replay",
            logits_of="what becomes of the output",
        ),
    ]


GRAPH_TARGETS: tuple[GraphTarget, ...] = (
    *_of(
        "capture_sizes",
        When.CAPTURE,
        decode_capture_sizes="batch sizes of decodes",
        decode_capture_lengths="lengths of the longest sequence of decodes",
        prefill_capture_sizes="token counts of steps with prompts",
        require_gathered_buffer="whether rows are gathered",
        require_mlp_tp_gather="whether feed-forward layers compute on the rows of all data-parallel ranks",
        require_attn_tp_gather="whether the ranks of an attention group hold a part of its rows each",
        row_alignment="what the rows of a step must be a multiple of",
        size_multiple="what sizes must be multiples of",
        filter_for_gather="which sizes are left, and how they are rounded",
    ),
    *_of("capture_sizes", When.STEP, find_capture_size="the size that a batch finds"),
    *_of(
        "cuda_graph_buffer_registry",
        When.CAPTURE,
        build_decode_registry="the slots of decodes",
        build_prefill_registry="the slots of steps with prompts",
    ),
    *_of(
        "cuda_graph_buffer_registry.CudaGraphBufferRegistry",
        When.CAPTURE,
        register_slot="each slot, as it is registered",
        reset_for_capture="the state that steps are recorded from",
    ),
    *_of(
        "cuda_graph_buffer_registry.CudaGraphBufferRegistry",
        When.STEP,
        fill_from="all writing into input buffers",
        extract_buffer="the batch whose tensors are the buffers",
        slice_for="the views that a step reads",
    ),
    *_of("input_buffers", When.CAPTURE, share_input_buffer="which memory a buffer gets"),
    *_of_runner("cuda_graph_runner.CudaGraphRunner", choose_capture_lengths="the lengths of this runner alone"),
    *_of_runner("breakable_cuda_graph_runner.BreakableCudaGraphRunner"),
    *_of_runner("piecewise_cuda_graph_runner.PiecewiseCudaGraphRunner"),
    *_of("graph_runner", When.STEP, runner_for="which runner takes a batch"),
)
"""Every one of them is called through its module or object, so that a hook on it takes whenever it is applied before
the runner is made."""
