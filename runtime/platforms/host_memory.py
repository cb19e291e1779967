"""Memory of this host as this process may use it: what the kernel has, cut by every control group above us."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.core.errors import PlatformError

PROC = Path("/proc")
CGROUP_ROOT = Path("/sys/fs/cgroup")


def total_memory(proc: Path = PROC, cgroup_root: Path = CGROUP_ROOT) -> int:
    """Bytes of memory this process can ever use.

    Raises:
        PlatformError: the kernel does not tell (no readable `/proc/meminfo`).
    """
    limits = [limit for limit, _ in _cgroup_limits(proc, cgroup_root)]
    return min([_meminfo(proc)["MemTotal"], *limits])


def free_memory(proc: Path = PROC, cgroup_root: Path = CGROUP_ROOT) -> int:
    """Bytes this process could still take without swapping or hitting a control group's limit.

    Raises:
        PlatformError: the kernel does not tell (no readable `/proc/meminfo`).
    """
    headrooms = [max(0, limit - used) for limit, used in _cgroup_limits(proc, cgroup_root)]
    return min([_meminfo(proc)["MemAvailable"], *headrooms])


def resident_memory(proc: Path = PROC) -> int:
    """Bytes of this process that are in memory (its resident set).

    Raises:
        PlatformError: the kernel does not tell (no readable `/proc/self/status`).
    """
    return _read_kb_table(proc / "self" / "status", "VmRSS")["VmRSS"]


def _meminfo(proc: Path) -> dict[str, int]:
    return _read_kb_table(proc / "meminfo", "MemTotal", "MemAvailable")


def _read_kb_table(path: Path, *keys: str) -> dict[str, int]:
    """The `Key:  123 kB` lines of a file, in bytes, for `keys`."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise PlatformError(f"memory figures are not readable: {path}: {error.strerror}") from error
    values: dict[str, int] = {}
    for line in lines:
        key, _, rest = line.partition(":")
        if key in keys:
            values[key] = int(rest.split()[0]) * 1024
    missing = [key for key in keys if key not in values]
    if missing:
        raise PlatformError(f"memory figures are incomplete: {path} has no {', '.join(missing)}")
    return values


def _cgroup_limits(proc: Path, cgroup_root: Path) -> Iterator[tuple[int, int]]:
    """`(limit, used)` of every memory control group above this process that sets a limit, v1 and v2."""
    try:
        memberships = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return  # a kernel without control groups sets no limits
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers == "":
            # v2; in the hybrid layout the unified tree is mounted beside the v1 controllers.
            for mount in (cgroup_root, cgroup_root / "unified"):
                yield from _limits_up(mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = cgroup_root / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits_up(mount, path, *files)


def _limits_up(
    mount: Path, path: str, limit_file: str, usage_file: str, reclaimable_key: str
) -> Iterator[tuple[int, int]]:
    # A limit may be set at any level. Inside a container the path may be the host's and not exist under the mount,
    # whose top is then the container's own group: levels that do not exist are passed over.
    levels = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(levels), -1, -1):
        group = mount.joinpath(*levels[:depth])
        try:
            limit = (group / limit_file).read_text().strip()
            usage = int((group / usage_file).read_text())
            stat = (group / "memory.stat").read_text()
        except OSError:
            continue
        # v2 says "max" for no limit; v1 says a number near 2**63, which the minimum with MemTotal takes care of.
        if limit != "max":
            yield int(limit), max(0, usage - _stat_value(stat, reclaimable_key))


def _stat_value(stat: str, key: str) -> int:
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
