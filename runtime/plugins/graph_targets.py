"""The seams of graph runners.

Sizes, buffers and capture are decided once, when a runner is made. A hook on something else that runs only then, inside
the step that is recorded, is warned about: see `recorded_hooks`.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.plugins.hook_target import (
    HookTarget,
    Part,
    Role,
    When,
    at_some_only_with,
    both,
    members,
    only_with,
    recorded_members,
    scheduler,
)

_EXECUTOR = "runtime.model_executor"
_SIZES = f"{_EXECUTOR}.capture_sizes"
_BUFFERS = f"{_EXECUTOR}.cuda_graph_buffer_registry"
_REGISTRY = f"{_BUFFERS}.CudaGraphBufferRegistry"
_INPUT = f"{_EXECUTOR}.input_buffers"
_BREAKABLE = f"{_EXECUTOR}.breakable_cuda_graph_runner"


def _of_runner(
    cls: str,
    asked: Mapping[Role, frozenset[When]],
    before: When = When.ONCE,
    made: When = When.CAPTURE,
    replayed: When = When.REPLAY,
    **own: str,
) -> list[HookTarget]:
    """The seams of one class of runners.

    Args:
        cls: its name.
        asked: when it is asked which batches it takes.
        before: when it is asked whether it can be made.
        made: when what makes the runner runs.
        replayed: when what a replay consists of runs.
        **own: what makes this class of runners alone, and what it is for.
    """
    capture, replay = scheduler(made), scheduler(replayed)
    return [
        *members(cls, scheduler(before), check_device="whether the device can record, before a model is loaded"),
        *members(
            cls,
            capture,
            make_backend="how steps are recorded",
            parallel_sizes="how ranks share the rows of a step",
            aligned="sizes as the rows of a step must be",
            gather_options="what its input buffers have for several ranks",
            choose_capture_sizes="the sizes of this runner alone",
            build_registry="its input buffers",
            make_recorder="what layers ask while a step runs",
            capture_keys="the shapes of its steps",
            capture="everything that happens at capture",
            capture_one="the capture of one shape",
            step_for="the step itself",
            **own,
        ),
        *members(
            cls,
            replay,
            fill="what is written into the buffers",
            build_replay_fb_view="what the preparation of attention sees",
            replay="a whole replay",
            logits_of="what becomes of the output",
        ),
        *members(cls, scheduler(made, replayed), init_replay_metadata="what attention reads"),
        *members(
            cls,
            asked,
            can_run="which batches are replayed; asked where no runner before it takes the batch",
            key_for="the shape that a batch runs in",
        ),
        *members(
            cls,
            scheduler(When.EVENT),
            record="a recording, on a device that records",
            addresses="what may not move, with RUNTIME_CHECK_GRAPHS",
            check_addresses="whether it has moved, with RUNTIME_CHECK_GRAPHS",
        ),
    ]


_IN_CAPTURE = (
    *members(
        _SIZES,
        scheduler(When.CAPTURE),
        require_gathered_buffer="whether rows are gathered",
        require_mlp_tp_gather="whether feed-forward layers compute on the rows of all data-parallel ranks",
        require_attn_tp_gather="whether the ranks of an attention group hold a part of its rows each",
        check_parallel_sizes="whether numbers of ranks fit each other",
        clip_sizes="what becomes of sizes that were asked for",
        row_alignment="what the rows of a step must be a multiple of",
        size_multiple="what sizes must be multiples of",
        filter_for_gather="which sizes are left, and how they are rounded",
    ),
    *members(
        _BUFFERS,
        scheduler(When.CAPTURE),
        CudaGraphBufferRegistry="what owns and fills input buffers: REPLACE it by a subclass",
    ),
    *members(
        _REGISTRY,
        scheduler(When.CAPTURE),
        register_slot="each slot, as it is registered",
        reset_for_capture="the state that steps are recorded from",
    ),
    *members(
        _REGISTRY,
        scheduler(When.CAPTURE, When.EVENT),
        buffers="every buffer, whole; with RUNTIME_CHECK_GRAPHS asked for at every replay too",
    ),
    *members(
        _INPUT,
        scheduler(When.CAPTURE),
        share_input_buffer="which memory a buffer gets",
        zero_index_buffers="which buffers are zeroed before a step is recorded",
    ),
)
_IN_REPLAY = (
    *members(
        _REGISTRY,
        scheduler(When.REPLAY),
        fill_from="all writing into input buffers",
        extract_buffer="the batch whose tensors are the buffers",
    ),
    *members(_REGISTRY, scheduler(When.REPLAY, When.CAPTURE), slice_for="the views that a step reads"),
)
_ON_DEMAND = (
    *members(
        _BUFFERS,
        both(When.DEMAND),
        local_num_token_non_padded="how many rows of a rank are no padding; for ranks that there are none of yet",
    ),
    *members(
        _REGISTRY,
        both(When.DEMAND),
        has_slot="whether there is such a slot",
        slot_names="which slots there are",
        slot="a slot by its name",
        addresses="where buffers begin",
    ),
    *members(
        _INPUT,
        both(When.DEMAND),
        share_input_buffers_in="which buffers of an object are shared, for runners that keep their own",
        forget_shared_buffers="making the shared memory nobody's",
    ),
)

_OF_DECODES = (
    *members(
        _SIZES,
        scheduler(When.CAPTURE),
        decode_capture_sizes="batch sizes of decodes",
        decode_capture_lengths="lengths of the longest sequence of decodes",
    ),
    *members(_BUFFERS, scheduler(When.CAPTURE), build_decode_registry="the slots of decodes"),
    *members(
        f"{_EXECUTOR}.cuda_graph_runner",
        scheduler(When.CAPTURE),
        CudaGraphRunner="the graph runner: REPLACE it by a subclass",
    ),
    *_of_runner(
        f"{_EXECUTOR}.cuda_graph_runner.CudaGraphRunner",
        asked=scheduler(When.STEP),
        choose_capture_lengths="the lengths of this runner alone",
    ),
)
_OF_PROMPTS = (
    *members(_SIZES, scheduler(When.CAPTURE), prefill_capture_sizes="token counts of steps with prompts"),
    *members(_BUFFERS, scheduler(When.CAPTURE), build_prefill_registry="the slots of steps with prompts"),
    *_of_runner(f"{_BREAKABLE}.BreakableCudaGraphRunner", asked=scheduler(When.PROMPT, When.EAGER)),
    *recorded_members(
        f"{_BREAKABLE}.BreakRecorder",
        scheduler(When.REPLAY, When.CAPTURE),
        run_eagerly="what a layer runs outside the recording, its attention for one",
    ),
)
_OF_BREAKABLE = members(
    _BREAKABLE,
    scheduler(When.CAPTURE),
    BreakableCudaGraphRunner="the graph runner: REPLACE it by a subclass",
)
_OF_PIECEWISE = (
    *members(
        f"{_EXECUTOR}.piecewise_cuda_graph_runner",
        scheduler(When.EVENT),
        PiecewiseCudaGraphRunner="the graph runner: REPLACE it by a subclass",
    ),
    *_of_runner(
        f"{_EXECUTOR}.piecewise_cuda_graph_runner.PiecewiseCudaGraphRunner",
        asked=scheduler(When.EVENT),
        before=When.EVENT,
        made=When.EVENT,
        replayed=When.EVENT,
    ),
)

GRAPH_TARGETS = (
    *only_with(Part.GRAPH_RUNNER, (*_IN_CAPTURE, *_IN_REPLAY)),
    *at_some_only_with(
        {When.DECODE: Part.DECODE_RUNNER, When.PROMPT: Part.PREFILL_RUNNER},
        members(_SIZES, scheduler(When.DECODE, When.PROMPT), find_capture_size="the size that a batch finds, if any"),
    ),
    *_ON_DEMAND,
    *only_with(Part.DECODE_RUNNER, _OF_DECODES),
    *only_with(Part.PREFILL_RUNNER, _OF_PROMPTS),
    *only_with(Part.BREAKABLE_RUNNER, _OF_BREAKABLE),
    *only_with(Part.PIECEWISE_RUNNER, _OF_PIECEWISE),
    *members(f"{_EXECUTOR}.graph_runner", scheduler(When.STEP), runner_for="which runner takes a batch"),
)
"""Every one of them is called through its module or object, so that a hook on it takes whenever it is applied before
the runner is made."""
