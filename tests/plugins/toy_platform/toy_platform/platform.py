"""The platform: what it brings lives in `toy_platform.parts` and is named, so that it is imported when it is needed."""

from runtime.platforms import PlatformCapabilities, PlatformEnum, SRTPlatform
from runtime.platforms.cpu import CpuDeviceMixin
from runtime.platforms.interface import fill_open
from toy_platform import trace


class ToyPlatform(CpuDeviceMixin, SRTPlatform):
    _enum = PlatformEnum.OOT
    device_name = "toy"

    @property
    def capabilities(self):
        return PlatformCapabilities(dtypes=("float32",), graph_capture=True)

    def init_backend(self):
        super().init_backend()
        from toy_platform import parts

        parts.register_forwards()
        trace("init_backend")

    def apply_server_args_defaults(self, server_args):
        return super().apply_server_args_defaults(fill_open(server_args, max_running_requests=3))

    def get_default_attention_backend(self):
        return "toy_platform.parts:ToyAttention"

    def get_mha_kv_pool_cls(self):
        return "toy_platform.parts:ToyPool"

    def get_paged_allocator_cls(self):
        return "toy_platform.parts:ToyAllocator"

    def get_graph_runner_cls(self):
        return "toy_platform.parts:ToyGraphRunner"

    def post_load_model(self, model):
        trace(f"post_load_model {type(model).__name__}")
