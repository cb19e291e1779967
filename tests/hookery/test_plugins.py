"""Plugins: installed distributions with entry points, and modules by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hookery.support import Modules, run_python
from tests.plugin_distributions import PLUGINS, install_plugin

Run = Callable[..., Any]

SIGNED = "+twin+function+stdlib"  # by distribution name, then by the name of the entry point

PREAMBLE = """
import json, sys, warnings
import hookery
from hookery import HookType, load_plugins

def states():
    return [(r.source, r.distribution, r.target, r.state) for r in hookery.applied_hooks()]

def signature():
    return json.dumps(1).removeprefix("1")

answer = None
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions in it."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("stdlib_plugin", "stdlib_plugin_twin"):
        install_plugin(PLUGINS / name, folder)
    return folder


@pytest.fixture
def run(installed: Path) -> Run:
    """Run a program with the plugins installed and return the value that it leaves in `answer`."""

    def run(source: str, *, path: tuple[Path, ...] = (), fails: bool = False, **environment: str) -> Any:
        import textwrap

        program = PREAMBLE + textwrap.dedent(source) + "\nsys.__stdout__.write(json.JSONEncoder().encode(answer))\n"
        out = run_python(program, path=[installed, *path], environment=environment, fails=fails)
        return out if fails else json.loads(out)

    return run


def test_building_a_plugin_leaves_nothing_in_its_source(installed: Path) -> None:
    left = {path.name for path in PLUGINS.rglob("*") if path.name == "build" or path.name.endswith(".egg-info")}
    assert left == set()
    assert (installed / "stdlib_plugin" / "hooks.py").exists()


class TestAttribution:
    def test_hooks_are_attributed_to_entry_point_and_distribution(self, run: Run) -> None:
        assert run("load_plugins(); answer = states()") == [
            ["stdlib", "another-test-stdlib-plugin", "json.dumps", "applied"],
            ["by_function", "hookery-test-stdlib-plugin", "json.dumps", "applied"],
            ["stdlib", "hookery-test-stdlib-plugin", "json.dumps", "applied"],
            ["stdlib", "hookery-test-stdlib-plugin", "wsgiref.util.guess_scheme", "pending"],
        ]

    def test_the_version_is_known_to_messages(self, run: Run) -> None:
        answer = run(
            """
            hookery.registry.register("json.dumps", lambda *a: "mine", HookType.REPLACE)
            load_plugins(names=["stdlib"])
            answer = sorted(str(hook.source) for hook in hookery.registry._hooks if hook.source.distribution)
            """
        )
        assert answer == [
            "stdlib (another-test-stdlib-plugin 0.9)",
            *["stdlib (hookery-test-stdlib-plugin 1.2.3)"] * 2,
        ]

    @pytest.mark.parametrize("name", ["stdlib_plugin", "stdlib_plugin.hooks"])
    def test_a_plugin_whose_module_was_imported_before_is_still_attributed(self, run: Run, name: str) -> None:
        answer = run(f"import {name}\nload_plugins(names=['stdlib'])\nanswer = states(), signature()")
        assert answer == [
            [
                ["stdlib", "hookery-test-stdlib-plugin", "json.dumps", "applied"],
                ["stdlib", "hookery-test-stdlib-plugin", "wsgiref.util.guess_scheme", "pending"],
                ["stdlib", "another-test-stdlib-plugin", "json.dumps", "applied"],
            ],
            "+stdlib+twin",
        ]

    def test_hooks_that_code_registered_are_not_the_plugins(self, run: Run) -> None:
        answer = run(
            """
            hookery.plugin_hook("json.dumps", HookType.AFTER)(lambda result, *a, **k: result + "+code")
            load_plugins()
            answer = states()[0], signature()
            """
        )
        assert answer == [["__main__", None, "json.dumps", "applied"], "+code" + SIGNED]

    def test_revert_by_entry_point_or_distribution(self, run: Run) -> None:
        answer = run(
            """
            load_plugins()
            hookery.registry.revert(source="hookery-test-stdlib-plugin")
            one = signature()
            hookery.registry.revert(source="stdlib")
            answer = one, signature()
            """
        )
        assert answer == ["+twin", ""]


