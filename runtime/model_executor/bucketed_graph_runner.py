"""What all graph runners of the tree share: sizes, buffers, capture and replay. They differ in what they record."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import hookery
from runtime import platforms
from runtime.config import GRAPH_CHECK_ENV, ServerArgs
from runtime.core.errors import ConfigError, EngineError
from runtime.core.forward_batch import ForwardBatch
from runtime.layers import recording
from runtime.model_executor import capture_sizes
from runtime.model_executor.cuda_graph_buffer_registry import CudaGraphBufferRegistry
from runtime.model_executor.graph_runner import GraphRunner, RecordableRunner
from runtime.platforms import graph_backend, probe
from runtime.platforms.graph_backend import GraphBackend
from runtime.plugins import noticing, recorded_hooks

logger = logging.getLogger(__name__)

WARM_UPS = 2
"""How often a step runs before it is recorded: libraries that choose or allocate at first use have then done so."""

COMPILED_ENTRIES = 1 << 16
"""How often a function may be compiled: sizes times layers."""

Step = Callable[[], torch.Tensor]


@dataclass(frozen=True, order=True)
class ShapeKey:
    """What a recorded step was recorded for.

    Attributes:
        size: its capture size: requests of a decode, tokens of a step with prompts.
        max_len: tokens of the longest sequence at most; 0 where recording does not depend on it.
    """

    size: int
    max_len: int = 0


class BucketedGraphRunner(GraphRunner):
    """Records a step for each of some sizes; a batch runs in the smallest that holds it, the rest being padding.

    Every decision is a method, called by name on the object, or a function of `capture_sizes`, called through its
    module: a hook on any of them takes. Sizes, buffers and capture happen once, when the runner is made.

    Attributes:
        backend: how steps are recorded.
        capture_sizes: the sizes, ascending; their last is the largest batch that is replayed.
        registry: owns and fills the input buffers.
        recorded: for each shape, what runs the recorded step and gives its output.
        recorder: what layers ask while a step runs; see `recording`.

    Raises:
        ConfigError: no such backend, no size is left, or a step cannot be recorded.
        PlatformError: the backend cannot work on this host.
    """

    compiles: ClassVar[bool] = False
    """Steps are compiled whatever the backend."""
    rows_per_unit: ClassVar[int] = 1
    """Rows that a unit of the size has: a request brings one token, and a token is one."""

    @classmethod
    def check_device(cls, server_args: ServerArgs, device: torch.device) -> None:
        """See `GraphRunner.check_device`: record, or compile, a step of two operations.

        Raises:
            ConfigError: the platform has no such graph backend.
            PlatformError: the device cannot do what the platform declares.
        """
        backend_cls = graph_backend.resolve_graph_backend_cls(server_args.graph_backend)
        if backend_cls.records:
            probe.check_graph_capture(backend_cls, device)
        if cls.compiles or backend_cls.compiles:
            probe.check_compiler(device)

    def __init__(self, model_runner: RecordableRunner) -> None:
        super().__init__(model_runner)
        self.model = model_runner.model
        self.attention_backend = model_runner.attention_backend
        self.backend = self.make_backend()
        self.capture_sizes = self.choose_capture_sizes()
        self.registry = self.build_registry()
        self.recorder = self.make_recorder()
        self.recorded: dict[ShapeKey, Step] = {}
        self._output: torch.Tensor | None = None
        self._compiled_hooks: list[hookery.Hook] = []
        self._told_of_compiling = False
        self._check = os.environ.get(GRAPH_CHECK_ENV) == "1"
        self.capture()
        self._addresses = self.addresses() if self._check else {}

    # What runners differ in.

    @abstractmethod
    def choose_capture_sizes(self) -> list[int]:
        """The sizes to record, ascending."""

    @abstractmethod
    def build_registry(self) -> CudaGraphBufferRegistry:
        """The input buffers that steps of up to the largest size read."""

    @abstractmethod
    def make_recorder(self) -> recording.Recorder | None:
        """Who layers are told records the step."""

    @abstractmethod
    def capture_keys(self) -> list[ShapeKey]:
        """The shapes to record."""

    @abstractmethod
    def key_for(self, batch: ForwardBatch) -> ShapeKey | None:
        """The shape that a batch is to run in; None if there is none for it."""

    @abstractmethod
    def step_for(self, key: ShapeKey) -> Step:
        """The step of a shape, over the buffers, made ready to run on padding alone."""

    @abstractmethod
    def build_replay_fb_view(self, batch: ForwardBatch, key: ShapeKey) -> ForwardBatch:
        """The batch as what prepares the replay sees it: its tensors are the buffers."""

    @abstractmethod
    def init_replay_metadata(self, view: ForwardBatch, key: ShapeKey) -> None:
        """Prepare what attention reads, from the view of the batch."""

    @abstractmethod
    def logits_of(self, output: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """[B, vocab] logits from what the step gave."""

    # What they share.

    def parallel_sizes(self) -> capture_sizes.ParallelSizes:
        """How ranks share the rows of a step. There is one rank, so that nothing reads the counts that more ranks would
        have among the input buffers; a runner for more says so here."""
        return capture_sizes.ParallelSizes()

    def aligned(self, sizes: Iterable[int]) -> list[int]:
        """`sizes` as the rows of a step must be, see `capture_sizes.filter_for_gather`."""
        return capture_sizes.filter_for_gather(
            sizes, capture_sizes.size_multiple(self.parallel_sizes().alignment(), self.rows_per_unit)
        )

    def gather_options(self) -> dict[str, Any]:
        """What a registry has to know of the ranks that share rows: keyword arguments of `build_decode_registry`."""
        sizes = self.parallel_sizes()
        gathered = sizes.gathered_buffer()
        return {
            "enable_num_token_non_padded": gathered,
            "require_gathered_buffer": gathered,
            "require_mlp_tp_gather": sizes.mlp_tp_gather(),
            "dp_size": sizes.dp_size,
            "attn_tp_size": sizes.attn_tp_size,
            "attn_tp_rank": sizes.attn_tp_rank,
        }

    def make_backend(self) -> GraphBackend:
        """The way to record that was asked for, or the platform's first."""
        backend_cls = graph_backend.resolve_graph_backend_cls(self.model_runner.server_args.graph_backend)
        return backend_cls(self.model_runner.device)

    def can_run(self, batch: ForwardBatch) -> bool:
        """See `GraphRunner.can_run`."""
        return self.key_for(batch) is not None

    def capture(self) -> None:
        """Record every shape, the largest first, so that the others find room in its memory."""
        started = time.perf_counter()
        platform = platforms.current_platform
        before = platform.get_current_memory_usage()
        keys = sorted(self.capture_keys(), reverse=True)
        with platform.inference_mode(), _collector_at_rest(), self.backend.capture_session():
            for key in keys:
                self.registry.reset_for_capture()
                try:
                    self.recorded[key] = self.capture_one(key)
                except Exception as error:
                    if not _comes_from_torch(error):
                        raise
                    what = " ".join(str(error).split())[:400]
                    hooks = ", ".join(hook.describe() for hook in self._compiled_hooks)
                    named = f"hooks in it: {hooks}; " if hooks else ""
                    raise ConfigError(
                        f"{type(self).__qualname__} cannot record a step of {key} with"
                        f" {type(self.backend).__qualname__} ({what}); {named}choose smaller sizes or another"
                        " graph_backend, or switch the graph runner off"
                    ) from error
        logger.info(
            "%s: %d steps in %.1f s, %.2f GiB, sizes %s",
            type(self).__qualname__,
            len(keys),
            time.perf_counter() - started,
            max(0, platform.get_current_memory_usage() - before) / 2**30,
            self.capture_sizes,
        )

    def capture_one(self, key: ShapeKey) -> Step:
        """Warm the step of one shape up and record it."""
        step = self.step_for(key)
        compiles = self.compiles or self.backend.compiles
        # As it is written: what is made or decided at first use is so before a compiler looks, and is no part of the
        # step in which hooks are seen after that.
        for _ in range(WARM_UPS - 1):
            self._run_recorded(step)
            platforms.current_platform.synchronize()
        with noticing.noticed() as found:
            output = self._run_recorded(step)
        if compiles:
            self._compiled_hooks = list(found.hooks)
            recorded_hooks.will_be_compiled(found, self)
            step = _compiled(step, whole=self.recorder is None or not self.recorder.breaks)
        step = functools.partial(self._run_recorded, step)
        for _ in range(WARM_UPS if compiles else 0):
            platforms.current_platform.synchronize()
            output = step()
        platforms.current_platform.synchronize()
        if not self.backend.records:
            return self._telling_of_compiling(step, key) if compiles else step
        if self._output is None or self._output.shape[0] < output.shape[0]:
            self._output = torch.zeros_like(output)
        output = self._output[: output.shape[0]]
        replay = self.record(step, output)
        recorded_hooks.were_recorded(found, self)

        def run() -> torch.Tensor:
            replay()
            return output

        return run

    def record(self, step: Step, output: torch.Tensor) -> Callable[[], None]:
        """Record `step` with a copy of what it gives to `output`; what is returned does that again."""
        self.backend.begin()
        try:
            output.copy_(step())
        except BaseException:
            self.backend.abort()
            raise
        return self.backend.end()

    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        """See `GraphRunner.replay`.

        Raises:
            EngineError: the batch has no recorded step; or, where that is checked, a buffer has moved.
        """
        key = self.key_for(batch)
        if key is None:
            raise EngineError(
                f"{type(self).__qualname__} has no recorded step for a batch of {batch.batch_size} requests and"
                f" {batch.num_tokens} tokens: ask can_run first"
            )
        if self._check:
            self.check_addresses()
        self.fill(batch, key)
        self.init_replay_metadata(self.build_replay_fb_view(batch, key), key)
        return self.logits_of(self.recorded[key](), batch)

    @abstractmethod
    def fill(self, batch: ForwardBatch, key: ShapeKey) -> None:
        """Write the batch into the buffers; see `CudaGraphBufferRegistry.fill_from`."""

    def addresses(self) -> dict[str, int]:
        """Where everything is that a recorded step reads or writes and that is not the model's own."""
        tensors = dict(self.registry.buffers())
        tensors |= {f"attention metadata {i}": t for i, t in enumerate(self.attention_backend.reserved_tensors())}
        tensors |= {f"KV buffer {i}": t for i, t in enumerate(self.model_runner.token_to_kv_pool.storage())}
        if self._output is not None:
            tensors["output"] = self._output
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    def check_addresses(self) -> None:
        """Raise unless everything is where it was when steps were recorded.

        Raises:
            EngineError: something has moved; a replay would read or write what is not its own.
        """
        now = self.addresses()
        moved = sorted(name for name, address in self._addresses.items() if now.get(name) != address)
        if moved:
            raise EngineError(
                f"{type(self).__qualname__}: {', '.join(moved)} moved since steps were recorded: write into tensors"
                " that recorded steps read, and do not replace them"
            )

    def _telling_of_compiling(self, step: Step, key: ShapeKey) -> Step:
        """The compiled step; that it had to be compiled anew is told once."""

        def run() -> torch.Tensor:
            before = _graphs_compiled()
            output = step()
            if _graphs_compiled() > before and not self._told_of_compiling:
                self._told_of_compiling = True
                hooks = ", ".join(hook.describe() for hook in self._compiled_hooks) or "none"
                logger.warning(
                    "%s: a step of %s was compiled anew at replay, which takes long: something that it reads is not as"
                    " it was, such as a number that a hook in it counts up, or a hook came; hooks in it at capture: %s",
                    type(self).__qualname__,
                    key,
                    hooks,
                )
            return output

        return run

    def _run_recorded(self, step: Step) -> torch.Tensor:
        """Run a step, its layers being told who records."""
        with recording.recorded_by(self.recorder):
            return step()


