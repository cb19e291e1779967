"""Which platform a process gets, and what the CPU platform says of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hookery import HookRegistry, HookType
from runtime import platforms
from runtime.config import ServerArgs
from runtime.core.errors import ConfigError, PlatformError
from runtime.platforms import host_memory, host_threads
from runtime.platforms.cpu import CpuDeviceMixin, CpuSRTPlatform
from runtime.platforms.interface import SRTPlatform


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("environment", [{"RUNTIME_USE_CPU": "1"}, {"RUNTIME_PLATFORM": "cpu"}])
def test_the_cpu_is_chosen_by_name_and_where_it_is_opted_for(environment: dict[str, str]) -> None:
    code = "from runtime.platforms import current_platform as p; print(type(p).__name__, p.device_name)"
    result = run_python(code, **environment)
    assert (result.stdout, result.stderr) == ("CpuSRTPlatform cpu\n", "")


@pytest.mark.parametrize(
    "code",
    ["from runtime.platforms import current_platform", "from runtime import platforms; platforms.current_platform"],
)
def test_an_unknown_platform_surfaces_where_it_is_first_asked_for(code: str) -> None:
    result = run_python(code, RUNTIME_PLATFORM="tpu")
    assert result.returncode != 0
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith("runtime.core.errors.PlatformError: RUNTIME_PLATFORM='tpu'")
    assert "cpu" in last_line.split(":", 2)[2]


def test_importing_the_package_chooses_nothing_and_needs_no_torch() -> None:
    code = (
        "import sys, runtime.platforms as p; "
        "print('torch' in sys.modules, 'current_platform' in vars(p)); "
        "first = p.current_platform; print(first is p.current_platform, vars(p)['current_platform'] is first)"
    )
    assert run_python(code, RUNTIME_PLATFORM="cpu").stdout.split() == ["False", "False", "True", "True"]


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="current_platfrom"):
        _ = platforms.current_platfrom  # type: ignore[attr-defined]


OPERATIONS = sorted(
    name for name in dir(SRTPlatform) if not name.startswith("_") and callable(getattr(SRTPlatform, name))
)
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "get_device": (0,),
    "set_device": (torch.device("cpu"),),
    "use_stream": (None,),
    "seed_everything": (1,),
    "post_load_model": (None,),
    "apply_server_args_defaults": (ServerArgs("x"),),
}


@pytest.mark.parametrize("name", [*OPERATIONS, "capabilities"])
def test_everything_a_platform_does_is_a_hook_target_of_the_platform_that_was_chosen(name: str) -> None:
    hooked = HookRegistry()
    hooked.register(f"runtime.platforms.current_platform.{name}", lambda *args, **kwargs: "hooked", HookType.REPLACE)
    plain = getattr(type(platforms.current_platform), name)
    hooked.apply_hooks(strict=True)
    try:
        value = getattr(platforms.current_platform, name)
        if name != "capabilities":
            value = value(*ARGUMENTS.get(name, ()))
        assert value == "hooked"
    finally:
        hooked.revert()
    assert getattr(type(platforms.current_platform), name) == plain


def test_float32_products_are_computed_in_float32() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        platforms.current_platform.init_backend()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_a_platform_does_not_say_is_the_least_there_is() -> None:
    class Plain(CpuDeviceMixin, SRTPlatform):
        """Says nothing."""

        device_name = "plain"

    plain = Plain()
    assert plain.capabilities == platforms.PlatformCapabilities(("float32",), float64=False, graph_capture=False)
    factories = ("mha_kv_pool", "mla_kv_pool", "nsa_kv_pool", "paged_allocator", "graph_runner")
    assert [getattr(plain, f"get_{factory}_cls")() for factory in factories] == [None] * 5
    assert plain.get_dispatch_key() == "plain"
    assert plain.get_compile_backend() in torch.compiler.list_backends()


class Base:
    """What a class must be."""


class Derived(Base):
    """What a class is."""


def test_a_class_is_resolved_from_itself_and_from_its_name() -> None:
    assert platforms.resolve_class(Derived, Base, "thing") is Derived
    name = "runtime.platforms.cpu.CpuSRTPlatform"
    assert platforms.resolve_class(name, CpuDeviceMixin, "thing") is CpuSRTPlatform


@pytest.mark.parametrize("value", [int, 3, "json.loads", "json.nothing", "nowhere.at.all", ""])
def test_what_is_no_subclass_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^thing: "):
        platforms.resolve_class(value, Base, "thing")  # type: ignore[arg-type]


def test_the_cpu_platform_tells_the_truth_about_this_host() -> None:
    platform = CpuSRTPlatform()
    assert platform.get_device(0) == torch.device("cpu")
    assert platform.get_device_name().strip()
    free, total = platform.get_available_memory()
    assert 0 < free <= total == platform.get_device_total_memory()
    before = platform.get_current_memory_usage()
    ballast = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert platform.get_current_memory_usage() - before > 48 * 2**20
    assert ballast.numel()
    platform.synchronize()
    platform.empty_cache()
    with pytest.raises(PlatformError, match="-1"):
        platform.get_device(-1)


def test_seeding_everything_repeats_the_default_generator() -> None:
    platform = CpuSRTPlatform()
    platform.seed_everything(3)
    first = torch.rand(4)
    platform.seed_everything(3)
    assert torch.equal(torch.rand(4), first)


def test_inference_mode_records_no_gradients() -> None:
    with CpuSRTPlatform().inference_mode():
        assert torch.is_inference_mode_enabled()


GIB = 2**30


def make_host(
    root: Path, *, membership: str = "", groups: dict[str, dict[str, str]] | None = None
) -> tuple[Path, Path]:
    """A fake /proc (16 GiB, 12 GiB available, 1 GiB resident) and /sys/fs/cgroup."""
    proc, cgroup = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemFree: 5 kB\nMemAvailable: {12 * 2**20} kB\n")
    (proc / "self" / "status").write_text(f"Name:\tx\nVmRSS:\t {2**20} kB\n")
    (proc / "self" / "cgroup").write_text(membership)
    for group, files in (groups or {}).items():
        (cgroup / group).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (cgroup / group / name).write_text(content)
    return proc, cgroup


def v2(limit: int | str, used: int, inactive: int = 0) -> dict[str, str]:
    stat = f"anon 1\ninactive_file {inactive}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def v1(limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    stat = f"cache 1\ninactive_file 7\ntotal_inactive_file {inactive}\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


UNLIMITED_V1 = 2**63 - 4096


@pytest.mark.parametrize(
    ("membership", "groups", "total", "free"),
    [
        ("", {}, 16 * GIB, 12 * GIB),
        ("0::/\n", {"": v2("max", 3 * GIB)}, 16 * GIB, 12 * GIB),
        ("0::/app\n", {"app": v2(4 * GIB, 3 * GIB)}, 4 * GIB, GIB),
        ("0::/app\n", {"app": v2(4 * GIB, 3 * GIB, 2 * GIB)}, 4 * GIB, 3 * GIB),
        ("0::/pod/app\n", {"pod": v2(2 * GIB, GIB), "pod/app": v2("max", GIB)}, 2 * GIB, GIB),
        ("0::/host/path\n", {"": v2(8 * GIB, GIB)}, 8 * GIB, 7 * GIB),
        ("0::/app\n", {"app": v2(4 * GIB, 5 * GIB)}, 4 * GIB, 0),
        ("5:cpu:/\n4:memory:/app\n", {"memory/app": v1(4 * GIB, 3 * GIB, GIB)}, 4 * GIB, 2 * GIB),
        ("4:memory:/app\n", {"memory": v1(UNLIMITED_V1, 9), "memory/app": v1(UNLIMITED_V1, 9)}, 16 * GIB, 12 * GIB),
        ("4:memory:/x\n0::/y\n", {"memory": v1(9 * GIB, 0), "unified/y": v2(6 * GIB, 0)}, 6 * GIB, 6 * GIB),
    ],
    ids=[
        "no groups",
        "v2 without limit",
        "v2",
        "v2 reclaimable cache is free",
        "v2 limit of the parent",
        "v2 path of the host inside a container",
        "v2 over its limit",
        "v1",
        "v1 without limit",
        "hybrid",
    ],
)
def test_control_groups_cut_the_memory_of_the_host(
    tmp_path: Path, membership: str, groups: dict[str, dict[str, str]], total: int, free: int
) -> None:
    proc, cgroup = make_host(tmp_path, membership=membership, groups=groups)
    assert host_memory.total_memory(proc, cgroup) == total
    assert host_memory.free_memory(proc, cgroup) == free
    assert host_memory.resident_memory(proc) == GIB


def test_unreadable_or_incomplete_figures_are_named(tmp_path: Path) -> None:
    proc, cgroup = make_host(tmp_path)
    (proc / "meminfo").write_text("MemTotal: 3 kB\n")
    with pytest.raises(PlatformError, match="meminfo has no MemAvailable"):
        host_memory.free_memory(proc, cgroup)
    (proc / "self" / "status").unlink()
    with pytest.raises(PlatformError, match="status"):
        host_memory.resident_memory(proc)


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_children_let_openmp_threads_sleep_at_a_barrier_unless_told_otherwise(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    with host_threads.children_wait_passively():
        assert os.environ["OMP_WAIT_POLICY"] == (given or "PASSIVE")
    assert os.environ.get("OMP_WAIT_POLICY") == given
