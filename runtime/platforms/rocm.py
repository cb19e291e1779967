"""The ROCm platform: AMD GPUs. A torch build for ROCm shows them as `torch.cuda`, device strings included."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.platforms.cuda import CudaDeviceMixin
from runtime.platforms.device_mixin import PlatformEnum
from runtime.platforms.interface import PlatformCapabilities, SRTPlatform


class RocmDeviceMixin(CudaDeviceMixin):
    """The operations of CUDA under another name; `device_type` stays `"cuda"`, the only one torch knows here."""

    _enum = PlatformEnum.ROCM
    device_name = "rocm"
    is_hip = True


class RocmSRTPlatform(RocmDeviceMixin, SRTPlatform):
    """The serving runtime on AMD GPUs. What it declares is its own and less than CUDA's: only what is the same on all
    of them."""

    @property
    def capabilities(self) -> PlatformCapabilities:
        """Every dtype, and HIP graphs, which torch has under CUDA's names."""
        return PlatformCapabilities(
            dtypes=("float32", "bfloat16", "float16"), float64=True, graph_capture=True, share_input_buffers=True
        )

    def get_graph_backends(self) -> Mapping[str, type | str]:
        """HIP's graphs first."""
        return {"device": "runtime.platforms.graph_backend.CudaGraphBackend", **super().get_graph_backends()}
