"""Which platform a process runs on: the one that is named, the one plugin that activates, or what torch sees.

A plugin is an entry point of the group `runtime.platforms`: a function without arguments that returns the platform's
class (or its dotted name), or None where its hardware is not there. The names of the in-tree platforms are reserved.
Nothing here falls back in silence: a plugin that fails is an error unless another one has taken its place.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.core.errors import ConfigError, PlatformError
from runtime.platforms.classes import resolve_class
from runtime.platforms.device_mixin import PlatformEnum
from runtime.platforms.interface import SRTPlatform

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)

PLATFORM_ENV = "RUNTIME_PLATFORM"
"""Environment variable that names the platform, in-tree or a plugin's; unset or empty means: find out."""

CPU_ENV = "RUNTIME_USE_CPU"
"""Environment variable that puts the CPU before every other in-tree platform when it is 1; plugins still go first."""

ENTRY_POINT_GROUP = "runtime.platforms"

IN_TREE: Mapping[str, str] = {
    "cuda": "runtime.platforms.cuda.CudaSRTPlatform",
    "npu": "runtime.platforms.npu.NpuSRTPlatform",
    "rocm": "runtime.platforms.rocm.RocmSRTPlatform",
    "xpu": "runtime.platforms.xpu.XpuSRTPlatform",
    "musa": "runtime.platforms.musa.MusaSRTPlatform",
    "mps": "runtime.platforms.mps.MpsSRTPlatform",
    "cpu": "runtime.platforms.cpu.CpuSRTPlatform",
}
"""The in-tree platforms by reserved name, in the order in which they are tried when nothing is named."""


@dataclass(frozen=True)
class Selection:
    """A platform that was chosen.

    Attributes:
        name: the in-tree name, or the entry point's.
        platform_cls: its class.
        distribution: the distribution that ships the plugin; None in-tree.
    """

    name: str
    platform_cls: type[SRTPlatform]
    distribution: str | None = None


def create_platform() -> SRTPlatform:
    """Make the platform of this process.

    Raises:
        PlatformError: none can be chosen, or the chosen one cannot be made.
    """
    selection = select_platform()
    shipped = f" of {selection.distribution}" if selection.distribution else ""
    try:
        platform = selection.platform_cls()
    except Exception as error:
        raise PlatformError(f"platform {selection.name!r}{shipped} cannot be made: {_reason(error)}") from error
    logger.info("platform %r%s", selection.name, shipped)
    return platform


@functools.lru_cache(maxsize=1)
def select_platform() -> Selection:
    """Choose the platform; once it has succeeded, the answer stays the same for this process.

    Raises:
        PlatformError: the named platform is not there or failed; several plugins are active, or none and one of them
            failed; a plugin takes a reserved name.
    """
    asked = os.environ.get(PLATFORM_ENV)
    if asked:
        return _in_tree_by_name(asked) if _is_in_tree(asked) else _plugin_by_name(asked)
    active = _active_plugin()
    return _first_available_in_tree() if active is None else _selected(*active)


def unselected_distributions() -> frozenset[str]:
    """Distributions that ship platform plugins of which none is selected: their hooks are for other hardware.

    Imports no plugin but the one that is named and, if none is, asks them all, as `current_platform` would; but a
    platform that is named by its plugin is not imported for it, nor is torch: it may open the device, which is for the
    process that computes.

    Raises:
        PlatformError: as `select_platform`, as far as plugins are concerned.
    """
    shipping = {_distribution(entry) for entry in _entry_points()}
    if not shipping:
        return frozenset()
    asked = os.environ.get(PLATFORM_ENV)
    if not asked:
        active = _active_plugin()
        selected = _distribution(active[0]) if active else None
    elif _is_in_tree(asked):
        selected = None
    else:
        selected = _distribution(_named_entry_point(asked))
    return frozenset(name for name in shipping if name is not None and name != selected)


def _is_in_tree(name: str) -> bool:
    """Whether `name` is an in-tree platform's.

    Raises:
        PlatformError: it is, and a plugin has taken it too.
    """
    if name not in IN_TREE:
        return False
    _refuse_reserved_names([entry for entry in _entry_points() if entry.name == name])
    return True


def _in_tree_by_name(name: str) -> Selection:
    platform_cls = _in_tree_class(name)
    if not platform_cls.is_available():
        raise PlatformError(
            f"{PLATFORM_ENV}={name!r}: torch sees no such device on this host; unset {PLATFORM_ENV} to run on what"
            " there is"
        )
    return Selection(name, platform_cls)


def _first_available_in_tree() -> Selection:
    wants_cpu = os.environ.get(CPU_ENV, "")
    if wants_cpu not in ("", "0", "1"):
        raise PlatformError(f"{CPU_ENV}={wants_cpu!r} is not valid: set it to 1 to run on the CPU, or to 0")
    for name in ("cpu",) if wants_cpu == "1" else IN_TREE:
        platform_cls = _in_tree_class(name)
        if platform_cls.is_available():
            return Selection(name, platform_cls)
    raise PlatformError("torch sees no device at all on this host, not even the CPU")