class TestAllowList:
    @pytest.mark.parametrize(
        ("variable", "expected"),
        [
            (None, SIGNED),
            ("", ""),
            (" , ", ""),
            ("by_function", "+function"),
            (" stdlib ", "+twin+stdlib"),
            ("stdlib,by_function", SIGNED),
        ],
    )
    def test_the_variable_says_which_plugins_load(self, run: Run, variable: str | None, expected: str) -> None:
        environment = {} if variable is None else {"HOOKERY_PLUGINS": variable}
        assert run("load_plugins(); answer = signature()", **environment) == expected

    def test_a_distribution_can_be_left_out_though_another_has_plugins_of_the_same_name(self, run: Run) -> None:
        load = "load_plugins(except_distributions=['hookery-test-stdlib-plugin']); answer = signature()"
        assert run(load) == "+twin"
        assert run(load, HOOKERY_PLUGINS="stdlib") == "+twin"

    def test_asking_for_what_is_left_out_is_an_error(self, run: Run) -> None:
        error = run(
            "load_plugins(names=['by_function'], except_distributions={'hookery-test-stdlib-plugin'})", fails=True
        )
        assert (
            "PluginError: load_plugins(names=...) asks for the plugin 'by_function' of hookery-test-stdlib-plugin,"
            " whose plugins are left out here" in error
        )

    def test_an_unknown_name_in_the_variable_is_an_error_that_lists_what_there_is(self, run: Run) -> None:
        error = run("load_plugins()", fails=True, HOOKERY_PLUGINS="stdlib,sdtlib")
        assert "PluginError: HOOKERY_PLUGINS asks for the plugin 'sdtlib', which is not installed" in error
        assert "installed: by_function, stdlib" in error

    def test_an_unknown_name_asked_for_by_code_is_an_error(self, run: Run) -> None:
        error = run("load_plugins(names=['sdtlib'])", fails=True)
        assert "PluginError: load_plugins(names=...) asks for the plugin 'sdtlib'" in error

    def test_names_that_code_asks_for_outrank_the_variable(self, run: Run) -> None:
        assert run("load_plugins(names=['by_function']); answer = signature()", HOOKERY_PLUGINS="") == "+function"

    def test_the_variable_does_not_keep_out_modules_asked_for_by_name(self, run: Run) -> None:
        answer = run("load_plugins(modules=['stdlib_plugin.hooks']); answer = signature()", HOOKERY_PLUGINS="")
        assert answer == "+stdlib"


