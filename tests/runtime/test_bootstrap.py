"""Which hook plugins a process of the runtime loads, given which platform is selected, and how it insists on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from pytest_mock import MockerFixture

import hookery
from runtime import platforms
from runtime.plugins import bootstrap


@pytest.fixture(autouse=True)
def load(monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture) -> MagicMock:
    """What loads plugins. Two are installed besides `gpu_hooks`, whose platform is not selected."""
    monkeypatch.delenv("HOOKERY_PLUGINS", raising=False)
    install(mocker, ("gpu_hooks", "gpu-dist"), ("tracing", "tracing-dist"), ("local", None))
    mocker.patch.object(platforms, "unselected_distributions", return_value=frozenset({"gpu-dist", "npu-dist"}))
    mocker.patch.object(hookery.registry, "counting", False)
    return mocker.patch.object(hookery, "load_plugins")


def install(mocker: MockerFixture, *plugins: tuple[str, str | None]) -> None:
    entries = [SimpleNamespace(name=name, dist=dist and SimpleNamespace(name=dist)) for name, dist in plugins]
    mocker.patch.object(bootstrap, "entry_points", return_value=entries)


def test_those_beside_an_unselected_platform_are_left_out(load: MagicMock) -> None:
    bootstrap.load_process_plugins(["my.module"])
    load.assert_called_once_with(
        modules=["my.module"], except_distributions=frozenset({"gpu-dist", "npu-dist"}), strict=True
    )


@pytest.mark.parametrize("allowed", ["", " ", "tracing", "tracing, local", "not_installed"])
def test_an_allow_list_that_asks_for_none_of_them_is_left_to_hookery(
    load: MagicMock, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    monkeypatch.setenv("HOOKERY_PLUGINS", allowed)
    bootstrap.load_process_plugins([])
    load.assert_called_once()


def test_an_allow_list_that_asks_for_one_of_them_is_an_error(load: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKERY_PLUGINS", "tracing, gpu_hooks")
    message = "asks for the plugin 'gpu_hooks' of gpu-dist, .* not selected; select it with RUNTIME_PLATFORM"
    with pytest.raises(hookery.PluginError, match=message):
        bootstrap.load_process_plugins([])
    load.assert_not_called()


def test_an_allow_list_may_ask_for_a_name_that_a_selected_distribution_has_too(
    load: MagicMock, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture
) -> None:
    monkeypatch.setenv("HOOKERY_PLUGINS", "hooks")
    install(mocker, ("hooks", "gpu-dist"), ("hooks", "another-dist"))
    bootstrap.load_process_plugins([])
    load.assert_called_once()
    install(mocker, ("hooks", "gpu-dist"), ("hooks", "npu-dist"))
    with pytest.raises(hookery.PluginError, match="'hooks' of gpu-dist and npu-dist, which belongs to a platform that"):
        bootstrap.load_process_plugins([])


def of_other_parameters(result: object, other: object) -> None:
    """A hook on a function that has no parameter `other`."""


class TestBuilding:
    @pytest.fixture
    def build(
        self, tmp_path: Path, mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[[], None]]:
        """A function that builds something which imports a module that nobody has imported before."""
        (tmp_path / "imported_while_building.py").write_text("def answer(number):\n    return number\n")
        monkeypatch.syspath_prepend(tmp_path)
        mocker.patch.object(bootstrap, "load_process_plugins")

        def build() -> None:
            with bootstrap.building([]):
                import_module("imported_while_building")

        yield build
        hookery.registry.reset()
        sys.modules.pop("imported_while_building", None)

    def test_a_hook_that_does_not_fit_what_is_imported_is_one_clear_error(
        self, build: Callable[[], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        hookery.registry.register("imported_while_building.answer", of_other_parameters, hookery.HookType.AFTER)
        message = r"^AFTER .*:of_other_parameters on imported_while_building.answer: .* the target's are \(number\)"
        with pytest.raises(hookery.HookApplyError, match=message):
            build()
        assert capsys.readouterr().err == ""

    def test_one_that_was_taken_back_on_purpose_is_none(self, build: Callable[[], None]) -> None:
        hookery.registry.register("imported_while_building.answer", of_other_parameters, hookery.HookType.AFTER)
        hookery.registry.revert("imported_while_building.answer")
        build()
        assert hookery.registry.applied_hooks()[0].state == "reverted"
