"""Every device operation of every accelerator class, with torch's device module mocked.

The mocks have the signatures of the functions they stand for (torch.cuda's for the modules that follow it and are not
part of torch), so a call that torch would not take fails here too.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from pytest_mock import MockerFixture

from runtime.core.errors import PlatformError
from runtime.platforms import CpuArchEnum, DeviceCapability, DeviceMixin, PlatformEnum
from runtime.platforms.accelerator import AcceleratorDeviceMixin
from runtime.platforms.cpu import CpuSRTPlatform, HostEvent
from runtime.platforms.cuda import CudaDeviceMixin, CudaSRTPlatform
from runtime.platforms.interface import SRTPlatform
from runtime.platforms.mps import MpsSRTPlatform
from runtime.platforms.musa import MusaSRTPlatform
from runtime.platforms.npu import NpuSRTPlatform
from runtime.platforms.rocm import RocmDeviceMixin, RocmSRTPlatform
from runtime.platforms.xpu import XpuSRTPlatform

GIB = 2**30
CUDA_LIKE = (CudaSRTPlatform, RocmSRTPlatform, XpuSRTPlatform, NpuSRTPlatform, MusaSRTPlatform)
ACCELERATORS = (*CUDA_LIKE, MpsSRTPlatform)
OPERATIONS = (
    *("is_available", "current_device", "device_count", "set_device", "get_device_name", "get_device_properties"),
    *("get_device_capability", "mem_get_info", "memory_reserved", "empty_cache", "synchronize", "Stream"),
    *("current_stream", "stream", "Event", "manual_seed", "manual_seed_all", "recommended_max_memory"),
    "driver_allocated_memory",
)
REAL_MODULES = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}


def mock_module(device_type: str) -> SimpleNamespace:
    """Mocks of those `OPERATIONS` that the real module has, each with the real signature."""
    real = REAL_MODULES.get(device_type, torch.cuda)
    names = [name for name in OPERATIONS if hasattr(real, name)]
    # torch.manual_seed seeds every device module too, unless it is told that this process is a fork.
    return SimpleNamespace(
        _is_in_bad_fork=lambda: True, **{name: create_autospec(getattr(real, name)) for name in names}
    )


class Device:
    """A platform with its device module mocked; the current device is number 2 of 4."""

    def __init__(self, platform_cls: type[SRTPlatform], mocker: MockerFixture) -> None:
        self.platform = platform_cls()
        self.module = mock_module(platform_cls.device_type)
        if hasattr(self.module, "current_device"):
            self.module.current_device.return_value = 2
        self.module.device_count.return_value = 4
        mocker.patch.object(torch, platform_cls.device_type, self.module, create=True)


@pytest.fixture(params=CUDA_LIKE, ids=lambda cls: cls.device_name)
def device(request: pytest.FixtureRequest, mocker: MockerFixture) -> Device:
    """Each platform whose device module is like torch.cuda."""
    return Device(request.param, mocker)


@pytest.fixture
def mps(mocker: MockerFixture) -> Device:
    return Device(MpsSRTPlatform, mocker)


@pytest.fixture(params=ACCELERATORS, ids=lambda cls: cls.device_name)
def accelerator(request: pytest.FixtureRequest, mocker: MockerFixture) -> Device:
    """Each accelerator."""
    return Device(request.param, mocker)


# (method, operation of the module, what that returns, what the method makes of it)
BY_INDEX = [
    ("get_device_name", "get_device_name", "Model T", "Model T"),
    ("get_device_uuid", "get_device_properties", SimpleNamespace(uuid=0xAB), "171"),
    ("get_device_uuid", "get_device_properties", SimpleNamespace(), None),
    ("get_device_total_memory", "get_device_properties", SimpleNamespace(total_memory=80 * GIB), 80 * GIB),
    ("get_available_memory", "mem_get_info", (GIB, 80 * GIB), (GIB, 80 * GIB)),
    ("get_current_memory_usage", "memory_reserved", 3 * GIB, 3 * GIB),
]


@pytest.mark.parametrize(("method", "operation", "returned", "expected"), BY_INDEX)
@pytest.mark.parametrize(("device_id", "index"), [(None, 2), (0, 0), (3, 3)])
def test_questions_about_a_device_pass_its_index_on(
    device: Device, method: str, operation: str, returned: Any, expected: Any, device_id: int | None, index: int
) -> None:
    getattr(device.module, operation).return_value = returned
    assert getattr(device.platform, method)(device_id) == expected
    getattr(device.module, operation).assert_called_once_with(index)


@pytest.mark.parametrize(("device_id", "index"), [(None, 2), (1, 1)])
def test_capability_is_told_where_it_is_a_version(device: Device, device_id: int | None, index: int) -> None:
    device.module.get_device_capability.return_value = (9, 0)
    capability = device.platform.get_device_capability(device_id)
    if device.platform.is_cuda_alike():
        assert capability == DeviceCapability(9, 0)
        device.module.get_device_capability.assert_called_once_with(index)
    else:
        assert capability is None


def test_a_local_rank_is_the_device_with_that_index(device: Device) -> None:
    for rank in (0, 3):
        made = mock_device(device, rank)
        assert (made.type, made.index) == (device.platform.device_type, rank)
    for rank in (4, -1):
        with pytest.raises(
            PlatformError, match=rf"local rank {rank} has no {device.platform.device_name} device: .* 4"
        ):
            device.platform.get_device(rank)


def mock_device(device: Device, index: int) -> Any:
    """`torch.device` knows the types of this torch build alone."""
    if device.platform.device_type in ("npu", "musa"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "device", lambda kind, number: SimpleNamespace(type=kind, index=number))
            return device.platform.get_device(index)
    return device.platform.get_device(index)


def test_a_device_is_set_if_it_is_one_of_the_platform(device: Device) -> None:
    chosen = SimpleNamespace(type=device.platform.device_type, index=1)
    device.platform.set_device(chosen)  # type: ignore[arg-type]
    device.module.set_device.assert_called_once_with(chosen)
    with pytest.raises(PlatformError, match=f"cpu is no device of platform {device.platform.device_name}"):
        device.platform.set_device(torch.device("cpu"))
    device.module.set_device.assert_called_once()


@pytest.mark.parametrize("name", ["empty_cache", "synchronize"])
def test_what_returns_nothing_is_passed_on(accelerator: Device, name: str) -> None:
    getattr(accelerator.platform, name)()
    getattr(accelerator.module, name).assert_called_once_with()


def test_streams_are_those_of_the_module(device: Device) -> None:
    assert device.platform.create_stream() is device.module.Stream.return_value
    assert device.platform.current_stream() is device.module.current_stream.return_value
    stream = object()
    assert device.platform.use_stream(stream) is device.module.stream.return_value
    device.module.stream.assert_called_once_with(stream)


@pytest.mark.parametrize("timing", [False, True])
def test_events_are_those_of_the_module(accelerator: Device, timing: bool) -> None:
    made = accelerator.platform.create_event(timing) if timing else accelerator.platform.create_event()
    assert made is accelerator.module.Event.return_value
    accelerator.module.Event.assert_called_once_with(enable_timing=timing)


def test_seeding_reaches_python_the_host_and_every_device(accelerator: Device) -> None:
    accelerator.platform.seed_everything(5)
    first = (random.random(), torch.rand(1).item())
    accelerator.platform.seed_everything(5)
    assert (random.random(), torch.rand(1).item()) == first
    is_mps = accelerator.platform.is_mps()
    seeder = accelerator.module.manual_seed if is_mps else accelerator.module.manual_seed_all
    assert [call.args for call in seeder.call_args_list] == [(5,), (5,)]


def test_inference_mode_is_that_of_torch(accelerator: Device) -> None:
    with accelerator.platform.inference_mode():
        assert torch.is_inference_mode_enabled()


def test_fixed_answers() -> None:
    pinned = {cls.device_name: cls().is_pin_memory_available() for cls in ACCELERATORS}
    assert pinned == {"cuda": True, "rocm": True, "xpu": True, "npu": True, "musa": False, "mps": False}
    backends = {cls.device_name: cls().get_torch_distributed_backend_str() for cls in ACCELERATORS}
    assert backends == {
        "cuda": "nccl",
        "rocm": "nccl",
        "xpu": "xccl",
        "npu": "hccl",
        "musa": "mccl",
        "mps": "gloo",
    }
    activities = {cls.device_name: cls().get_profiler_activity().name for cls in ACCELERATORS}
    assert activities == {
        "cuda": "CUDA",
        "rocm": "CUDA",
        "xpu": "XPU",
        "npu": "PrivateUse1",
        "musa": "PrivateUse1",
        "mps": "CPU",
    }


def test_musa_profiles_by_its_own_activity_where_there_is_one(mocker: MockerFixture) -> None:
    own = object()
    mocker.patch.object(torch.profiler, "ProfilerActivity", SimpleNamespace(MUSA=own, PrivateUse1=None))
    assert MusaSRTPlatform().get_profiler_activity() is own


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("platform_cls", CUDA_LIKE, ids=lambda cls: cls.device_name)
def test_it_is_available_where_its_module_says_so(
    platform_cls: type[SRTPlatform], there: bool, mocker: MockerFixture
) -> None:
    device = Device(platform_cls, mocker)
    mocker.patch.object(torch.version, "hip", "6.2" if platform_cls is RocmSRTPlatform else None)
    device.module.is_available.return_value = there
    assert platform_cls.is_available() is there


@pytest.mark.parametrize("platform_cls", [NpuSRTPlatform, MusaSRTPlatform])
def test_without_its_module_it_is_not_available_and_says_what_to_do(platform_cls: type[SRTPlatform]) -> None:
    assert not hasattr(torch, platform_cls.device_type)
    assert platform_cls.is_available() is False
    with pytest.raises(PlatformError, match=f"torch has no device module torch.{platform_cls.device_type}: install"):
        platform_cls().synchronize()


def test_an_operation_that_the_module_lacks_is_named(device: Device) -> None:
    del device.module.mem_get_info
    message = f"torch.{device.platform.device_type} has no mem_get_info: a newer release"
    with pytest.raises(PlatformError, match=message):
        device.platform.get_available_memory()


@pytest.mark.parametrize(
    ("hip", "expected"), [(None, {"cuda": True, "rocm": False}), ("6.2", {"cuda": False, "rocm": True})]
)
def test_cuda_and_rocm_are_told_apart_by_the_build(
    hip: str | None, expected: dict[str, bool], mocker: MockerFixture
) -> None:
    device = Device(CudaSRTPlatform, mocker)
    device.module.is_available.return_value = True
    mocker.patch.object(torch.version, "hip", hip)
    assert {cls.device_name: cls.is_available() for cls in (CudaSRTPlatform, RocmSRTPlatform)} == expected


def test_rocm_is_cuda_under_another_name() -> None:
    assert issubclass(RocmDeviceMixin, CudaDeviceMixin)
    assert not issubclass(RocmSRTPlatform, CudaSRTPlatform)
    assert RocmSRTPlatform.device_type == "cuda"
    own = {name for name in vars(RocmDeviceMixin) if not name.startswith(("__", "_abc"))}
    assert own == {"_enum", "device_name", "is_hip"}


class TestMps:
    def test_availability_is_that_of_the_backend(self, mps: Device, mocker: MockerFixture) -> None:
        available = mocker.patch("torch.backends.mps.is_available")
        for there in (True, False):
            available.return_value = there
            assert MpsSRTPlatform.is_available() is there

    def test_memory_is_counted_against_what_metal_recommends(self, mps: Device) -> None:
        mps.module.recommended_max_memory.return_value = 12 * GIB
        mps.module.driver_allocated_memory.return_value = 2 * GIB
        assert mps.platform.get_device_total_memory() == 12 * GIB
        assert mps.platform.get_current_memory_usage() == 2 * GIB
        assert mps.platform.get_available_memory() == (10 * GIB, 12 * GIB)
        mps.module.driver_allocated_memory.return_value = 13 * GIB
        assert mps.platform.get_available_memory(0) == (0, 12 * GIB)

    def test_what_torch_does_not_tell_is_not_made_up(self, mps: Device) -> None:
        assert mps.platform.get_device_name(0) == "Apple GPU"
        assert mps.platform.get_device_uuid() is None
        assert mps.platform.get_device_capability() is None

    def test_there_is_one_device(self, mps: Device) -> None:
        mps.module.device_count.return_value = 1
        assert mps.platform.get_device(0) == torch.device("mps", 0)
        mps.platform.set_device(torch.device("mps"))
        with pytest.raises(PlatformError, match="cpu is no device of platform mps"):
            mps.platform.set_device(torch.device("cpu"))
        for ask in ("get_device_name", "get_device_uuid", "get_device_total_memory", "get_current_memory_usage"):
            with pytest.raises(PlatformError, match="there is no MPS device 1"):
                getattr(mps.platform, ask)(1)
        with pytest.raises(PlatformError, match="local rank 1"):
            mps.platform.get_device(1)

    def test_there_are_no_streams(self, mps: Device) -> None:
        for use in (mps.platform.create_stream, mps.platform.current_stream, lambda: mps.platform.use_stream(None)):
            with pytest.raises(PlatformError, match="no streams for MPS"):
                use()


IDENTITIES = {
    "is_cuda": {"cuda"},
    "is_rocm": {"rocm"},
    "is_cpu": {"cpu"},
    "is_xpu": {"xpu"},
    "is_npu": {"npu"},
    "is_musa": {"musa"},
    "is_mps": {"mps"},
    "is_cuda_alike": {"cuda", "rocm", "musa"},
    "is_out_of_tree": set(),
}


@pytest.mark.parametrize("question", IDENTITIES)
def test_every_platform_knows_what_it_is(question: str) -> None:
    yes = {cls.device_name for cls in (*ACCELERATORS, CpuSRTPlatform) if getattr(cls(), question)()}
    assert yes == IDENTITIES[question]


def test_names_are_those_of_the_enum() -> None:
    for cls in (*ACCELERATORS, CpuSRTPlatform):
        assert cls._enum.value == cls.device_name == cls().get_dispatch_key()
    assert DeviceMixin._enum is SRTPlatform._enum is AcceleratorDeviceMixin._enum is PlatformEnum.UNSPECIFIED


def test_declared_capabilities() -> None:
    declared = {cls.device_name: cls().capabilities for cls in (*ACCELERATORS, CpuSRTPlatform)}
    assert {name for name, capabilities in declared.items() if capabilities.graph_capture} == {"cuda", "rocm"}
    assert {name for name, capabilities in declared.items() if capabilities.float64} == {"cuda", "rocm", "cpu"}
    assert {c.dtypes for c in declared.values()} == {("float32", "bfloat16", "float16")}


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", CpuArchEnum.X86),
        ("AMD64", CpuArchEnum.X86),
        ("i686", CpuArchEnum.X86),
        ("aarch64", CpuArchEnum.ARM),
        ("arm64", CpuArchEnum.ARM),
        ("riscv64", CpuArchEnum.OTHER),
    ],
)
def test_the_processors_architecture(machine: str, expected: CpuArchEnum, mocker: MockerFixture) -> None:
    mocker.patch("platform.machine", return_value=machine)
    assert CpuSRTPlatform().get_cpu_architecture() is expected


def test_a_capability_compares_and_is_written_like_a_version() -> None:
    assert DeviceCapability(9, 0) > DeviceCapability(8, 9)
    assert DeviceCapability(8, 9).as_version_str() == "8.9"
    assert DeviceCapability(8, 9).to_int() == 89
    with pytest.raises(ValueError, match=r"8\.10"):
        DeviceCapability(8, 10).to_int()


class TestCpu:
    def test_streams_and_events_have_the_methods_of_torchs(self) -> None:
        platform = CpuSRTPlatform()
        stream = platform.create_stream()
        assert stream is platform.current_stream()
        with platform.use_stream(stream):
            first = stream.record_event(platform.create_event(enable_timing=True))
            torch.ones(300, 300) @ torch.ones(300, 300)
            second = platform.create_event(enable_timing=True)
            second.record(stream)
        for mark in (first, second):
            mark.wait(stream)
            mark.synchronize()
            stream.wait_event(mark)
            assert mark.query() is stream.query() is True
        stream.wait_stream(stream)
        stream.synchronize()
        assert first.elapsed_time(second) > 0
        assert second.elapsed_time(first) == pytest.approx(-first.elapsed_time(second))

    def test_an_event_without_a_time_says_so(self) -> None:
        timed, untimed = HostEvent(enable_timing=True), CpuSRTPlatform().create_event()
        untimed.record()
        with pytest.raises(PlatformError, match="recorded before"):
            timed.elapsed_time(HostEvent(enable_timing=True))
        timed.record()
        with pytest.raises(PlatformError, match="enable_timing=True"):
            timed.elapsed_time(untimed)

    def test_there_is_one_device(self) -> None:
        platform = CpuSRTPlatform()
        platform.set_device(torch.device("cpu"))
        assert platform.get_device(3) == torch.device("cpu")
        with pytest.raises(PlatformError, match="meta is no device of platform cpu"):
            platform.set_device(torch.device("meta"))
        for ask in (
            *("get_device_name", "get_device_uuid", "get_device_capability", "get_device_total_memory"),
            *("get_available_memory", "get_current_memory_usage"),
        ):
            getattr(platform, ask)(0)
            with pytest.raises(PlatformError, match="there is no CPU device 1"):
                getattr(platform, ask)(1)

    def test_fixed_answers(self) -> None:
        platform = CpuSRTPlatform()
        assert CpuSRTPlatform.is_available()
        assert platform.get_device_capability() is None
        assert platform.is_pin_memory_available() is False
        assert platform.get_torch_distributed_backend_str() == "gloo"
        assert platform.get_profiler_activity() is torch.profiler.ProfilerActivity.CPU
        assert platform.get_device_uuid() == platform.get_device_uuid()


def test_the_mixin_is_a_whole_and_no_platform_lacks_a_part() -> None:
    assert DeviceMixin.__abstractmethods__
    for cls in (*ACCELERATORS, CpuSRTPlatform):
        assert not cls.__abstractmethods__
