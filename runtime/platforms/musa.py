"""The MUSA platform: Moore Threads GPUs, where torch_musa brings `torch.musa`."""

from __future__ import annotations

import torch

from runtime.platforms.accelerator import AcceleratorDeviceMixin
from runtime.platforms.device_mixin import DeviceCapability, PlatformEnum
from runtime.platforms.interface import PlatformCapabilities, SRTPlatform


class MusaDeviceMixin(AcceleratorDeviceMixin):
    """Device operations through `torch.musa`, which torch loads by itself where torch_musa is installed."""

    _enum = PlatformEnum.MUSA
    device_name = "musa"
    device_type = "musa"

    def get_device_capability(self, device_id: int | None = None) -> DeviceCapability:
        """The compute capability, counted as MUSA counts it."""
        return DeviceCapability(*self._operation("get_device_capability")(self._index(device_id)))

    def get_torch_distributed_backend_str(self) -> str:
        """MCCL."""
        return "mccl"

    def get_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """MUSA's own where torch_musa brings one."""
        activities = torch.profiler.ProfilerActivity
        return getattr(activities, "MUSA", activities.PrivateUse1)


class MusaSRTPlatform(MusaDeviceMixin, SRTPlatform):
    """The serving runtime on Moore Threads GPUs."""

    @property
    def capabilities(self) -> PlatformCapabilities:
        """Every dtype but double."""
        return PlatformCapabilities(dtypes=("float32", "bfloat16", "float16"))
