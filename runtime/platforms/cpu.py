"""The CPU platform: host memory, torch's CPU kernels."""

from __future__ import annotations

import random
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from runtime.core.errors import PlatformError
from runtime.platforms import host_memory
from runtime.platforms.device_mixin import DeviceCapability, DeviceMixin, PlatformEnum
from runtime.platforms.interface import PlatformCapabilities, SRTPlatform

CPUINFO = Path("/proc/cpuinfo")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class HostEvent:
    """A mark in the work of a thread. Whatever was started before it is done when it is recorded."""

    def __init__(self, enable_timing: bool) -> None:
        self.enable_timing = enable_timing
        self._recorded: float | None = None

    def record(self, stream: HostStream | None = None) -> None:
        """Note the time."""
        self._recorded = time.perf_counter()

    def query(self) -> bool:
        """True: all work before the mark is done."""
        return True

    def wait(self, stream: HostStream | None = None) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end_event: HostEvent) -> float:
        """Milliseconds from this mark to `end_event`.

        Raises:
            PlatformError: one of the two was not recorded, or not made to take the time.
        """
        if not (self.enable_timing and end_event.enable_timing):
            raise PlatformError("events take the time only when they are made with enable_timing=True")
        if self._recorded is None or end_event._recorded is None:
            raise PlatformError("both events have to be recorded before the time between them can be told")
        return (end_event._recorded - self._recorded) * 1000.0


class HostStream:
    """The one queue of the host: work is done in order, and done when it returns."""

    def record_event(self, event: HostEvent | None = None) -> HostEvent:
        """Record `event`, or a new one, and return it."""
        event = HostEvent(enable_timing=False) if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: HostEvent) -> None:
        """Nothing to wait for."""

    def wait_stream(self, stream: HostStream) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """True: all work is done."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""


_HOST_STREAM = HostStream()


class CpuDeviceMixin(DeviceMixin):
    """Device operations on the host's processors, which are one device: its index is 0."""

    _enum = PlatformEnum.CPU
    device_name = "cpu"
    device_type = "cpu"

    @classmethod
    def is_available(cls) -> bool:
        """Yes."""
        return True

    def get_device(self, local_rank: int) -> torch.device:
        """The one CPU device, whatever the rank: every process of a host shares it."""
        if local_rank < 0:
            raise PlatformError(f"local rank {local_rank} is not valid: ranks start at 0")
        return torch.device("cpu")

    def set_device(self, device: torch.device) -> None:
        """Nothing to set: there is one device."""
        if device.type != self.device_type:
            raise PlatformError(f"{device} is no device of platform {self.device_name}")
        self._check(device.index)

    def _check(self, device_id: int | None) -> None:
        if device_id not in (None, 0):
            raise PlatformError(f"there is no CPU device {device_id}: a host has one")

    def get_device_name(self, device_id: int | None = None) -> str:
        """The processor's model name as the kernel gives it."""
        self._check(device_id)
        try:
            lines = CPUINFO.read_text().splitlines()
        except OSError as error:
            raise PlatformError(f"the processor's name is not readable: {CPUINFO}: {error.strerror}") from error
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Processor", "cpu model"):
                return value.strip()
        return f"unnamed {self.get_cpu_architecture().value} CPU"  # many ARM kernels name no model

    def get_device_uuid(self, device_id: int | None = None) -> str | None:
        """The kernel's number for this run of the host; None where it gives none."""
        self._check(device_id)
        return BOOT_ID.read_text().strip() if BOOT_ID.is_file() else None

    def get_device_capability(self, device_id: int | None = None) -> DeviceCapability | None:
        """None: processors are not numbered."""
        self._check(device_id)
        return None

    def get_device_total_memory(self, device_id: int | None = None) -> int:
        """Host memory in bytes, cut by control-group limits."""
        self._check(device_id)
        return host_memory.total_memory()

    def get_available_memory(self, device_id: int | None = None) -> tuple[int, int]:
        """`(free, total)` host memory in bytes, cut by control-group limits."""
        total = self.get_device_total_memory(device_id)
        return host_memory.free_memory(), total

    def get_current_memory_usage(self, device_id: int | None = None) -> int:
        """The process's resident set in bytes."""
        self._check(device_id)
        return host_memory.resident_memory()

    def empty_cache(self) -> None:
        """Nothing to give back: torch's CPU allocator keeps no cache."""

    def synchronize(self) -> None:
        """Nothing to wait for: CPU operations are done when they return."""

    def create_stream(self) -> HostStream:
        """The host's one queue."""
        return _HOST_STREAM

    def current_stream(self) -> HostStream:
        """The host's one queue."""
        return _HOST_STREAM

    def use_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context that changes nothing."""
        return nullcontext(stream)

    def create_event(self, enable_timing: bool = False) -> HostEvent:
        """See `DeviceMixin.create_event`."""
        return HostEvent(enable_timing)

    def is_pin_memory_available(self) -> bool:
        """No: nothing is copied to a device."""
        return False

    def seed_everything(self, seed: int) -> None:
        """Seed Python's and torch's default generators."""
        random.seed(seed)
        torch.manual_seed(seed)

    def inference_mode(self) -> AbstractContextManager[Any]:
        """`torch.inference_mode()`."""
        return torch.inference_mode()

    def get_torch_distributed_backend_str(self) -> str:
        """Gloo."""
        return "gloo"

    def get_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """The CPU's."""
        return torch.profiler.ProfilerActivity.CPU


class CpuSRTPlatform(CpuDeviceMixin, SRTPlatform):
    """The serving runtime on the CPU, with every in-tree class."""

    @property
    def capabilities(self) -> PlatformCapabilities:
        """Every dtype."""
        return PlatformCapabilities(dtypes=("float32", "bfloat16", "float16"), float64=True, share_input_buffers=True)
