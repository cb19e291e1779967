"""The CPU platform: host memory, torch's CPU kernels."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from runtime.core.errors import PlatformError
from runtime.platforms import host_memory
from runtime.platforms.device_mixin import DeviceMixin
from runtime.platforms.interface import SRTPlatform

CPUINFO = Path("/proc/cpuinfo")


class CpuDeviceMixin(DeviceMixin):
    """Device operations on the host's processors."""

    device_name = "cpu"
    device_type = "cpu"

    def get_device(self, local_rank: int) -> torch.device:
        """The one CPU device, whatever the rank: every process of a host shares it."""
        if local_rank < 0:
            raise PlatformError(f"local rank {local_rank} is not valid: ranks start at 0")
        return torch.device("cpu")

    def get_device_name(self) -> str:
        """The processor's model name as the kernel gives it."""
        try:
            lines = CPUINFO.read_text().splitlines()
        except OSError as error:
            raise PlatformError(f"the processor's name is not readable: {CPUINFO}: {error.strerror}") from error
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Processor", "cpu model"):
                return value.strip()
        return "unnamed CPU"  # many ARM kernels name no model

    def get_device_total_memory(self) -> int:
        """Host memory in bytes, cut by control-group limits."""
        return host_memory.total_memory()

    def get_available_memory(self) -> tuple[int, int]:
        """`(free, total)` host memory in bytes, cut by control-group limits."""
        return host_memory.free_memory(), self.get_device_total_memory()

    def get_current_memory_usage(self) -> int:
        """The process's resident set in bytes."""
        return host_memory.resident_memory()

    def empty_cache(self) -> None:
        """Nothing to give back: torch's CPU allocator keeps no cache."""

    def synchronize(self) -> None:
        """Nothing to wait for: CPU operations are done when they return."""

    def seed_everything(self, seed: int) -> None:
        """Seed Python's and torch's default generators."""
        random.seed(seed)
        torch.manual_seed(seed)

    def inference_mode(self) -> AbstractContextManager[Any]:
        """`torch.inference_mode()`."""
        return torch.inference_mode()


class CpuSRTPlatform(CpuDeviceMixin, SRTPlatform):
    """The serving runtime on the CPU, with every in-tree class."""

    @property
    def supported_dtypes(self) -> tuple[torch.dtype, ...]:
        """float32, bfloat16 and float16."""
        return (torch.float32, torch.bfloat16, torch.float16)

    def get_default_attention_backend(self) -> type | str:
        """The attention written in torch operations."""
        return "runtime.layers.attention.torch_backend.TorchAttentionBackend"
