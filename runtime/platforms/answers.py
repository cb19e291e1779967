"""What the methods of the current platform return, checked where it is asked for.

What returns something else would otherwise fail where that is used, far from the method, or not at all.
"""

from __future__ import annotations

from typing import Any

import torch

from runtime import platforms
from runtime.core.errors import ConfigError


def get_device(local_rank: int) -> torch.device:
    """`DeviceMixin.get_device`.

    Raises:
        ConfigError: it returned no `torch.device`.
        PlatformError: this host has no such device.
    """
    device = platforms.current_platform.get_device(local_rank)
    if not isinstance(device, torch.device):
        raise _wrong("get_device", "a torch.device", device)
    return device


def get_available_memory() -> tuple[int, int]:
    """`DeviceMixin.get_available_memory` of the current device.

    Raises:
        ConfigError: it returned no pair of sizes.
    """
    sizes = platforms.current_platform.get_available_memory()
    if not isinstance(sizes, tuple) or len(sizes) != 2 or not all(map(_is_size, sizes)):
        raise _wrong("get_available_memory", "a tuple of two sizes in bytes, free and total", sizes)
    return sizes


def get_dispatch_key() -> str:
    """`SRTPlatform.get_dispatch_key`.

    Raises:
        ConfigError: it returned nothing that a method `forward_<key>` could be named by.
    """
    key = platforms.current_platform.get_dispatch_key()
    if not isinstance(key, str) or not key or not f"forward_{key}".isidentifier():
        raise _wrong("get_dispatch_key", "a name that can be part of an identifier", key)
    return key


def check_all() -> None:
    """Ask for everything that is not needed until a model has been loaded.

    Raises:
        ConfigError: a method returned something else than it has to.
    """
    get_dispatch_key()
    for method in ("get_device_total_memory", "get_current_memory_usage"):
        size = getattr(platforms.current_platform, method)()
        if not _is_size(size):
            raise _wrong(method, "a size in bytes", size)
    get_available_memory()


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _wrong(method: str, needed: str, returned: Any) -> ConfigError:
    return ConfigError(
        f"platform {platforms.current_platform.device_name}: {method} has to return {needed}, not {returned!r}"
    )
