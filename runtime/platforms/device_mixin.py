"""The device operations the runtime uses, as one class per device.

The same mixin serves every kind of platform (language models now, diffusion later), so it knows devices and nothing
of models. A platform for a device that has a torch device module derives from `AcceleratorDeviceMixin` and overrides
what differs; deriving from `DeviceMixin` itself means to write every operation.
"""

from __future__ import annotations

import enum
import platform
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class PlatformEnum(enum.Enum):
    """The kinds of platforms; for an in-tree one the value is what `RUNTIME_PLATFORM` takes."""

    CUDA = "cuda"
    ROCM = "rocm"
    CPU = "cpu"
    XPU = "xpu"
    NPU = "npu"
    MUSA = "musa"
    MPS = "mps"
    OOT = "oot"
    """Every platform that comes from a plugin."""
    UNSPECIFIED = "unspecified"
    """A class that has not said what it is."""


class CpuArchEnum(enum.Enum):
    """Instruction sets of the host's processors."""

    X86 = "x86"
    ARM = "arm"
    OTHER = "other"

    @classmethod
    def of(cls, machine: str) -> CpuArchEnum:
        """The architecture that `uname -m` calls `machine`."""
        if machine.lower() in ("x86_64", "amd64", "i386", "i686"):
            return cls.X86
        return cls.ARM if machine.lower().startswith(("aarch64", "arm")) else cls.OTHER


class DeviceCapability(NamedTuple):
    """The generation of a device as its maker counts it, `(9, 0)` for Hopper; compares like a version."""

    major: int
    minor: int

    def as_version_str(self) -> str:
        """`"9.0"`."""
        return f"{self.major}.{self.minor}"

    def to_int(self) -> int:
        """`90`.

        Raises:
            ValueError: the minor version has two digits, and the number would mean another device.
        """
        if not 0 <= self.minor < 10:
            raise ValueError(f"capability {self.as_version_str()} cannot be written as one number")
        return self.major * 10 + self.minor


class DeviceMixin(ABC):
    """Typed device operations. Sizes are bytes. `device_id` is a device's index; None is the current device.

    Attributes:
        device_name: the platform's name, unique among platforms (`"rocm"`).
        device_type: the type string torch uses in `torch.device` (`"cuda"`, for ROCm too).
    """

    _enum: PlatformEnum = PlatformEnum.UNSPECIFIED
    device_name: str
    device_type: str

    # Which platform this is: for platforms and plugins. The runtime itself never asks, it calls operations.

    def is_cuda(self) -> bool:
        """Whether this is the in-tree platform for NVIDIA GPUs."""
        return self._enum is PlatformEnum.CUDA

    def is_rocm(self) -> bool:
        """Whether this is the in-tree platform for AMD GPUs."""
        return self._enum is PlatformEnum.ROCM

    def is_cpu(self) -> bool:
        """Whether this is the in-tree CPU platform."""
        return self._enum is PlatformEnum.CPU

    def is_xpu(self) -> bool:
        """Whether this is the in-tree platform for Intel GPUs."""
        return self._enum is PlatformEnum.XPU

    def is_npu(self) -> bool:
        """Whether this is the in-tree platform for Ascend NPUs."""
        return self._enum is PlatformEnum.NPU

    def is_musa(self) -> bool:
        """Whether this is the in-tree platform for Moore Threads GPUs."""
        return self._enum is PlatformEnum.MUSA

    def is_mps(self) -> bool:
        """Whether this is the in-tree platform for Apple GPUs."""
        return self._enum is PlatformEnum.MPS

    def is_cuda_alike(self) -> bool:
        """Whether this is an in-tree platform whose device module has CUDA's surface."""
        return self._enum in (PlatformEnum.CUDA, PlatformEnum.ROCM, PlatformEnum.MUSA)

    def is_out_of_tree(self) -> bool:
        """Whether a plugin brought this platform."""
        return self._enum is PlatformEnum.OOT

    def get_cpu_architecture(self) -> CpuArchEnum:
        """The instruction set of the host's processors."""
        return CpuArchEnum.of(platform.machine())

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Whether this host has such a device and torch can use it. Asked before an instance is made."""

    @abstractmethod
    def get_device(self, local_rank: int) -> torch.device:
        """The device that process `local_rank` of this host works on.

        Raises:
            PlatformError: this host has no such device.
        """

    @abstractmethod
    def set_device(self, device: torch.device) -> None:
        """Make `device` this thread's current device.

        Raises:
            PlatformError: it is a device of another type.
        """

    @abstractmethod
    def get_device_name(self, device_id: int | None = None) -> str:
        """The model name of the hardware, for people."""

    @abstractmethod
    def get_device_uuid(self, device_id: int | None = None) -> str | None:
        """What tells this piece of hardware from every other; the form depends on the platform. None if torch has no
        way to tell."""

    @abstractmethod
    def get_device_capability(self, device_id: int | None = None) -> DeviceCapability | None:
        """The generation of the hardware; None if its maker does not number them."""

    @abstractmethod
    def get_device_total_memory(self, device_id: int | None = None) -> int:
        """Memory of the device that this process may use."""

    @abstractmethod
    def get_available_memory(self, device_id: int | None = None) -> tuple[int, int]:
        """`(free, total)` memory of the device now, `total` being `get_device_total_memory()`."""

    @abstractmethod
    def get_current_memory_usage(self, device_id: int | None = None) -> int:
        """Memory of the device this process holds now, what its allocator keeps in store included."""

    @abstractmethod
    def empty_cache(self) -> None:
        """Give cached but unused memory back to the device."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the current device has finished everything queued on it."""

    @abstractmethod
    def create_stream(self) -> Any:
        """A new queue of work on the current device, with the methods of `torch.Stream`.

        Raises:
            PlatformError: torch has no streams for this device.
        """

    @abstractmethod
    def current_stream(self) -> Any:
        """The queue that work of this thread goes to.

        Raises:
            PlatformError: torch has no streams for this device.
        """

    @abstractmethod
    def use_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which the work of this thread goes to `stream`.

        Raises:
            PlatformError: torch has no streams for this device.
        """

    @abstractmethod
    def create_event(self, enable_timing: bool = False) -> Any:
        """A mark in a queue of work, with the methods of `torch.Event`; `elapsed_time` (in milliseconds) needs two
        that were made with `enable_timing`."""

    @abstractmethod
    def is_pin_memory_available(self) -> bool:
        """Whether host tensors can be page-locked, so that copies to the device run beside the host."""

    @abstractmethod
    def seed_everything(self, seed: int) -> None:
        """Seed the device's default random generators (and the host's)."""

    @abstractmethod
    def inference_mode(self) -> AbstractContextManager[Any]:
        """A context in which the forward pass runs without recording gradients."""

    @abstractmethod
    def get_torch_distributed_backend_str(self) -> str:
        """The backend for `torch.distributed.init_process_group`, such as `"nccl"`."""

    @abstractmethod
    def get_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """What `torch.profiler` has to record to see the device's work; the CPU's where it cannot see the device."""
