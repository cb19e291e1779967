"""The XPU platform: Intel GPUs."""

from __future__ import annotations

import torch

from runtime.platforms.accelerator import AcceleratorDeviceMixin
from runtime.platforms.device_mixin import PlatformEnum
from runtime.platforms.interface import PlatformCapabilities, SRTPlatform


class XpuDeviceMixin(AcceleratorDeviceMixin):
    """Device operations through `torch.xpu`."""

    _enum = PlatformEnum.XPU
    device_name = "xpu"
    device_type = "xpu"

    def is_pin_memory_available(self) -> bool:
        """Yes."""
        return True

    def get_torch_distributed_backend_str(self) -> str:
        """XCCL."""
        return "xccl"

    def get_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """XPU's own."""
        return torch.profiler.ProfilerActivity.XPU


class XpuSRTPlatform(XpuDeviceMixin, SRTPlatform):
    """The serving runtime on Intel GPUs."""

    @property
    def capabilities(self) -> PlatformCapabilities:
        """Every dtype but double, which not every one of these GPUs computes in."""
        return PlatformCapabilities(dtypes=("float32", "bfloat16", "float16"))