def _compiled(step: Step, whole: bool) -> Step:
    """The step, compiled. One that is `whole` is an error if there is something in it that cannot be: torch would run
    that part as it is written."""
    backend: Any = platforms.current_platform.get_compile_backend()
    compiled: Step = torch.compile(_with_own_code(step), backend=backend, dynamic=False, fullgraph=whole)
    # Layers that are compiled one by one are told apart by what they are: one entry for each of them and each size. At
    # the limit torch would run them as they are written, and only log that.
    return torch._dynamo.config.patch(
        recompile_limit=COMPILED_ENTRIES,
        accumulated_recompile_limit=COMPILED_ENTRIES,
        fail_on_recompile_limit_hit=True,
    )(compiled)


def _graphs_compiled() -> int:
    """How many graphs torch has handed to a compiler in this process."""
    count: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return count


def _with_own_code(step: Any) -> Step:
    """The function with a code object of its own: the compiler keeps what it has made by that, so that steps of other
    sizes would be looked through at each call."""
    copy = type(step)(step.__code__.replace(), step.__globals__, step.__name__, step.__defaults__, step.__closure__)
    own: Step = copy
    return own


def _comes_from_torch(error: Exception) -> bool:
    """Whether torch raised it: what a device says of a forbidden operation, or the compiler, of what it cannot do."""
    # Not imported for this: a second or more. Who has not imported it has not compiled anything.
    compiler = sys.modules.get("torch._dynamo.exc")
    return isinstance(error, (RuntimeError, getattr(compiler, "FailOnRecompileLimitHit", RuntimeError)))


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Nothing is collected while steps are recorded: what a finaliser does on a device would be recorded with them."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
