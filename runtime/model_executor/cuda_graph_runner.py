"""Recorded decodes: one per batch size and length of the longest sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch

from runtime import platforms
from runtime.core.forward_batch import ForwardBatch, ForwardMode
from runtime.layers import recording
from runtime.model_executor import capture_sizes, cuda_graph_buffer_registry
from runtime.model_executor.bucketed_graph_runner import BucketedGraphRunner, ShapeKey, Step
from runtime.model_executor.cuda_graph_buffer_registry import CudaGraphBufferRegistry

PADDING_SEQ_LEN = 1
"""Length of a padding sequence: it sees the sink, its own new token included. None would make of attention a NaN."""


class WholeStepRecorder:
    """Tells layers that the step is recorded as a whole: it cannot be left."""

    breaks = False

    def run_eagerly(self, function: Callable[..., torch.Tensor], *args: object) -> torch.Tensor:
        """Not possible here."""
        raise RuntimeError("a decode is recorded as a whole, and nothing in it can run by itself")


class CudaGraphRunner(BucketedGraphRunner):
    """Records decodes whole, from token ids to logits.

    A batch is padded with sequences of one token in request row 0. What attention reads is prepared anew before each
    replay, outside the recording, in tensors that stay where they are.
    """

    def choose_capture_sizes(self) -> list[int]:
        """Batch sizes, up to the largest batch or the largest that was asked for."""
        sizes = capture_sizes.decode_capture_sizes(
            self.model_runner.max_running_requests, chosen=self.model_runner.server_args.decode_graph_sizes
        )
        return self.aligned(sizes)

    def choose_capture_lengths(self) -> list[int]:
        """Lengths of the longest sequence, ascending, up to the context length."""
        return capture_sizes.decode_capture_lengths(self.model_runner.context_length)

    def build_registry(self) -> CudaGraphBufferRegistry:
        """See `build_decode_registry`."""
        return cuda_graph_buffer_registry.build_decode_registry(
            device=self.model_runner.device,
            max_bs=self.capture_sizes[-1],
            max_num_token=self.capture_sizes[-1],
            seq_len_fill_value=PADDING_SEQ_LEN,
            share_pool=platforms.current_platform.capabilities.share_input_buffers,
            **self.gather_options(),
        )

    def make_recorder(self) -> recording.Recorder | None:
        """A step that Python goes through at each replay may ask whatever it likes."""
        return WholeStepRecorder() if self.backend.records or self.backend.compiles else None

    def capture_keys(self) -> list[ShapeKey]:
        """Each size at each length, but not larger than the pool: such a batch is rare, and its recording would have to
        hold room for more keys and values than there are."""
        self.lengths = self.choose_capture_lengths()
        limit = self.model_runner.max_total_tokens
        keys = [
            ShapeKey(size, length)
            for size in self.capture_sizes
            for length in self.lengths
            if length == self.lengths[0] or size * length <= limit
        ]
        self.attention_backend.reserve([(key.size, key.max_len) for key in keys])
        return keys

    def key_for(self, batch: ForwardBatch) -> ShapeKey | None:
        """See `BucketedGraphRunner.key_for`."""
        if not batch.forward_mode.is_decode():
            return None
        size = capture_sizes.find_capture_size(self.capture_sizes, batch.batch_size)
        length = capture_sizes.find_capture_size(self.lengths, max(batch.seq_lens_cpu))
        if size is None or length is None:
            return None
        key = ShapeKey(size, length)
        return key if key in self.recorded else None

    def step_for(self, key: ShapeKey) -> Step:
        """See `BucketedGraphRunner.step_for`."""
        views = self.registry.slice_for(key.size, key.size)
        padding = ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            input_ids=views["input_ids"],
            positions=views["positions"],
            out_cache_loc=views["out_cache_loc"],
            req_pool_indices=views["req_pool_indices"],
            seq_lens=views["seq_lens"],
            seq_lens_cpu=[PADDING_SEQ_LEN] * key.size,
            extend_lens_cpu=[1] * key.size,
            num_extend=0,
        )
        self.init_replay_metadata(padding, key)
        model, attention_backend = self.model, self.attention_backend
        input_ids, positions = views["input_ids"], views["positions"]

        def step() -> torch.Tensor:
            return model.compute_logits(model.forward(input_ids, positions, attention_backend))

        return step

    def fill(self, batch: ForwardBatch, key: ShapeKey) -> None:
        """See `BucketedGraphRunner.fill`."""
        size = batch.batch_size
        self.registry.fill_from(batch, raw_bs=size, padded_bs=key.size, raw_num_tokens=size, padded_num_tokens=key.size)

    def build_replay_fb_view(self, batch: ForwardBatch, key: ShapeKey) -> ForwardBatch:
        """The padded batch: tensors are the buffers, and what the host knows of lengths is padded too."""
        view = self.registry.extract_buffer(key.size, key.size, batch)
        num_padding = key.size - batch.batch_size
        if not num_padding:
            return view
        return ForwardBatch(
            forward_mode=view.forward_mode,
            input_ids=view.input_ids,
            positions=view.positions,
            out_cache_loc=view.out_cache_loc,
            req_pool_indices=view.req_pool_indices,
            seq_lens=view.seq_lens,
            seq_lens_cpu=batch.seq_lens_cpu + [PADDING_SEQ_LEN] * num_padding,
            extend_lens_cpu=batch.extend_lens_cpu + [1] * num_padding,
            num_extend=0,
        )

    def init_replay_metadata(self, view: ForwardBatch, key: ShapeKey) -> None:
        """See `AttentionBackend.init_replay_metadata`."""
        self.attention_backend.init_replay_metadata(view, key.max_len)

    def logits_of(self, output: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """The rows that are no padding."""
        return output[: batch.batch_size]
