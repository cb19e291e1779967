"""Which hook plugins a process of the runtime loads, given which platform is selected, and how it insists on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytest_mock import MockerFixture

import hookery
from runtime import platforms
from runtime.plugins import bootstrap


@pytest.fixture(autouse=True)
def installed(mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hook plugins; `gpu-dist` belongs to a platform that is not selected."""
    monkeypatch.delenv("HOOKERY_PLUGINS", raising=False)
    entries = [
        SimpleNamespace(name=name, dist=dist and SimpleNamespace(name=dist))
        for name, dist in (("gpu_hooks", "gpu-dist"), ("tracing", "tracing-dist"), ("local", None))
    ]
    mocker.patch.object(bootstrap, "entry_points", return_value=entries)
    mocker.patch.object(platforms, "unselected_distributions", return_value=frozenset({"gpu-dist"}))


def test_those_beside_an_unselected_platform_are_left_out() -> None:
    assert bootstrap.plugin_names() == ["tracing", "local"]


def test_what_is_loaded_is_what_was_chosen(mocker: MockerFixture) -> None:
    load = mocker.patch.object(hookery, "load_plugins")
    mocker.patch.object(hookery.registry, "counting", False)
    bootstrap.load_process_plugins(["my.module"])
    load.assert_called_once_with(modules=["my.module"], names=["tracing", "local"], strict=True)


def test_without_such_a_platform_hookery_chooses(mocker: MockerFixture) -> None:
    mocker.patch.object(platforms, "unselected_distributions", return_value=frozenset())
    assert bootstrap.plugin_names() is None


def test_an_allow_list_that_asks_for_none_of_them_is_left_to_hookery(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed in ("", " ", "tracing", "tracing, local", "not_installed"):
        monkeypatch.setenv("HOOKERY_PLUGINS", allowed)
        assert bootstrap.plugin_names() is None


def test_an_allow_list_that_asks_for_one_of_them_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKERY_PLUGINS", "tracing, gpu_hooks")
    message = "asks for the plugin 'gpu_hooks' of gpu-dist, .* not selected; select it with RUNTIME_PLATFORM"
    with pytest.raises(hookery.PluginError, match=message):
        bootstrap.plugin_names()


@pytest.mark.parametrize("allowed", [None, "gpu_hooks"])
def test_a_name_that_another_distribution_uses_too_cannot_be_told_apart(
    monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture, allowed: str | None
) -> None:
    if allowed is not None:
        monkeypatch.setenv("HOOKERY_PLUGINS", allowed)
    entries = [
        SimpleNamespace(name="gpu_hooks", dist=SimpleNamespace(name=dist)) for dist in ("gpu-dist", "another-dist")
    ]
    mocker.patch.object(bootstrap, "entry_points", return_value=entries)
    with pytest.raises(hookery.PluginError, match=r"'gpu_hooks' is used by gpu-dist, .* and by another distribution"):
        bootstrap.plugin_names()


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
