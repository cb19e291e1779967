"""Recorded steps with prompts: everything between one attention and the next, attention itself left out."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from runtime import platforms
from runtime.core.errors import ConfigError
from runtime.core.forward_batch import ForwardBatch, ForwardMode
from runtime.layers import recording
from runtime.layers.attention.base import AttentionBackend
from runtime.layers.attention.latent import IndexInputs, LatentProjection
from runtime.model_executor import capture_sizes, cuda_graph_buffer_registry, input_buffers
from runtime.model_executor.bucketed_graph_runner import BucketedGraphRunner, ShapeKey, Step
from runtime.model_executor.cuda_graph_buffer_registry import CudaGraphBufferRegistry
from runtime.platforms.graph_backend import GraphBackend
from runtime.plugins import noticing
from runtime.sampling import logits_processor

MAX_PADDING = 2
"""A step that would be padded to more than so many times its tokens runs as it is written."""


class BreakRecorder:
    """Runs parts of a step outside the recording, which it ends before them and goes on with after them.

    A recording becomes a list: recorded pieces, and between them calls that are made anew at each replay and read what
    holds then. They are not made while a step is recorded, when nothing has been computed that they could read; what
    they give is known from the runs that warm the step up.

    Pieces hand over what a call reads, and take what it gives, in `buffers`. All sizes and all layers have the same
    ones, since nobody needs them when the next piece has begun; otherwise each size would keep queries, keys and values
    of each layer.

    Attributes:
        num_tokens: how many tokens the step that runs now has, padding aside.
        parts: what a replay does, while a step is recorded.
        buffers: by place among the tensors of a call (-1 for what it gives), shape of a row and dtype.

    Args:
        backend: what records.
        share: buffers are shared with other runners of the process, see `input_buffers`.
    """

    breaks = True

    def __init__(self, backend: GraphBackend, share: bool = False) -> None:
        self.backend = backend
        self.share = share
        self.num_tokens = 0
        self.parts: list[Callable[[], None]] | None = None
        self.buffers: dict[_BufferKey, torch.Tensor] = {}
        self._given: list[_BufferKey] = []
        self._breaks = 0

    def start(self) -> None:
        """A step begins."""
        self._breaks = 0

    def run_eagerly(self, function: Callable[..., torch.Tensor], *args: object) -> torch.Tensor:
        """See `Recorder.run_eagerly`."""
        tensors = _tensors_in(args)
        size = tensors[0].shape[0]
        number, self._breaks = self._breaks, self._breaks + 1
        if self.parts is None:
            with noticing.left():
                out = function(*_first_tokens(args, self.num_tokens))
                if self.backend.records:
                    self._make_room(number, size, tensors, out)
            return out if out.shape[0] == size else torch.cat((out, out.new_zeros(size - out.shape[0], *out.shape[1:])))
        places = {id(tensor): self.buffers[_key(i, tensor)][:size] for i, tensor in enumerate(tensors)}
        for tensor in tensors:
            places[id(tensor)].copy_(tensor)
        handed_over = _mapped(args, lambda tensor: places[id(tensor)])
        out = self.buffers[self._given[number]][:size]
        self.parts.append(self.backend.end())

        live = _looked_up_anew(function)

        def again() -> None:
            out[: self.num_tokens] = live()(*_first_tokens(handed_over, self.num_tokens))
            out[self.num_tokens :].zero_()

        self.parts.append(again)
        self.backend.begin()
        # What follows may write to it, or need it beyond the next call.
        return out.clone()

    def _make_room(self, number: int, size: int, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        given = _key(-1, out)
        self._given[number : number + 1] = [given]
        for key in (given, *(_key(i, tensor) for i, tensor in enumerate(tensors))):
            if key in self.buffers and self.buffers[key].shape[0] >= size:
                continue
            buffer = torch.zeros(size, *key.row, dtype=key.dtype, device=out.device)
            name = f"break {key.place} {key.row}"
            self.buffers[key] = input_buffers.share_input_buffer(name, buffer) if self.share else buffer


class BreakingAttention(AttentionBackend):
    """An attention backend that leaves the recording."""

    def __init__(self, attention_backend: AttentionBackend, recorder: recording.Recorder) -> None:
        self.attention_backend = attention_backend
        self.recorder = recorder
        self.config = attention_backend.config

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """See `AttentionBackend.init_forward_metadata`."""
        self.attention_backend.init_forward_metadata(forward_batch)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer_id: int) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        return self.recorder.run_eagerly(self.attention_backend.forward, q, k, v, layer_id)

    def forward_mla(
        self,
        q_nope: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        k_rope: torch.Tensor,
        projection: LatentProjection,
        layer_id: int,
        index: IndexInputs | None = None,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward_mla`."""
        forward_mla = self.attention_backend.forward_mla
        return self.recorder.run_eagerly(forward_mla, q_nope, q_rope, latent, k_rope, projection, layer_id, index)


