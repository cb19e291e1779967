"""The CUDA platform: NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from runtime.platforms.accelerator import AcceleratorDeviceMixin
from runtime.platforms.device_mixin import DeviceCapability, PlatformEnum
from runtime.platforms.interface import PlatformCapabilities, ServerArgsT, SRTPlatform, fill_open


class CudaDeviceMixin(AcceleratorDeviceMixin):
    """Device operations through `torch.cuda`.

    Attributes:
        is_hip: whether it takes a torch build for ROCm, which has the same module, instead of one for CUDA.
    """

    _enum = PlatformEnum.CUDA
    device_name = "cuda"
    device_type = "cuda"
    is_hip = False

    @classmethod
    def is_available(cls) -> bool:
        """Whether torch was built for these GPUs and sees one."""
        return (torch.version.hip is not None) == cls.is_hip and super().is_available()

    def get_device_capability(self, device_id: int | None = None) -> DeviceCapability:
        """The compute capability."""
        return DeviceCapability(*self._operation("get_device_capability")(self._index(device_id)))

    def is_pin_memory_available(self) -> bool:
        """Yes."""
        return True

    def get_torch_distributed_backend_str(self) -> str:
        """NCCL."""
        return "nccl"

    def get_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """CUDA's own; a build for ROCm records under the same name."""
        return torch.profiler.ProfilerActivity.CUDA


class CudaSRTPlatform(CudaDeviceMixin, SRTPlatform):
    """The serving runtime on NVIDIA GPUs."""

    @property
    def capabilities(self) -> PlatformCapabilities:
        """Every dtype, and graphs."""
        return PlatformCapabilities(
            dtypes=("float32", "bfloat16", "float16"), float64=True, graph_capture=True, share_input_buffers=True
        )

    def get_graph_backends(self) -> Mapping[str, type | str]:
        """CUDA's graphs first."""
        return {"device": "runtime.platforms.graph_backend.CudaGraphBackend", **super().get_graph_backends()}

    def apply_server_args_defaults(self, server_args: ServerArgsT) -> ServerArgsT:
        """Larger batches than elsewhere: a GPU reads its weights in the same time for hundreds of rows."""
        server_args = fill_open(server_args, max_running_requests=256, max_prefill_tokens=8192)
        return super().apply_server_args_defaults(server_args)