class TestOrder:
    def test_plugins_load_by_distribution_name_then_by_entry_point_name(self, run: Run) -> None:
        assert run("load_plugins(); answer = signature()") == SIGNED

    def test_the_order_in_which_they_are_found_does_not_matter(self, run: Run, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        install_plugin(PLUGINS / "stdlib_plugin_twin", first)
        install_plugin(PLUGINS / "stdlib_plugin", second)
        for path in ((first, second), (second, first)):
            out = run_python(
                "import hookery, json; hookery.load_plugins(); print(json.dumps(1))", path=path, environment={}
            )
            assert out.strip() == "1" + SIGNED

    def test_entry_points_of_one_name_in_two_distributions_both_load(self, run: Run) -> None:
        assert run("load_plugins(names=['stdlib']); answer = signature()") == "+twin+stdlib"

    def test_modules_asked_for_load_after_the_installed_plugins(self, run: Run, modules: Modules) -> None:
        modules.write(plug=AFTER_MODULE)
        answer = run("load_plugins(modules=['plug']); answer = signature(), states()[-1]", path=(modules.folder,))
        assert answer == [SIGNED + "+plug", ["plug", None, "json.dumps", "applied"]]


AFTER_MODULE = """
    import hookery
    @hookery.plugin_hook("json.dumps", hookery.HookType.AFTER)
    def sign(result, *args, **kwargs):
        return result + "+plug"
"""


class TestFailures:
    @pytest.mark.parametrize(("way", "message"), [("import", "was told to fail"), ("exit", "was told to exit")])
    def test_a_plugin_that_raises_is_warned_about_leaves_no_hooks_and_the_others_go_on(
        self, run: Run, way: str, message: str
    ) -> None:
        answer = run(
            """
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                load_plugins()
            answer = [str(w.message) for w in caught], signature(), states()
            """,
            STDLIB_PLUGIN_FAILS=way,
        )
        (warning,), signed, states = answer
        assert "plugin stdlib (hookery-test-stdlib-plugin 1.2.3) failed to load" in warning
        assert message in warning
        assert signed == "+twin+function"
        assert [state[:2] for state in states] == [
            ["stdlib", "another-test-stdlib-plugin"],
            ["by_function", "hookery-test-stdlib-plugin"],
        ]

    @pytest.mark.parametrize("how", ["names=['stdlib']", "strict=True", "modules=['stdlib_plugin']"])
    def test_one_that_was_asked_for_or_any_where_strict_raises(self, run: Run, how: str) -> None:
        error = run(f"warnings.simplefilter('ignore')\nload_plugins({how})", fails=True, STDLIB_PLUGIN_FAILS="import")
        assert "PluginError: plugin " in error
        assert "failed to load: RuntimeError: stdlib_plugin was told to fail" in error

    def test_one_named_by_the_variable_raises(self, run: Run) -> None:
        error = run("load_plugins()", fails=True, STDLIB_PLUGIN_FAILS="import", HOOKERY_PLUGINS="stdlib")
        assert "PluginError" in error

    def test_after_it_raised_nothing_of_it_is_registered(self, run: Run) -> None:
        answer = run(
            """
            try:
                load_plugins(names=["stdlib"], strict=True)
            except hookery.PluginError as error:
                answer = states(), type(error.__cause__).__name__
            """,
            STDLIB_PLUGIN_FAILS="import",
        )
        assert answer == [[["stdlib", "another-test-stdlib-plugin", "json.dumps", "pending"]], "RuntimeError"]

    def test_once_what_was_wrong_is_mended_the_next_call_loads_it(self, run: Run) -> None:
        answer = run(
            """
            import os
            os.environ["STDLIB_PLUGIN_FAILS"] = "import"
            warnings.simplefilter("ignore", hookery.HookWarning)
            load_plugins()
            before = signature()
            del os.environ["STDLIB_PLUGIN_FAILS"]
            load_plugins()
            answer = before, signature(), sorted({state[3] for state in states()})
            """
        )
        before, after, states = answer
        assert before == "+twin+function"
        assert sorted(after.split("+")) == ["", "function", "stdlib", "twin"]
        assert states == ["applied", "pending"]

    @pytest.mark.parametrize(("way", "tolerated"), [("apply", True), ("apply", False), ("miss", False)])
    def test_hooks_that_cannot_be_applied_are_taken_back_with_all_of_their_plugin(
        self, run: Run, way: str, tolerated: bool
    ) -> None:
        answer = run(
            f"""
            error = None
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    load_plugins({"" if tolerated else "strict=True"})
                except hookery.HookApplyError as raised:
                    error = str(raised)
            answer = [str(w.message) for w in caught], error, signature(), states()
            """,
            STDLIB_PLUGIN_FAILS=way,
        )
        caught, error, signed, states = answer
        wanted = "can only be REPLACEd" if way == "apply" else "'json' has no 'dumsp'"
        if tolerated:
            assert "hooks of stdlib (hookery-test-stdlib-plugin 1.2.3) were taken back" in caught[0]
            assert wanted in caught[0]
        else:
            assert wanted in error
        assert signed == "+twin+function"
        assert {state[3] for state in states if state[:2] == ["stdlib", "hookery-test-stdlib-plugin"]} == {"reverted"}

    def test_a_module_that_a_failing_plugin_imported_can_still_be_a_plugin(self, run: Run, modules: Modules) -> None:
        modules.write(plug=AFTER_MODULE, broken="import plug\nraise RuntimeError('broken')")
        answer = run(
            """
            try:
                load_plugins(modules=["broken"])
            except hookery.PluginError:
                before = states()
            load_plugins(modules=["plug"])
            answer = before, signature()
            """,
            path=(modules.folder,),
            HOOKERY_PLUGINS="",
        )
        assert answer == [[], "+plug"]

    def test_a_module_that_does_not_exist_is_an_error_that_names_it(self, run: Run) -> None:
        error = run("load_plugins(modules=['no_such_plugin'])", fails=True, HOOKERY_PLUGINS="")
        assert "PluginError: plugin no_such_plugin failed to load: ModuleNotFoundError" in error


class TestCallingAgain:
    def test_a_second_call_loads_nothing_again(self, run: Run) -> None:
        answer = run(
            """
            load_plugins()
            stand_in, module = json.dumps, sys.modules["stdlib_plugin"]
            load_plugins()
            answer = signature(), json.dumps is stand_in, sys.modules["stdlib_plugin"] is module, len(states())
            """
        )
        assert answer == [SIGNED, True, True, 4]

    def test_a_second_call_applies_what_has_become_possible(self, run: Run) -> None:
        answer = run(
            """
            import types
            shop = sys.modules["shop"] = types.ModuleType("shop")
            hookery.registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", hookery.MissedHookWarning)
                load_plugins()
            shop.price = lambda item: item
            load_plugins()
            answer = shop.price("tea")
            """
        )
        assert answer == "tea!"

    def test_a_target_that_is_imported_later_is_hooked_then(self, run: Run) -> None:
        answer = run(
            """
            load_plugins()
            asleep = "wsgiref.util" not in sys.modules
            from wsgiref.util import guess_scheme
            answer = asleep, guess_scheme({})
            """
        )
        assert answer == [True, "HTTP"]

    def test_eager_imports_it_now(self, run: Run) -> None:
        assert run("load_plugins(eager=True); answer = 'wsgiref.util' in sys.modules") is True

    @pytest.mark.parametrize("times", [1, 2])
    def test_after_reset_loading_brings_the_hooks_back(self, run: Run, times: int) -> None:
        answer = run(
            f"""
            load_plugins()
            before = states()
            for _ in range({times}):
                hookery.registry.reset()
                gone = signature(), states()
                load_plugins()
            answer = gone, states() == before, signature()
            """
        )
        assert answer == [["", []], True, SIGNED]

    def test_after_reset_a_plugin_brings_back_what_it_imported_from_elsewhere(self, run: Run, modules: Modules) -> None:
        modules.write(plug_hooks=AFTER_MODULE, plug="import plug_hooks")
        answer = run(
            """
            load_plugins(modules=["plug"])
            before = signature(), states()
            hookery.registry.reset()
            load_plugins(modules=["plug"])
            answer = before == (signature(), states()), signature()
            """,
            path=(modules.folder,),
            HOOKERY_PLUGINS="",
        )
        assert answer == [True, "+plug"]

    def test_another_registry_loads_its_own(self, run: Run) -> None:
        answer = run(
            """
            other = hookery.HookRegistry()
            load_plugins(registry=other)
            one = signature(), len(states())
            other.reset()
            answer = one, signature()
            """
        )
        assert answer == [[SIGNED, 0], ""]


def test_loading_without_any_plugin_installed_applies_what_code_registered() -> None:
    out = run_python(
        """
        import hookery, json
        hookery.plugin_hook("json.dumps")(lambda result, *args: result + "!")
        hookery.load_plugins()
        print(json.dumps(1))
        """
    )
    assert out == "1!\n"
