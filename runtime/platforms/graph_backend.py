"""Ways to record a step and run it again: by the device, by a compiler, or not at all.

A step is a function without arguments that reads and writes tensors that stay where they are. A backend that *records*
notes what is done between `begin` and `end` and can do it again without Python; the others run the function again.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from runtime import platforms
from runtime.core.errors import ConfigError, PlatformError


class GraphBackend(ABC):
    """Made once per graph runner.

    Attributes:
        records: what Python does in a step is done once, when it is recorded.
        compiles: a step is to be compiled, once for each of its shapes, which must therefore be few.

    Args:
        device: where steps run.

    Raises:
        PlatformError: steps cannot be recorded on this host.
    """

    records: ClassVar[bool] = False
    compiles: ClassVar[bool] = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def capture_session(self) -> Iterator[None]:
        """What all recordings of one runner, with the runs that warm them up, are done in."""
        yield

    @abstractmethod
    def begin(self) -> None:
        """Start to record what this thread does on the device."""

    @abstractmethod
    def end(self) -> Callable[[], None]:
        """Stop recording; what is returned does all of it again. It keeps alive what it needs but its inputs."""

    @abstractmethod
    def abort(self) -> None:
        """Stop recording and forget what was recorded, after an error in between; never raises one of its own."""


def resolve_graph_backend_cls(asked: str | None) -> type[GraphBackend]:
    """The current platform's way to record that was asked for, or its first.

    Raises:
        ConfigError: the platform has none of that name, or what it has is no such class.
    """
    platform = platforms.current_platform
    backends = platform.get_graph_backends()
    if not isinstance(backends, Mapping) or not backends:
        raise ConfigError(
            f"platform {platform.device_name}: get_graph_backends has to return one class or more by name, not"
            f" {backends!r}; without an override it returns those of the runtime"
        )
    name = next(iter(backends)) if asked is None else asked
    if name not in backends:
        raise ConfigError(
            f"graph_backend={name!r} is not known on platform {platform.device_name}: use one of {', '.join(backends)}"
        )
    what = f"graph backend {name!r} from get_graph_backends"
    return platforms.resolve_class(backends[name], GraphBackend, what, ["device"])  # type: ignore[type-abstract]


class PlainGraphBackend(GraphBackend):
    """Records nothing: a step runs again as it is written. For devices that cannot record, and to find out whether a
    fault is one of recording."""

    def begin(self) -> None:
        """Nothing is recorded."""
        raise PlatformError(f"graph backend {type(self).__qualname__} does not record: run the step again")

    def end(self) -> Callable[[], None]:
        """Nothing is recorded."""
        raise PlatformError(f"graph backend {type(self).__qualname__} does not record: run the step again")

    def abort(self) -> None:
        """Nothing to forget."""


class CompiledGraphBackend(PlainGraphBackend):
    """As plain, the step compiled with `torch.compile` for each size it is captured at.

    Compiling takes seconds per size. What the compiler makes is kept on disk, by default where torch puts it
    (`TORCHINDUCTOR_CACHE_DIR`), and the next start takes it from there.
    """

    compiles = True


class DeviceGraphBackend(GraphBackend):
    """What backends that let the device record have in common: one stream to record on, one pool of memory.

    Recordings of all runners of a process share one memory pool, since they never run at the same time: what one of
    them needs in between lies where another's did. So the largest is to be recorded first. The pool goes with the last
    of them, and must not be asked for then.
    """

    records = True
    _graphs: ClassVar[weakref.WeakSet[Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._graphs = weakref.WeakSet()

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._graph: Any = None

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the device."""

    @abstractmethod
    def side_stream(self) -> Any:
        """A context in which work goes to a stream of its own, ordered after what was queued before it; what is queued
        after it is ordered after that."""

    @abstractmethod
    def new_graph(self, pool: Any) -> Any:
        """A graph whose memory comes from `pool`, or from a new one if that is None; recording has begun."""

    @contextmanager
    def capture_session(self) -> Iterator[None]:
        """See `GraphBackend.capture_session`."""
        self.synchronize()
        with self.side_stream():
            yield
        self.synchronize()

    def begin(self) -> None:
        """See `GraphBackend.begin`."""
        # A pool lives as long as one of its graphs does; one that has ended cannot be taken up again.
        pool = next((graph.pool() for graph in self._graphs), None)
        self._graph = self.new_graph(pool)

    def end(self) -> Callable[[], None]:
        """See `GraphBackend.end`."""
        graph, self._graph = self._graph, None
        graph.capture_end()
        self._graphs.add(graph)
        replay: Callable[[], None] = graph.replay
        return replay

    def abort(self) -> None:
        """See `GraphBackend.abort`."""
        graph, self._graph = self._graph, None
        if graph is None:
            return
        try:
            graph.capture_end()
        except RuntimeError:
            # The error in between has ended the capture already; that error is the one to be seen.
            self._graph = None


class CudaGraphBackend(DeviceGraphBackend):
    """CUDA graphs, and HIP graphs, which torch has under the same name."""

    def synchronize(self) -> None:
        """See `DeviceGraphBackend.synchronize`."""
        torch.cuda.synchronize(self.device)

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """See `DeviceGraphBackend.side_stream`."""
        current = torch.cuda.current_stream(self.device)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            yield
        current.wait_stream(stream)

    def new_graph(self, pool: Any) -> Any:
        """See `DeviceGraphBackend.new_graph`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device; a step that does what cannot be recorded is still an error.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        return graph


class AcceleratorGraphBackend(DeviceGraphBackend):
    """`torch.accelerator.Graph`: whatever device torch calls the accelerator, if its backend can record.

    Raises:
        PlatformError: this torch has no such graphs.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        if not hasattr(torch.accelerator, "Graph"):
            raise PlatformError(
                f"torch {torch.__version__} has no torch.accelerator.Graph: install torch 2.13 or newer, or choose"
                " another graph backend"
            )

    def synchronize(self) -> None:
        """See `DeviceGraphBackend.synchronize`."""
        torch.accelerator.synchronize(self.device)

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """See `DeviceGraphBackend.side_stream`."""
        current = torch.accelerator.current_stream(self.device)
        stream = torch.Stream(self.device)
        stream.wait_stream(current)
        with stream:
            yield
        current.wait_stream(stream)

    def new_graph(self, pool: Any) -> Any:
        """See `DeviceGraphBackend.new_graph`."""
        graph = torch.accelerator.Graph(pool=pool, capture_error_mode="thread_local")
        graph.capture_begin()
        return graph