class BreakableCudaGraphRunner(BucketedGraphRunner):
    """Records steps with prompts, decodes among them included, for some numbers of tokens.

    Attention, and what has to ask the device, runs by itself between the recorded pieces, on the tokens there are, and
    reads the batch of the replay. The output projection follows the recording, on the last token of each row alone.
    """

    def choose_capture_sizes(self) -> list[int]:
        """Token counts, up to the most tokens of a step or the largest that was asked for."""
        args = self.model_runner.server_args
        prompts = min(self.model_runner.max_prefill_tokens, args.chunked_prefill_size or sys.maxsize)
        # Decodes share a step with prompts.
        most = prompts + self.model_runner.max_running_requests
        sizes = capture_sizes.prefill_capture_sizes(most, chosen=args.prefill_graph_sizes)
        return self.aligned(sizes)

    def build_registry(self) -> CudaGraphBufferRegistry:
        """See `build_prefill_registry`."""
        return cuda_graph_buffer_registry.build_prefill_registry(
            device=self.model_runner.device,
            max_bs=self.model_runner.max_running_requests,
            max_num_token=self.capture_sizes[-1],
            share_pool=platforms.current_platform.capabilities.share_input_buffers,
            **self.gather_options(),
        )

    def make_backend(self) -> GraphBackend:
        """See `BucketedGraphRunner.make_backend`.

        Raises:
            ConfigError: it compiles, which is what the piecewise runner is for.
        """
        backend = super().make_backend()
        if backend.compiles and not self.compiles:
            raise ConfigError(
                f"{type(self).__qualname__} does without a compiler: choose prefill_graph='piecewise' with this"
                " graph_backend, or another graph_backend"
            )
        return backend

    def make_recorder(self) -> BreakRecorder:
        """One that can leave the recording."""
        self.breaks = BreakRecorder(self.backend, platforms.current_platform.capabilities.share_input_buffers)
        self.breaking_attention = BreakingAttention(self.attention_backend, self.breaks)
        return self.breaks

    def addresses(self) -> dict[str, int]:
        """See `BucketedGraphRunner.addresses`."""
        handed_over = {f"break {key.place} {key.row} {key.dtype}": t for key, t in self.breaks.buffers.items()}
        return super().addresses() | {name: tensor.data_ptr() for name, tensor in handed_over.items()}

    def capture_keys(self) -> list[ShapeKey]:
        """Each size."""
        return [ShapeKey(size) for size in self.capture_sizes]

    def key_for(self, batch: ForwardBatch) -> ShapeKey | None:
        """See `BucketedGraphRunner.key_for`."""
        if batch.forward_mode.is_decode():
            return None
        size = capture_sizes.find_capture_size(self.capture_sizes, batch.num_tokens)
        if size is None or size > MAX_PADDING * batch.num_tokens:
            return None
        return ShapeKey(size)

    def step_for(self, key: ShapeKey) -> Step:
        """See `BucketedGraphRunner.step_for`."""
        # One token of the padding request, whose key and value go to the sink.
        views = self.registry.slice_for(1, 1)
        ones = torch.ones(1, dtype=torch.int64, device=self.model_runner.device)
        padding = ForwardBatch(
            forward_mode=ForwardMode.EXTEND,
            input_ids=views["input_ids"],
            positions=views["positions"],
            out_cache_loc=views["out_cache_loc"],
            req_pool_indices=torch.zeros_like(ones),
            seq_lens=ones,
            seq_lens_cpu=[1],
            extend_lens_cpu=[1],
            num_extend=1,
        )
        self.init_replay_metadata(padding, key)
        views = self.registry.slice_for(1, key.size)
        model, attention = self.model, self.breaking_attention
        input_ids, positions = views["input_ids"], views["positions"]

        def step() -> torch.Tensor:
            return model.forward(input_ids, positions, attention)

        return step

    def _run_recorded(self, step: Step) -> torch.Tensor:
        """See `BucketedGraphRunner._run_recorded`."""
        self.breaks.start()
        return super()._run_recorded(step)

    def record(self, step: Step, output: torch.Tensor) -> Callable[[], None]:
        """See `BucketedGraphRunner.record`; the recording is in pieces."""
        self.breaks.parts = parts = []
        try:
            parts.append(super().record(step, output))
        finally:
            self.breaks.parts = None

        def replay() -> None:
            for part in parts:
                part()

        return replay

    def fill(self, batch: ForwardBatch, key: ShapeKey) -> None:
        """See `BucketedGraphRunner.fill`."""
        size, tokens = batch.batch_size, batch.num_tokens
        self.registry.fill_from(batch, raw_bs=size, padded_bs=size, raw_num_tokens=tokens, padded_num_tokens=key.size)

    def build_replay_fb_view(self, batch: ForwardBatch, key: ShapeKey) -> ForwardBatch:
        """The batch without padding, which attention does not see, its tensors being the buffers."""
        return self.registry.extract_buffer(batch.batch_size, batch.num_tokens, batch)

    def init_replay_metadata(self, view: ForwardBatch, key: ShapeKey) -> None:
        """See `AttentionBackend.init_forward_metadata`; attention is not recorded."""
        self.breaks.num_tokens = view.num_tokens
        self.attention_backend.init_forward_metadata(view)

    def logits_of(self, output: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Logits after the last token of each row."""
        return self.model.compute_logits(logits_processor.last_hidden_states(output[: batch.num_tokens], batch))


class _BufferKey(NamedTuple):
    place: int
    row: tuple[int, ...]
    dtype: torch.dtype


def _key(place: int, tensor: torch.Tensor) -> _BufferKey:
    return _BufferKey(place, tuple(tensor.shape[1:]), tensor.dtype)


def _looked_up_anew(function: Callable[..., torch.Tensor]) -> Callable[[], Callable[..., torch.Tensor]]:
    """Gives the function; if it is a method, what its object has by that name then: it may have been hooked since."""
    if isinstance(function, types.MethodType):
        owner, name = function.__self__, function.__name__
        if getattr(owner, name, None) == function:
            return lambda: getattr(owner, name)
    return lambda: function


def _first_tokens(args: Iterable[object], num_tokens: int) -> list[object]:
    """`args`, every tensor among them, or in a dataclass among them, cut to its first `num_tokens` rows."""
    return _mapped(args, lambda tensor: tensor[:num_tokens])


def _mapped(args: Iterable[object], change: Callable[[torch.Tensor], torch.Tensor]) -> list[object]:
    """`args`, every tensor among them, or in a dataclass among them, changed."""
    mapped: list[object] = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            mapped.append(change(arg))
        elif dataclasses.is_dataclass(arg) and not isinstance(arg, type):
            names = [field.name for field in dataclasses.fields(arg)]
            values = _mapped([getattr(arg, name) for name in names], change)
            mapped.append(dataclasses.replace(arg, **dict(zip(names, values, strict=True))))
        else:
            mapped.append(arg)
    return mapped


def _tensors_in(args: Iterable[object]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    _mapped(args, note)
    return found
