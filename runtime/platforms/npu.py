"""The NPU platform: Huawei Ascend, where torch_npu brings `torch.npu`."""

from __future__ import annotations

from runtime.platforms.accelerator import AcceleratorDeviceMixin
from runtime.platforms.device_mixin import PlatformEnum
from runtime.platforms.interface import PlatformCapabilities, SRTPlatform


class NpuDeviceMixin(AcceleratorDeviceMixin):
    """Device operations through `torch.npu`, which torch loads by itself where torch_npu is installed."""

    _enum = PlatformEnum.NPU
    device_name = "npu"
    device_type = "npu"

    def is_pin_memory_available(self) -> bool:
        """Yes."""
        return True

    def get_torch_distributed_backend_str(self) -> str:
        """HCCL."""
        return "hccl"


class NpuSRTPlatform(NpuDeviceMixin, SRTPlatform):
    """The serving runtime on Ascend NPUs."""

    @property
    def capabilities(self) -> PlatformCapabilities:
        """Every dtype but double."""
        return PlatformCapabilities(dtypes=("float32", "bfloat16", "float16"))
