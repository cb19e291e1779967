"""The platform of this process: `runtime.platforms.current_platform`.

Resolved at first access and bound then, so importing this package chooses nothing and imports no torch. Use it as
`platforms.current_platform.synchronize()`, without binding the method early: a hook on the platform's class then
always takes. `from runtime.platforms import current_platform` raises `PlatformError` if none can be chosen.
"""

from __future__ import annotations

import os
import pkgutil
from typing import TypeVar

from runtime.core.errors import ConfigError, PlatformError
from runtime.platforms.device_mixin import DeviceMixin, PlatformEnum
from runtime.platforms.interface import ClassRef, SRTPlatform

__all__ = [
    "PLATFORM_ENV",
    "ClassRef",
    "DeviceMixin",
    "PlatformEnum",
    "SRTPlatform",
    "current_platform",
    "resolve_class",
]

PLATFORM_ENV = "RUNTIME_PLATFORM"
"""Environment variable that names the platform; unset or empty means the CPU."""

_IN_TREE = {PlatformEnum.CPU: "runtime.platforms.cpu.CpuSRTPlatform"}

_T = TypeVar("_T")

current_platform: SRTPlatform  # bound by __getattr__ at first access


def __getattr__(name: str) -> SRTPlatform:
    if name != "current_platform":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # setdefault, so that two threads racing to the first access end up with one platform
    return globals().setdefault("current_platform", _resolve_platform())


def _resolve_platform() -> SRTPlatform:
    """Make the platform that the environment asks for.

    Raises:
        PlatformError: no such platform. Not an AttributeError: an import statement would turn that into an
            ImportError that hides the reason.
    """
    asked = os.environ.get(PLATFORM_ENV) or PlatformEnum.CPU.value
    try:
        kind = PlatformEnum(asked)
    except ValueError:
        available = ", ".join(sorted(platform.value for platform in PlatformEnum))
        raise PlatformError(
            f"{PLATFORM_ENV}={asked!r} names no platform: set it to one of {available}, or unset it"
        ) from None
    platform_cls = resolve_class(_IN_TREE[kind], SRTPlatform, f"platform {asked!r}")  # type: ignore[type-abstract]
    return platform_cls()


def resolve_class(value: type | str, base: type[_T], what: str) -> type[_T]:
    """The class that `value` is or names.

    Args:
        value: a class, or its dotted name.
        base: what the class must be a subclass of.
        what: what the class is for, as the error message shall call it.

    Raises:
        ConfigError: the name cannot be imported, or what it names is no subclass of `base`.
    """
    if isinstance(value, str):
        try:
            resolved = pkgutil.resolve_name(value)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{what}: {value!r} cannot be imported: {error}") from error
    else:
        resolved = value
    if not isinstance(resolved, type) or not issubclass(resolved, base):
        shown = f"{resolved.__module__}.{resolved.__qualname__}" if isinstance(resolved, type) else repr(resolved)
        raise ConfigError(f"{what}: {shown} must be a subclass of {base.__module__}.{base.__qualname__}")
    return resolved
