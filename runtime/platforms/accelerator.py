"""Device operations through a torch device module: what CUDA, ROCm, XPU, NPU and MUSA have in common.

`torch.cuda` set the shape of these modules and the others follow it, out-of-tree ones too: a device that is registered
as a PrivateUse1 backend with such a module needs little more than its two names. `torch.accelerator` is not used: for a
backend written in Python it lacks most of these operations.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from typing import Any

import torch

from runtime.core.errors import PlatformError
from runtime.platforms.device_mixin import DeviceCapability, DeviceMixin


class AcceleratorDeviceMixin(DeviceMixin):
    """Every operation delegated to `torch.<device_type>`.

    Raises:
        PlatformError: of every operation: torch has no such module, or the module has no such operation.
    """

    @classmethod
    def is_available(cls) -> bool:
        """Whether torch has the device module, and that says it is available."""
        module = getattr(torch, cls.device_type, None)
        return module is not None and bool(module.is_available())

    def _operation(self, name: str) -> Any:
        module = getattr(torch, self.device_type, None)
        if module is None:
            raise PlatformError(
                f"torch has no device module torch.{self.device_type}: install the package that brings it"
            )
        operation = getattr(module, name, None)
        if operation is None:
            raise PlatformError(f"torch.{self.device_type} has no {name}: a newer release of what brings it is needed")
        return operation

    def _index(self, device_id: int | None) -> int:
        # Given out in full: not every module's operations know what None means.
        return int(self._operation("current_device")()) if device_id is None else device_id

    def get_device(self, local_rank: int) -> torch.device:
        """The device with the index `local_rank`."""
        count = self._operation("device_count")()
        if not 0 <= local_rank < count:
            raise PlatformError(
                f"local rank {local_rank} has no {self.device_name} device: this host shows {count} of them"
            )
        return torch.device(self.device_type, local_rank)

    def set_device(self, device: torch.device) -> None:
        """See `DeviceMixin.set_device`."""
        if device.type != self.device_type:
            raise PlatformError(f"{device} is no device of platform {self.device_name}")
        self._operation("set_device")(device)

    def get_device_name(self, device_id: int | None = None) -> str:
        """See `DeviceMixin.get_device_name`."""
        return str(self._operation("get_device_name")(self._index(device_id)))

    def get_device_uuid(self, device_id: int | None = None) -> str | None:
        """See `DeviceMixin.get_device_uuid`."""
        uuid = getattr(self._operation("get_device_properties")(self._index(device_id)), "uuid", None)
        return None if uuid is None else str(uuid)

    def get_device_capability(self, device_id: int | None = None) -> DeviceCapability | None:
        """None unless the device's maker numbers generations: see `DeviceMixin.get_device_capability`."""
        return None

    def get_device_total_memory(self, device_id: int | None = None) -> int:
        """See `DeviceMixin.get_device_total_memory`."""
        return int(self._operation("get_device_properties")(self._index(device_id)).total_memory)

    def get_available_memory(self, device_id: int | None = None) -> tuple[int, int]:
        """See `DeviceMixin.get_available_memory`."""
        free, total = self._operation("mem_get_info")(self._index(device_id))
        return int(free), int(total)

    def get_current_memory_usage(self, device_id: int | None = None) -> int:
        """What torch's caching allocator holds; see `DeviceMixin.get_current_memory_usage`."""
        return int(self._operation("memory_reserved")(self._index(device_id)))

    def empty_cache(self) -> None:
        """See `DeviceMixin.empty_cache`."""
        self._operation("empty_cache")()

    def synchronize(self) -> None:
        """See `DeviceMixin.synchronize`."""
        self._operation("synchronize")()

    def create_stream(self) -> Any:
        """See `DeviceMixin.create_stream`."""
        return self._operation("Stream")()

    def current_stream(self) -> Any:
        """See `DeviceMixin.current_stream`."""
        return self._operation("current_stream")()

    def use_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """See `DeviceMixin.use_stream`."""
        context: AbstractContextManager[Any] = self._operation("stream")(stream)
        return context

    def create_event(self, enable_timing: bool = False) -> Any:
        """See `DeviceMixin.create_event`."""
        return self._operation("Event")(enable_timing=enable_timing)

    def is_pin_memory_available(self) -> bool:
        """No, unless the platform says otherwise: page-locked memory needs an allocator of the backend's own."""
        return False

    def seed_everything(self, seed: int) -> None:
        """Seed Python's generator, torch's for the host, and that of every device."""
        random.seed(seed)
        torch.manual_seed(seed)
        self._operation("manual_seed_all")(seed)

    def inference_mode(self) -> AbstractContextManager[Any]:
        """`torch.inference_mode()`."""
        return torch.inference_mode()

    def get_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """The activity torch keeps for out-of-tree backends."""
        return torch.profiler.ProfilerActivity.PrivateUse1
