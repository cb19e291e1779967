"""The MPS platform: Apple GPUs. One device, one queue, and memory shared with the host."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch

from runtime.core.errors import PlatformError
from runtime.platforms.accelerator import AcceleratorDeviceMixin
from runtime.platforms.device_mixin import PlatformEnum
from runtime.platforms.interface import PlatformCapabilities, SRTPlatform


class MpsDeviceMixin(AcceleratorDeviceMixin):
    """Device operations through `torch.mps`, which has fewer than the other modules."""

    _enum = PlatformEnum.MPS
    device_name = "mps"
    device_type = "mps"

    @classmethod
    def is_available(cls) -> bool:
        """Whether torch was built with Metal and this Mac has a GPU for it."""
        return torch.backends.mps.is_available()

    def _index(self, device_id: int | None) -> int:
        if device_id not in (None, 0):
            raise PlatformError(f"there is no MPS device {device_id}: a host has one")
        return 0

    def set_device(self, device: torch.device) -> None:
        """Nothing to set: there is one device."""
        if device.type != self.device_type:
            raise PlatformError(f"{device} is no device of platform {self.device_name}")
        self._index(device.index)

    def get_device_name(self, device_id: int | None = None) -> str:
        """torch does not name the chip."""
        self._index(device_id)
        return "Apple GPU"

    def get_device_uuid(self, device_id: int | None = None) -> str | None:
        """None: torch does not tell."""
        self._index(device_id)
        return None

    def get_device_total_memory(self, device_id: int | None = None) -> int:
        """What Metal recommends not to exceed."""
        self._index(device_id)
        return int(self._operation("recommended_max_memory")())

    def get_available_memory(self, device_id: int | None = None) -> tuple[int, int]:
        """`(free, total)`, counting what this process holds."""
        total = self.get_device_total_memory(device_id)
        return max(0, total - self.get_current_memory_usage(device_id)), total

    def get_current_memory_usage(self, device_id: int | None = None) -> int:
        """What the Metal driver has given to this process."""
        self._index(device_id)
        return int(self._operation("driver_allocated_memory")())

    def create_stream(self) -> Any:
        """Not there: see `DeviceMixin.create_stream`."""
        self._refuse_streams()

    def current_stream(self) -> Any:
        """Not there: see `DeviceMixin.current_stream`."""
        self._refuse_streams()

    def use_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """Not there: see `DeviceMixin.use_stream`."""
        self._refuse_streams()

    def _refuse_streams(self) -> NoReturn:
        raise PlatformError("torch has no streams for MPS: all work goes to one queue; use events to mark places in it")

    def seed_everything(self, seed: int) -> None:
        """Seed Python's generator, torch's for the host, and the device's."""
        random.seed(seed)
        torch.manual_seed(seed)
        self._operation("manual_seed")(seed)

    def get_torch_distributed_backend_str(self) -> str:
        """Gloo, on the host."""
        return "gloo"

    def get_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """The CPU's: torch's profiler does not see Metal."""
        return torch.profiler.ProfilerActivity.CPU


class MpsSRTPlatform(MpsDeviceMixin, SRTPlatform):
    """The serving runtime on Apple GPUs."""

    @property
    def capabilities(self) -> PlatformCapabilities:
        """Every dtype but double, which Metal does not have."""
        return PlatformCapabilities(dtypes=("float32", "bfloat16", "float16"))
