"""Which platform is chosen, branch by branch, with entry points and devices mocked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_mock import MockerFixture

import runtime.platforms as platforms
from runtime.core.errors import PlatformError
from runtime.platforms import PlatformEnum, discovery
from runtime.platforms.cpu import CpuDeviceMixin, CpuSRTPlatform
from runtime.platforms.cuda import CudaSRTPlatform
from runtime.platforms.interface import SRTPlatform
from runtime.platforms.mps import MpsSRTPlatform
from runtime.platforms.musa import MusaSRTPlatform
from runtime.platforms.npu import NpuSRTPlatform
from runtime.platforms.rocm import RocmSRTPlatform
from runtime.platforms.xpu import XpuSRTPlatform

IN_ORDER = (
    *(CudaSRTPlatform, NpuSRTPlatform, RocmSRTPlatform, XpuSRTPlatform, MusaSRTPlatform, MpsSRTPlatform),
    CpuSRTPlatform,
)


class VendorPlatform(CpuDeviceMixin, SRTPlatform):
    """A plugin's platform."""

    _enum = PlatformEnum.OOT
    device_name = "vendor"


class OtherPlatform(VendorPlatform):
    """Another one."""

    device_name = "other"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is named, nothing is chosen yet, and what is chosen here is forgotten."""
    # Set first, since what is deleted where nothing was is not remembered, and a platform bound here would stay.
    monkeypatch.setitem(vars(platforms), "current_platform", None)
    monkeypatch.delitem(vars(platforms), "current_platform")
    for variable in (platforms.PLATFORM_ENV, platforms.CPU_ENV):
        monkeypatch.delenv(variable, raising=False)
    for cached in (discovery.select_platform, discovery._active_plugin):
        cached.cache_clear()
    yield
    for cached in (discovery.select_platform, discovery._active_plugin):
        cached.cache_clear()


@pytest.fixture
def available(mocker: MockerFixture) -> Callable[..., None]:
    """A function that says which of the in-tree platforms torch sees; to begin with the CPU alone."""

    def see(*classes: type[SRTPlatform]) -> None:
        for cls in IN_ORDER:
            mocker.patch.object(cls, "is_available", return_value=cls in (*classes, CpuSRTPlatform))

    see()
    return see


class Plugins:
    """The platform plugins that are installed; remembers which were imported and which were called."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.loaded: list[str] = []
        self.activated: list[str] = []

    def add(self, name: str, makes: Any = None, distribution: str | None = None) -> None:
        """Install a plugin whose function returns `makes`, or raises it if it is an exception."""

        def activate() -> Any:
            self.activated.append(name)
            if isinstance(makes, BaseException):
                raise makes
            return makes

        def load() -> Any:
            self.loaded.append(name)
            return activate

        dist = SimpleNamespace(name=distribution or f"{name}-dist")
        self.entries.append(SimpleNamespace(name=name, dist=dist, load=load))


@pytest.fixture
def plugins(mocker: MockerFixture, available: Callable[..., None]) -> Plugins:
    made = Plugins()

    def entry_points(*, group: str) -> list[Any]:
        assert group == "runtime.platforms"
        return made.entries

    mocker.patch("importlib.metadata.entry_points", entry_points)
    return made


def chosen() -> str:
    return discovery.create_platform().device_name


