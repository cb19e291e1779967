"""What does not reach a child process is said: where the process is started, in the child, and in the listing."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.hookery.support import run_python, start_python
from tests.hookery.test_processes_start import HEAD, SHOP, SHOP_HOOKS
from tests.plugin_distributions import PLUGINS, install_plugin

ABSENT = """
def absent():
    return {r.hook: r.absent_in for r in hookery.applied_hooks() if r.absent_in}

def local():
    return {r.hook: r.local for r in hookery.applied_hooks() if r.local}
"""


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Run a program that lies in a file; returns the values that it said, and what went to standard error."""

    def run(source: str, *arguments: str, fails: bool = False, path: tuple[Path, ...] = (), **environment: str) -> Any:
        (tmp_path / "shop.py").write_text(SHOP)
        (tmp_path / "shop_hooks.py").write_text(SHOP_HOOKS)
        (tmp_path / "program.py").write_text(HEAD + ABSENT + textwrap.dedent(source))
        options = ["-W", "ignore::DeprecationWarning", str(tmp_path / "program.py")]
        done = start_python([*options, *arguments], path=path, environment=environment)
        assert (done.returncode != 0) is fails, done.stderr + done.stdout
        return [ast.literal_eval(line) for line in done.stdout.splitlines()], done.stderr

    return run