def _in_tree_class(name: str) -> type[SRTPlatform]:
    return resolve_class(IN_TREE[name], SRTPlatform, f"platform {name!r}")  # type: ignore[type-abstract]


def _plugin_by_name(name: str) -> Selection:
    entry = _named_entry_point(name)
    made = _ask(entry)
    if made is None:
        raise PlatformError(
            f"{PLATFORM_ENV}={name!r}: {_shown(entry)} says that its hardware is not there (it returned None)"
        )
    return _selected(entry, made)


def _named_entry_point(name: str) -> EntryPoint:
    installed = _entry_points()
    found = [entry for entry in installed if entry.name == name]
    if not found:
        plugins = ", ".join(sorted({entry.name for entry in installed})) or "none"
        raise PlatformError(
            f"{PLATFORM_ENV}={name!r} names no platform: set it to one of {', '.join(IN_TREE)} or of the installed"
            f" plugins ({plugins}), or unset it"
        )
    if len(found) > 1:
        raise PlatformError(
            f"{PLATFORM_ENV}={name!r} is the name of several plugins: {_listed(found)}; uninstall all but one"
        )
    return found[0]


@functools.lru_cache(maxsize=1)
def _active_plugin() -> tuple[EntryPoint, type | str] | None:
    """Ask every plugin; the one that is active with what it returned, or None if there is none."""
    installed = _entry_points()
    _refuse_reserved_names([entry for entry in installed if entry.name in IN_TREE])
    active: list[tuple[EntryPoint, type | str]] = []
    failures = []
    for entry in installed:
        try:
            made = _ask(entry)
        except PlatformError as error:
            failures.append(error)
        else:
            if made is not None:
                active.append((entry, made))
    if len(active) > 1:
        raise PlatformError(
            f"several platform plugins are active: {_listed([entry for entry, _ in active])}; choose one with"
            f" {PLATFORM_ENV}"
        )
    if failures and not active:
        raise PlatformError(
            f"{'; '.join(map(str, failures))}; uninstall what is not needed, or choose a platform with {PLATFORM_ENV}"
        ) from failures[0]
    for failure in failures:
        logger.warning("%s; %s is used", failure, _shown(active[0][0]))
    return active[0] if active else None


def _ask(entry: EntryPoint) -> type | str | None:
    """Let a plugin say which platform it brings; None if its hardware is not there.

    Raises:
        PlatformError: it raised, or what it returned is neither a platform nor the name of something.
    """
    what = _shown(entry)
    try:
        activate = entry.load()
        made = activate()
    except (Exception, SystemExit) as error:
        raise PlatformError(f"{what} failed: {_reason(error)}") from error
    if made is not None and not isinstance(made, str):
        _selected(entry, made)
    answer: type | str | None = made
    return answer


def _selected(entry: EntryPoint, made: type | str) -> Selection:
    """What a plugin returned, as the platform that it is to be.

    Raises:
        PlatformError: it is no platform.
    """
    what = _shown(entry)
    try:
        platform_cls = resolve_class(made, SRTPlatform, what)  # type: ignore[type-abstract]
    except ConfigError as error:
        raise PlatformError(str(error)) from error
    fault = _fault(platform_cls)
    if fault:
        raise PlatformError(f"{what}: {platform_cls.__module__}.{platform_cls.__qualname__} {fault}")
    return Selection(entry.name, platform_cls, _distribution(entry))


def _fault(platform_cls: type[SRTPlatform]) -> str | None:
    """What keeps a plugin's class from being a platform, if anything does."""
    if platform_cls._enum is not PlatformEnum.OOT:
        return "must say what it is: set _enum = PlatformEnum.OOT"
    for attribute in ("device_name", "device_type"):
        value = getattr(platform_cls, attribute, None)
        if not isinstance(value, str) or not value:
            return f"must set {attribute} to a name"
    if platform_cls.device_name in IN_TREE:
        return f"has the device_name {platform_cls.device_name!r}, which is an in-tree platform's: give it its own"
    return None


def _refuse_reserved_names(entries: list[EntryPoint]) -> None:
    if entries:
        raise PlatformError(
            f"{_listed(entries)}: the names {', '.join(IN_TREE)} are those of in-tree platforms and cannot be a"
            " plugin's; rename the entry point or uninstall it"
        )


def _entry_points() -> list[EntryPoint]:
    """The installed platform plugins, in a fixed order."""
    from importlib.metadata import entry_points  # not needed by a process that never asks for a platform

    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: (_distribution(entry) or "", entry.name))


def _distribution(entry: EntryPoint) -> str | None:
    return entry.dist.name if entry.dist is not None else None


def _shown(entry: EntryPoint) -> str:
    return f"platform plugin {entry.name!r} of {_distribution(entry) or 'an unknown distribution'}"


def _listed(entries: list[EntryPoint]) -> str:
    return ", ".join(map(_shown, entries))


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