class TestByName:
    @pytest.mark.parametrize("platform_cls", IN_ORDER, ids=lambda cls: cls.device_name)
    def test_an_in_tree_platform_that_is_there(
        self,
        platform_cls: type[SRTPlatform],
        plugins: Plugins,
        available: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        plugins.add("vendor", VendorPlatform)
        available(*IN_ORDER)
        monkeypatch.setenv(platforms.PLATFORM_ENV, platform_cls.device_name)
        assert type(discovery.create_platform()) is platform_cls
        assert plugins.loaded == []

    @pytest.mark.parametrize("platform_cls", IN_ORDER[:-1], ids=lambda cls: cls.device_name)
    def test_an_in_tree_platform_that_is_not_there_is_no_silent_fall_back(
        self, platform_cls: type[SRTPlatform], plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(platforms.PLATFORM_ENV, platform_cls.device_name)
        with pytest.raises(PlatformError, match=f"'{platform_cls.device_name}': torch sees no such device"):
            discovery.create_platform()

    def test_a_plugin_and_no_other_is_imported(self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        plugins.add("vendor", VendorPlatform)
        plugins.add("other", OtherPlatform)
        monkeypatch.setenv(platforms.PLATFORM_ENV, "vendor")
        assert chosen() == "vendor"
        assert plugins.loaded == plugins.activated == ["vendor"]

    def test_a_plugin_that_names_its_class(self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        plugins.add("vendor", f"{__name__}:VendorPlatform")
        monkeypatch.setenv(platforms.PLATFORM_ENV, "vendor")
        assert chosen() == "vendor"

    def test_a_plugin_that_is_not_installed(self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        plugins.add("vendor", VendorPlatform)
        monkeypatch.setenv(platforms.PLATFORM_ENV, "vendro")
        with pytest.raises(PlatformError, match=r"'vendro' names no platform: .*cuda, npu.*\(vendor\), or unset it"):
            discovery.create_platform()
        assert plugins.loaded == []

    def test_a_plugin_whose_hardware_is_not_there(self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        plugins.add("vendor", None)
        monkeypatch.setenv(platforms.PLATFORM_ENV, "vendor")
        with pytest.raises(PlatformError, match=r"'vendor' of vendor-dist says that its hardware is not there"):
            discovery.create_platform()

    @pytest.mark.parametrize("error", [OSError("no driver"), SystemExit("no driver")])
    def test_a_plugin_that_raises(
        self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        plugins.add("vendor", error)
        monkeypatch.setenv(platforms.PLATFORM_ENV, "vendor")
        message = f"'vendor' of vendor-dist failed: {type(error).__name__}: no driver"
        with pytest.raises(PlatformError, match=message) as caught:
            discovery.create_platform()
        assert caught.value.__cause__ is error

    def test_a_name_of_two_plugins(self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        plugins.add("vendor", VendorPlatform, "one")
        plugins.add("vendor", OtherPlatform, "two")
        monkeypatch.setenv(platforms.PLATFORM_ENV, "vendor")
        with pytest.raises(PlatformError, match=r"'vendor' of one, platform plugin 'vendor' of two; uninstall"):
            discovery.create_platform()
        assert plugins.loaded == []


class TestReservedNames:
    @pytest.mark.parametrize("name", list(discovery.IN_TREE))
    @pytest.mark.parametrize("asked", [True, False])
    def test_a_plugin_cannot_take_one(
        self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, name: str, asked: bool
    ) -> None:
        plugins.add(name, VendorPlatform)
        if asked:
            monkeypatch.setenv(platforms.PLATFORM_ENV, name)
        with pytest.raises(PlatformError, match=f"plugin '{name}' of {name}-dist: the names .* cannot be a plugin's"):
            discovery.create_platform()
        assert plugins.loaded == []

    def test_one_that_is_taken_does_not_matter_to_who_asks_for_another(
        self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plugins.add("cuda", OtherPlatform)
        plugins.add("vendor", VendorPlatform)
        for name in ("vendor", "cpu"):
            monkeypatch.setenv(platforms.PLATFORM_ENV, name)
            discovery.select_platform.cache_clear()
            assert chosen() == name


class Unnamed(CpuDeviceMixin, SRTPlatform):
    """Has the CPU's name."""

    _enum = PlatformEnum.OOT


class Unspecified(CudaSRTPlatform):
    """Does not say that it comes from a plugin."""

    device_name = "faster-cuda"


class Incomplete(SRTPlatform):
    """Has no device operations."""

    _enum = PlatformEnum.OOT
    device_name = "incomplete"
    device_type = "cpu"


class Typeless(VendorPlatform):
    """Has no type."""

    device_type = ""


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Unnamed, "Unnamed has the device_name 'cpu', which is an in-tree platform's"),
        (Unspecified, "Unspecified must say what it is: set _enum = PlatformEnum.OOT"),
        (Incomplete, "Incomplete lacks create_event, create_stream, "),
        (Typeless, "Typeless must set device_type to a name"),
        (VendorPlatform(), "must be a subclass of runtime.platforms.interface.SRTPlatform"),
        (CpuDeviceMixin, "CpuDeviceMixin must be a subclass of"),
        ("nowhere.Platform", "'nowhere.Platform' cannot be imported"),
        (7, "7 must be a subclass of"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_what_is_no_platform_is_refused_with_the_reason(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, made: Any, message: str, named: bool
) -> None:
    plugins.add("vendor", made)
    if named:
        monkeypatch.setenv(platforms.PLATFORM_ENV, "vendor")
    with pytest.raises(PlatformError, match="platform plugin 'vendor' of vendor-dist: ") as caught:
        discovery.create_platform()
    assert message in str(caught.value)


class TestAutomatic:
    def test_the_one_that_is_active_goes_before_every_in_tree_platform(
        self, plugins: Plugins, available: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        available(*IN_ORDER)
        monkeypatch.setenv(platforms.CPU_ENV, "1")
        plugins.add("other", None)
        plugins.add("vendor", VendorPlatform)
        assert chosen() == "vendor"
        assert plugins.activated == ["other", "vendor"]

    def test_two_that_are_active_are_an_error_that_names_both(self, plugins: Plugins) -> None:
        plugins.add("vendor", VendorPlatform)
        plugins.add("other", OtherPlatform)
        with pytest.raises(PlatformError, match=r"'other' of other-dist, .* 'vendor' of vendor-dist; choose one with"):
            discovery.create_platform()

    def test_one_that_raises_is_an_error_if_none_is_active(
        self, plugins: Plugins, available: Callable[..., None]
    ) -> None:
        available(*IN_ORDER)
        plugins.add("vendor", OSError("no driver"))
        plugins.add("other", None)
        with pytest.raises(PlatformError, match=r"'vendor' of vendor-dist failed: OSError: no driver; .*RUNTIME_PLATF"):
            discovery.create_platform()

    def test_one_that_raises_is_reported_if_another_is_active(
        self, plugins: Plugins, caplog: pytest.LogCaptureFixture
    ) -> None:
        plugins.add("other", OSError("no driver"))
        plugins.add("vendor", VendorPlatform)
        with caplog.at_level(logging.WARNING, logger="runtime.platforms"):
            assert chosen() == "vendor"
        (record,) = caplog.records
        assert "'other' of other-dist failed: OSError: no driver; platform plugin 'vendor'" in record.getMessage()

    @pytest.mark.parametrize("first", range(len(IN_ORDER)), ids=lambda i: IN_ORDER[i].device_name)
    def test_without_an_active_plugin_the_first_device_that_torch_sees_is_taken(
        self, plugins: Plugins, available: Callable[..., None], first: int
    ) -> None:
        plugins.add("vendor", None)
        available(*IN_ORDER[first:])
        assert type(discovery.create_platform()) is IN_ORDER[first]

    def test_the_cpu_goes_first_when_it_is_opted_for(
        self, plugins: Plugins, available: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        available(*IN_ORDER)
        monkeypatch.setenv(platforms.CPU_ENV, "0")
        assert chosen() == "cuda"
        discovery.select_platform.cache_clear()
        monkeypatch.setenv(platforms.CPU_ENV, "1")
        assert chosen() == "cpu"

    def test_an_opt_in_that_is_neither_yes_nor_no_is_refused(
        self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(platforms.CPU_ENV, "yes")
        with pytest.raises(PlatformError, match="RUNTIME_USE_CPU='yes' is not valid: set it to 1"):
            discovery.create_platform()


class Broken(VendorPlatform):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("firmware too old")


def test_a_platform_that_cannot_be_made_says_why(plugins: Plugins) -> None:
    plugins.add("vendor", Broken)
    with pytest.raises(PlatformError, match=r"'vendor' of vendor-dist cannot be made: RuntimeError: firmware too old"):
        discovery.create_platform()


def test_every_plugin_is_asked_once(plugins: Plugins) -> None:
    plugins.add("vendor", VendorPlatform)
    plugins.add("other", None)
    platforms.unselected_distributions()
    discovery.create_platform()
    discovery.create_platform()
    assert plugins.activated == ["other", "vendor"]


def test_a_platform_that_is_named_is_imported_by_who_uses_it_alone(plugins: Plugins) -> None:
    plugins.add("vendor", "nowhere.Platform")
    assert platforms.unselected_distributions() == frozenset()
    with pytest.raises(PlatformError, match=r"'vendor' of vendor-dist: 'nowhere\.Platform' cannot be imported"):
        discovery.create_platform()


def test_a_failure_is_not_remembered(plugins: Plugins) -> None:
    plugins.add("vendor", OSError("no driver"))
    with pytest.raises(PlatformError):
        discovery.create_platform()
    plugins.entries.clear()
    assert chosen() == "cpu"


def test_the_platform_of_the_process_is_made_at_first_access_and_kept(plugins: Plugins) -> None:
    plugins.add("vendor", VendorPlatform)
    assert plugins.loaded == []
    assert type(platforms.current_platform) is VendorPlatform
    assert platforms.current_platform is platforms.current_platform


class TestUnselectedDistributions:
    @pytest.fixture(autouse=True)
    def installed(self, plugins: Plugins) -> None:
        plugins.add("vendor", VendorPlatform, "vendor-dist")
        plugins.add("vendor2", None, "vendor-dist")
        plugins.add("other", None, "other-dist")

    @pytest.mark.parametrize(
        ("asked", "expected", "loaded"),
        [
            ("cpu", {"vendor-dist", "other-dist"}, set()),
            ("vendor", {"other-dist"}, set()),
            ("vendor2", {"other-dist"}, set()),
            ("other", {"vendor-dist"}, set()),
            ("", {"other-dist"}, {"vendor", "vendor2", "other"}),
        ],
    )
    def test_they_are_all_but_that_of_the_selected_platform(
        self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, asked: str, expected: set[str], loaded: set[str]
    ) -> None:
        monkeypatch.setenv(platforms.PLATFORM_ENV, asked)
        assert platforms.unselected_distributions() == expected
        assert set(plugins.loaded) == loaded

    def test_they_are_all_when_no_plugin_is_active(self, plugins: Plugins) -> None:
        plugins.entries.clear()
        plugins.add("other", None)
        assert platforms.unselected_distributions() == {"other-dist"}

    def test_a_platform_that_is_not_installed_is_an_error_here_already(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(platforms.PLATFORM_ENV, "nothing")
        with pytest.raises(PlatformError, match="'nothing' names no platform"):
            platforms.unselected_distributions()

    def test_there_are_none_without_plugins(self, plugins: Plugins, mocker: MockerFixture) -> None:
        plugins.entries.clear()
        select = mocker.spy(discovery, "select_platform")
        assert platforms.unselected_distributions() == frozenset()
        select.assert_not_called()