LOCAL = """
hookery.registry.register("shop.price", lambda result, item: result + "~", HookType.AFTER)
hookery.registry.apply_hooks()
"""
START_TWO = """
def ask(): return shop.price("tea")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    import shop_hooks
    def nested(result, item): return result + "^"
    make_hooks()
    hookery.registry.apply_hooks()
    for _ in range(2):
        with context.Pool(1) as pool:
            say(pool.apply(ask))
    say(local())
"""
MAKE_HOOKS = """
def make_hooks():
    def nested(result, item): return result + "~"
    hookery.registry.register("shop.price", nested, HookType.AFTER)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_hook_that_stays_behind_is_named_once_with_the_remedy(program: Any, method: str) -> None:
    answers, said = program(MAKE_HOOKS + START_TWO, method)
    assert answers == ["tea!", "tea!", {"__main__:make_hooks.<locals>.nested": "it is defined inside a function"}]
    assert said.count("HookWarning") == 1
    assert "program.py" in said.splitlines()[0], "the warning names the line that starts the process"
    assert "AFTER __main__:make_hooks.<locals>.nested on shop.price" in said
    assert "top level of a module" in said


def test_a_forked_child_has_the_hooks_that_cannot_be_named(program: Any) -> None:
    answers, said = program(MAKE_HOOKS + START_TWO, "fork")
    assert answers[:2] == ["tea!~", "tea!~"]
    assert said == ""


@pytest.mark.parametrize("start", ["context.Process(target=ask).start()", "context.Pool(1)", "pool.submit(ask)"])
def test_strict_refuses_to_start_a_process_without_a_hook(program: Any, start: str) -> None:
    answers, said = program(
        f"""
        def ask(): return shop.price("tea")

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, mp_context=context)
            hookery.registry.register("shop.price", lambda result, item: result, HookType.AFTER)
            hookery.registry.apply_hooks()
            try:
                {start}
            except hookery.HookError as error:
                say(str(error))
        """,
        HOOKERY_STRICT="1",
    )
    assert len(answers) == 1
    assert "AFTER __main__:<lambda> on shop.price: a lambda" in answers[0]
    assert said == ""


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        ("lambda result, item: result", "a lambda has no name to be found by"),
        ("functools.partial(named)", "an object of the type functools.partial has no name to be found by"),
        ("Callee().method", "a bound method belongs to an object of this process"),
        ("Callee()", "an object of the type __main__.Callee has no name to be found by"),
        ("renamed", "its name, __main__:named, leads to something else"),
        ("gone", "its name, __main__:gone, leads to nothing"),
    ],
)
def test_what_cannot_be_named(program: Any, hook: str, why: str) -> None:
    answers, _ = program(
        f"""
        import functools
        class Callee:
            def method(self, result, item): return result
            def __call__(self, result, item): return result
            @classmethod
            def of_class(cls, result, item): return result
        def named(result, item): return result
        renamed = named
        def named(result, item): return result
        def gone(result, item): return result
        hook = {hook}
        del gone
        if __name__ == "__main__":
            hookery.registry.register("shop.price", hook, HookType.AFTER)
            hookery.registry.register("shop.price", Callee.of_class, HookType.AFTER)
            hookery.registry.apply_hooks()
            say(list(local().values()))
        """
    )
    assert answers == [[why]]


def test_hooks_of_a_main_module_that_is_no_file_are_local() -> None:
    out = run_python(
        """
        import hookery
        from hookery import HookType
        def mine(result, *args, **kwargs): return result
        hookery.registry.register("json.dumps", mine, HookType.AFTER)
        print(hookery.applied_hooks()[0].local)
        """
    )
    assert out == "it is defined in a main module that is no file (python -c, or an interactive session)\n"


def test_hooks_of_a_package_that_runs_as_a_program_are_local(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "__main__.py").write_text(
        "import hookery\ndef mine(result, *args, **kwargs): return result\n"
        "hookery.registry.register('json.dumps', mine, hookery.HookType.AFTER)\n"
        "print(hookery.applied_hooks()[0].local)\n"
    )
    done = start_python(["-m", "pack"], path=[tmp_path])
    assert "pack.__main__, which runs as a program" in done.stdout


def test_hooks_of_a_module_that_runs_as_a_program_travel(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "prog.py").write_text(
        HEAD + "def mine(result, item): return result + '~'\n"
        "def ask(): return shop.price('tea')\n"
        "if __name__ == '__main__':\n"
        "    hookery.registry.register('shop.price', mine, HookType.AFTER)\n"
        "    hookery.registry.apply_hooks()\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool: say(pool.apply(ask))\n"
    )
    done = start_python(["-W", "error", "-m", "prog"], path=[tmp_path])
    assert done.stdout == "'tea~'\n", done.stderr


def test_a_hook_that_is_defined_under_the_guard_is_missing_in_the_child_and_said_to_be(program: Any) -> None:
    answers, said = program(
        """
        def ask(): return shop.price("tea")

        if __name__ == "__main__":
            def mine(result, item): return result + "~"
            hookery.registry.register("shop.price", mine, HookType.AFTER)
            hookery.registry.apply_hooks()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(pool.apply(ask))
                ((hook, (child,)),) = absent().items()
                say((hook, child))
                problems = [(p.kind, p.detail) for p in hookery.registry.problems()]
                say(problems == [("absent", child)])
        """
    )
    assert answers[0] == "tea"
    assert answers[1][0] == "__main__:mine"
    assert "SpawnPoolWorker-1" in answers[1][1]
    assert "under `if __name__ == '__main__':` exists in the main process alone" in answers[1][1]
    assert answers[2] is True
    assert "AFTER __main__:mine on shop.price is not in place here" in said


NO_PLUGIN = """
def ask(): return shop.price("tea")

if __name__ == "__main__":
    hookery.load_plugins()
    hookery.registry.register("json.dumps", mine, HookType.AFTER)
    hookery.registry.apply_hooks()
    sys.path[:] = [entry for entry in sys.path if not entry.endswith("installed")]
    child = multiprocessing.get_context("spawn").Process(target=ask)
    child.start()
    child.join()
    say(child.exitcode)
    say(absent())
    print(hookery.format_table({"main": hookery.applied_hooks()}), file=sys.stderr)
