"""The toy's own classes; each says once that it is used."""

from runtime.layers.attention.torch_backend import TorchAttentionBackend
from runtime.layers.layernorm import RMSNorm
from runtime.mem_cache.allocator import TokenToKVPoolAllocator
from runtime.mem_cache.memory_pool import MHATokenToKVPool
from runtime.model_executor.graph_runner import GraphRunner
from toy_platform import trace

seen = set()


def trace_once(line):
    if line not in seen:
        seen.add(line)
        trace(line)


class ToyAttention(TorchAttentionBackend):
    def init_forward_metadata(self, forward_batch):
        trace_once("attention")
        super().init_forward_metadata(forward_batch)


class ToyPool(MHATokenToKVPool):
    def _create_buffers(self):
        trace_once("pool")
        super()._create_buffers()


class ToyAllocator(TokenToKVPoolAllocator):
    def alloc(self, need_size):
        trace_once("allocator")
        return super().alloc(need_size)


class ToyGraphRunner(GraphRunner):
    """Replays decode steps, by running them."""

    def can_run(self, batch):
        return batch.forward_mode.is_decode()

    def replay(self, batch):
        trace_once(f"replay of {batch.batch_size} rows")
        return self.model_runner.forward_eager(batch)


def register_forwards():
    RMSNorm.register_oot_forward(toy_rms_norm, "toy")


def toy_rms_norm(norm, x):
    trace_once("forward_toy")
    return norm.forward_native(x)
