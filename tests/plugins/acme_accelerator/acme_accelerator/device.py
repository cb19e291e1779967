"""`torch.acme`: loads the compiled device into torch, and is to it what `torch.cuda` is to CUDA.

The runtime's `AcceleratorDeviceMixin` calls what is here by name.
"""

from __future__ import annotations

import atexit
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from acme_accelerator import evidence

NAME = "acme"


def is_available() -> bool:
    """Whether there is a device."""
    return device_count() > 0


def is_initialized() -> bool:
    """Nothing has to be initialised."""
    return True


def _is_in_bad_fork() -> bool:
    """A forked child may go on using the device."""
    return False


def device_count() -> int:
    """How many devices there are."""
    return torch.ops.acme.device_count()


def current_device() -> int:
    """Index of this thread's current device."""
    return torch.accelerator.current_device_index()


def set_device(device: torch.device | str | int) -> None:
    """Make a device this thread's current one."""
    torch.accelerator.set_device_index(_index(device))


def get_device_name(device: torch.device | str | int | None = None) -> str:
    """Name of the hardware."""
    return f"Acme One {_index(device)}"


def get_device_properties(device: torch.device | str | int | None = None) -> SimpleNamespace:
    """`name`, `total_memory` in bytes and `uuid`."""
    index = _index(device)
    return SimpleNamespace(name=get_device_name(index), total_memory=mem_get_info(index)[1], uuid=f"ACME-{index:04d}")


def mem_get_info(device: torch.device | str | int | None = None) -> tuple[int, int]:
    """`(free, total)` bytes."""
    return torch.accelerator.get_memory_info(_index(device))


def memory_reserved(device: torch.device | str | int | None = None) -> int:
    """Bytes that the allocator holds, those that are kept for later included."""
    return torch.accelerator.memory_reserved(_index(device))


def memory_allocated(device: torch.device | str | int | None = None) -> int:
    """Bytes that tensors hold."""
    return torch.accelerator.memory_allocated(_index(device))


def max_memory_allocated(device: torch.device | str | int | None = None) -> int:
    """The most bytes that tensors have held."""
    return torch.accelerator.max_memory_allocated(_index(device))


def empty_cache() -> None:
    """Give back what no tensor holds."""
    torch.accelerator.empty_cache()


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Wait for everything that was submitted to a device."""
    torch.accelerator.synchronize(_index(device))


def Stream(device: torch.device | str | int | None = None, priority: int = 0) -> torch.Stream:  # noqa: N802
    """A new stream of a device."""
    return torch.Stream(device=torch.device(NAME, _index(device)), priority=priority)


def Event(enable_timing: bool = False) -> torch.Event:  # noqa: N802
    """A new event."""
    return torch.Event(device=NAME, enable_timing=enable_timing)


def current_stream(device: torch.device | str | int | None = None) -> torch.Stream:
    """The stream that this thread's work goes to."""
    return torch.accelerator.current_stream(_index(device))


def stream(stream: torch.Stream) -> AbstractContextManager[Any]:
    """A context in which this thread's work goes to `stream`."""
    return stream


def manual_seed(seed: int) -> None:
    """Seed the current device's generator."""
    torch.ops.acme.manual_seed(_as_int64(seed), current_device())


def manual_seed_all(seed: int) -> None:
    """Seed the generator of every device."""
    for index in range(device_count()):
        torch.ops.acme.manual_seed(_as_int64(seed), index)


def get_amp_supported_dtype() -> list[torch.dtype]:
    """The dtypes that autocast may choose."""
    return [torch.bfloat16, torch.float16]


def set_clock(high: bool) -> None:
    """Let the device run at its high clock, or save power."""
    torch.ops.acme.set_clock(high)


def counters() -> dict[str, int]:
    """What the device has done in this process."""
    return dict(torch.ops.acme.counters())


def _index(device: torch.device | str | int | None) -> int:
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return current_device() if index is None else index


def _as_int64(seed: int) -> int:
    return (int(seed) + 2**63) % 2**64 - 2**63


def _install() -> None:
    torch.ops.load_library(Path(__file__).with_name("_device.so"))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, sys.modules[__name__])
    atexit.register(lambda: evidence.note("device", **counters(), peak=max_memory_allocated(0)))


_install()