"""


def test_a_plugin_that_is_not_there_in_the_child(program: Any, tmp_path: Path) -> None:
    install_plugin(PLUGINS / "stdlib_plugin", tmp_path / "installed")
    answers, said = program(
        "def mine(result, *args, **kwargs): return result\n" + NO_PLUGIN, path=(tmp_path / "installed",)
    )
    assert answers[0] == 0
    assert answers[1], "the listing of the parent names the child, after its end too"
    assert "__main__:mine" not in answers[1], "the other hooks are in place"
    for children in answers[1].values():
        assert len(children) == 1
        assert "failed to load: ModuleNotFoundError" in children[0]
    assert said.count("HookWarning") == len(answers[1])
    assert "main: " in said
    assert " is not in process " in said


def test_strict_lets_no_child_run_without_a_plugin(program: Any, tmp_path: Path) -> None:
    install_plugin(PLUGINS / "stdlib_plugin", tmp_path / "installed")
    answers, said = program(
        "def mine(result, *args, **kwargs): return result\n" + NO_PLUGIN,
        path=(tmp_path / "installed",),
        HOOKERY_STRICT="1",
    )
    assert answers[0] == 1
    assert "HookApplyError" in said


def test_a_worker_that_is_older_than_a_hook(program: Any) -> None:
    for method in ("spawn", "forkserver", "fork"):
        answers, said = program(
            """
            import shop_hooks
            def ask(): return shop.price("tea"), os.getpid()

            if __name__ == "__main__":
                context = multiprocessing.get_context(sys.argv[1])
                with context.Pool(1) as before_all, ProcessPoolExecutor(1, mp_context=context) as executor:
                    pids = before_all.apply(ask)[1], executor.submit(ask).result()[1]
                    hookery.registry.apply_hooks()
                    with context.Pool(1) as between:
                        hooked, pid = between.apply(ask)
                        hookery.registry.register("shop.price", shop_hooks.asking, HookType.AFTER)
                        hookery.registry.apply_hooks()
                        say(hooked, between.apply(ask)[0])
                        numbers = {hook: [int(a.split()[1]) for a in lacking] for hook, lacking in absent().items()}
                        say(numbers == {"shop_hooks:loud": sorted(pids), "shop_hooks:asking": sorted([*pids, pid])})
                        say(absent()["shop_hooks:loud"])
                say(absent())
            """,
            method,
        )
        assert answers[:2] == [("tea!", "tea!"), True]
        assert all("Worker" in child or "Process" in child for child in answers[2])
        assert all("it was started before the hook came" in child for child in answers[2])
        assert answers[3] == {}, "those that have ended lack nothing"
        assert said == ""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_child_that_has_ended_is_left_to_whoever_waits_for_it(program: Any, method: str) -> None:
    answers, _ = program(
        """
        if __name__ == "__main__":
            from multiprocessing import connection
            child = multiprocessing.get_context(sys.argv[1]).Process(target=len, args=([],))
            child.start()
            connection.wait([child.sentinel])
            if sys.argv[1] != "forkserver":  # its children are the server's
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            import shop_hooks
            hookery.registry.apply_hooks()
            # A thread that collects it here takes its exit status from the thread that is joining it.
            say(absent(), child._popen.returncode)
            child.join()
            say(child.exitcode)
        """,
        method,
    )
    assert answers == [({}, None), 0]


def test_a_target_that_is_missed_in_a_child_or_grandchild_later(program: Any, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("import os\nif os.environ.get('WHOLE'):\n    def price(item): return item\n")
    answers, said = program(
        """
        def mine(result, item): return result + "~"

        def work(generations):
            if generations:
                child = multiprocessing.get_context("spawn").Process(target=work, args=(generations - 1,))
                child.start()
                child.join()
            else:
                import late

        if __name__ == "__main__":
            hookery.registry.register("late.price", mine, HookType.AFTER)
            hookery.registry.apply_hooks()
            for method, generations in (("spawn", 0), ("spawn", 1), ("fork", 0)):
                child = multiprocessing.get_context(method).Process(target=work, args=(generations,), name="named")
                child.start()
                child.join()
                say(child.exitcode, [a.partition(" ")[2] for a in absent().get("__main__:mine", ())][-1])
            os.environ["WHOLE"] = "1"
            import late
            say(late.price("tea"))
        """
    )
    assert [code for code, _ in answers[:3]] == [0, 0, 0]
    assert all("'late' has no 'price'" in child for _, child in answers[:3])
    assert answers[3] == "tea~"
    assert said.count("MissedHookWarning") == 3


def test_a_child_that_is_killed_leaves_nothing_and_says_nothing_wrong(program: Any, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    answers, _ = program(
        """
        import signal, tempfile
        import shop_hooks
        def work(): os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            hookery.registry.apply_hooks()
            child = multiprocessing.get_context("spawn").Process(target=work)
            child.start()
            child.join()
            say(child.exitcode, absent(), os.listdir(os.environ["TMPDIR"]))
        """,
        TMPDIR=str(tmp_path / "temporary"),
    )
    assert answers == [(-9, {}, [])]


def test_a_program_that_closes_what_it_has_open_does_not_get_reports_in_its_files(program: Any, tmp_path: Path) -> None:
    answers, said = program(
        """
        def ask(): return shop.price("tea")

        if __name__ == "__main__":
            def mine(result, item): return result + "~"
            hookery.registry.register("shop.price", mine, HookType.AFTER)
            hookery.registry.apply_hooks()
            os.closerange(3, 64)
            files = [open(os.path.join(sys.argv[1], str(number)), "w+") for number in range(8)]
            child = multiprocessing.get_context("spawn").Process(target=ask)
            child.start()
            child.join()
            say([file.read() for file in files], list(absent()))
        """,
        str(tmp_path),
    )
    assert answers == [([""] * 8, ["__main__:mine"])]
    assert "not in place here" in said


def test_propagation_can_be_turned_off(program: Any) -> None:
    answers, said = program(
        """
        import shop_hooks
        def ask(): return shop.price("tea")

        if __name__ == "__main__":
            hookery.registry.register("shop.price", lambda result, item: result, HookType.AFTER)
            hookery.registry.apply_hooks()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(ask(), pool.apply(ask), "hookery" in multiprocessing.current_process()._config)
        """,
        HOOKERY_PROPAGATE="0",
    )
    assert answers == [("tea!", "tea", False)]
    assert said == ""


def test_multiprocessing_is_not_imported_for_it() -> None:
    out = run_python(
        """
        import sys, hookery
        from hookery import HookType
        hookery.registry.register("json.dumps", lambda result, *a, **k: result, HookType.AFTER)
        print("hookery.processes" in sys.modules)
        hookery.registry.apply_hooks()
        hookery.applied_hooks()
        print([name for name in sys.modules if name.partition(".")[0] in ("multiprocessing", "pickle", "socket")])
        import multiprocessing
        print("hookery" in multiprocessing.current_process()._config)
        """
    )
    assert out == "False\n[]\nTrue\n"


def test_a_python_that_hands_nothing_down_is_named_once() -> None:
    out = run_python(
        """
        import multiprocessing.process, warnings, sys, hookery
        from hookery import HookType
        class Current:
            _config = None
            name = "Main"
        multiprocessing.process.current_process = Current
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for target in ("json.dumps", "json.loads"):
                hookery.registry.register(target, lambda result, *a, **k: result, HookType.AFTER)
                hookery.registry.apply_hooks()
        print(len(caught), f"CPython {'.'.join(map(str, sys.version_info[:3]))}" in str(caught[0].message))
        """
    )
    assert out == "1 True\n"


def test_what_is_handed_down_is_plain_data(program: Any) -> None:
    answers, _ = program(
        """
        import io, pickletools
        import shop_hooks
        from multiprocessing import context, popen_spawn_posix, reduction

        class Popen:
            def duplicate_for_child(self, descriptor): return descriptor
            DupFd = popen_spawn_posix._DupFd

        if __name__ == "__main__":
            hookery.registry.apply_hooks()
            written = io.BytesIO()
            context.set_spawning_popen(Popen())
            reduction.dump(multiprocessing.current_process()._config["hookery"], written)
            names, strings = [], []
            for operation, argument, _ in pickletools.genops(written.getvalue()):
                if isinstance(argument, str): strings.append(argument)
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    names.append(argument or ".".join(strings[-2:]))
                if operation.name in ("BUILD", "INST", "OBJ", "EXT1"): names.append(operation.name)
            say(names)
        """
    )
    classes = [name for name in answers[0] if name.startswith("hookery")]
    assert classes == ["hookery.processes.Inheritance"]
    assert all(name.startswith(("hookery.processes.", "multiprocessing.")) for name in answers[0] if name != "BUILD")
