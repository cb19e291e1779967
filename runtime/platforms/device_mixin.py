"""The device operations the runtime uses, as one class per device.

The same mixin serves every kind of platform (language models now, diffusion later), so it knows devices and nothing
of models. Each method here has a caller in the runtime; an operation nobody calls is not part of the interface.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class PlatformEnum(enum.Enum):
    """The in-tree platforms; the value is what `RUNTIME_PLATFORM` takes."""

    CPU = "cpu"


class DeviceMixin(ABC):
    """Typed device operations. Sizes are bytes.

    Attributes:
        device_name: the platform's name, unique among platforms (`"cpu"`).
        device_type: the type string torch uses in `torch.device` (`"cpu"`).
    """

    device_name: str
    device_type: str

    @abstractmethod
    def get_device(self, local_rank: int) -> torch.device:
        """The device that process `local_rank` of this host works on.

        Raises:
            PlatformError: this host has no such device.
        """

    @abstractmethod
    def get_device_name(self) -> str:
        """The model name of the hardware, for people."""

    @abstractmethod
    def get_device_total_memory(self) -> int:
        """Memory of the device that this process may use."""

    @abstractmethod
    def get_available_memory(self) -> tuple[int, int]:
        """`(free, total)` memory of the device now, `total` being `get_device_total_memory()`."""

    @abstractmethod
    def get_current_memory_usage(self) -> int:
        """Memory of the device this process holds now."""

    @abstractmethod
    def empty_cache(self) -> None:
        """Give cached but unused memory back to the device."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished everything queued on it."""

    @abstractmethod
    def seed_everything(self, seed: int) -> None:
        """Seed the device's default random generator (and the host's)."""

    @abstractmethod
    def inference_mode(self) -> AbstractContextManager[Any]:
        """A context in which the forward pass runs without recording gradients."""
