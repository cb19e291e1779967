"""The platform of this process: `runtime.platforms.current_platform`.

Resolved at first access and bound then, so importing this package chooses nothing and imports no torch. Use it as
`platforms.current_platform.synchronize()`, without binding the method early: a hook on the platform's class then
always takes. `from runtime.platforms import current_platform` raises `PlatformError` if none can be chosen.
"""

from __future__ import annotations

from runtime.platforms import discovery
from runtime.platforms.classes import ClassRef, resolve_class
from runtime.platforms.device_mixin import CpuArchEnum, DeviceCapability, DeviceMixin, PlatformEnum
from runtime.platforms.discovery import CPU_ENV, PLATFORM_ENV, unselected_distributions
from runtime.platforms.interface import PlatformCapabilities, SRTPlatform

__all__ = [
    "CPU_ENV",
    "PLATFORM_ENV",
    "ClassRef",
    "CpuArchEnum",
    "DeviceCapability",
    "DeviceMixin",
    "PlatformCapabilities",
    "PlatformEnum",
    "SRTPlatform",
    "current_platform",
    "resolve_class",
    "unselected_distributions",
]

current_platform: SRTPlatform  # bound by __getattr__ at first access


def __getattr__(name: str) -> SRTPlatform:
    # What cannot be chosen is a PlatformError, not an AttributeError: an import statement would turn that into an
    # ImportError that hides the reason.
    if name != "current_platform":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # setdefault, so that two threads racing to the first access end up with one platform
    return globals().setdefault("current_platform", discovery.create_platform())
