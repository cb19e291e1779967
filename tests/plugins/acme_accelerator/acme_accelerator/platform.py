"""The platform: which device it is, what it can do, and what it brings."""

from __future__ import annotations

from acme_accelerator import device, evidence
from runtime.layers.layernorm import RMSNorm
from runtime.platforms import PlatformCapabilities, PlatformEnum, SRTPlatform
from runtime.platforms.accelerator import AcceleratorDeviceMixin


class AcmePlatform(AcceleratorDeviceMixin, SRTPlatform):
    """The runtime on `torch.acme`."""

    _enum = PlatformEnum.OOT
    device_name = device.NAME  # the platform's name
    device_type = device.NAME  # torch.device("acme:0"), torch.acme

    @property
    def capabilities(self) -> PlatformCapabilities:
        """Read before anything is made."""
        return PlatformCapabilities(
            dtypes=("float32", "bfloat16", "float16"), float64=True, graph_capture=True, share_input_buffers=True
        )

    def init_backend(self) -> None:
        """Register the operations that the device has a kernel for."""
        super().init_backend()
        from acme_accelerator.operations import rms_norm

        RMSNorm.register_oot_forward(rms_norm, self.get_dispatch_key())
        evidence.note("init_backend")

    def get_mha_kv_pool_cls(self) -> str:
        """Keys and values in the layout that the device reads fastest."""
        return "acme_accelerator.pool:AcmePool"

    def get_compile_backend(self) -> str:
        """Inductor does not know the device."""
        return "aot_eager"

    def get_torch_distributed_backend_str(self) -> str:
        """Through the host."""
        return "gloo"
