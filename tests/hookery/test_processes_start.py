"""Hooks are in place in child processes, however they are started, before the first line of what they run."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.hookery.support import start_python
from tests.plugin_distributions import PLUGINS, install_plugin

METHODS = ("spawn", "forkserver", "fork")
# Forking a process that has threads (a pool has) is deprecated from CPython 3.12 on, and the subject here.
OPTIONS = ("-W", "error", "-W", "ignore::DeprecationWarning")

SHOP = """
def price(item): return item
def cost(item): return item
class Till:
    def sell(self, item): return item
"""
SHOP_HOOKS = """
from hookery import HookType, plugin_hook

@plugin_hook("shop.price", HookType.AFTER)
def loud(result, item): return result + "!"

def asking(result, item): return result + "?"

class Better:
    def sell(self, item): return "better " + item
"""
HEAD = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import hookery
from hookery import HookType, plugin_hook
import shop

def say(*values):
    print(repr(values[0] if len(values) == 1 else values), flush=True)

def states():
    return sorted((r.hook.replace("__mp_main__", "__main__"), r.state) for r in hookery.applied_hooks())
"""


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Run a program that lies in a file, with `shop` and `shop_hooks` beside it; returns what it printed, line by line,
    as Python values."""

    def run(source: str, *arguments: str, fails: bool = False, path: tuple[Path, ...] = (), **environment: str) -> Any:
        (tmp_path / "shop.py").write_text(SHOP)
        (tmp_path / "shop_hooks.py").write_text(SHOP_HOOKS)
        (tmp_path / "program.py").write_text(HEAD + textwrap.dedent(source))
        file = str(tmp_path / "program.py")
        done = start_python([*OPTIONS, file, *arguments], path=path, environment=environment)
        assert (done.returncode != 0) is fails, done.stderr + done.stdout
        if fails:
            return done.stderr
        assert done.stderr == ""
        return [ast.literal_eval(line) for line in done.stdout.splitlines()]

    return run


GUARDED = """
import shop_hooks  # registers one by its decorator
hookery.registry.register("shop.price", shop_hooks.asking, HookType.AFTER)
hookery.registry.register("shop.price", mine, HookType.AFTER, priority=-1)
hookery.registry.apply_hooks()
"""


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_start_a_child(program: Any, method: str) -> None:
    answers = program(
        """
        def mine(result, item): return result + "~"

        def work(pipe, method, generations):
            first = shop.price("tea")  # the first line
            if generations:
                theirs, ours = multiprocessing.Pipe()
                child = multiprocessing.get_context(method).Process(target=work, args=(ours, method, generations - 1))
                child.start()
                pipe.send([first, *theirs.recv()])
                child.join()
            else:
                pipe.send([first])

        def price(item): return shop.price(item)

        class Worker(multiprocessing.get_context(sys.argv[1]).Process):
            def run(self):
                sys.exit(len(shop.price("tea")))

        if __name__ == "__main__":
        """
        + textwrap.indent(GUARDED, " " * 12)
        + """
            method = sys.argv[1]
            context = multiprocessing.get_context(method)
            theirs, ours = multiprocessing.Pipe()
            child = context.Process(target=work, args=(ours, method, 2))
            child.start()
            say(theirs.recv())
            child.join()
            worker = Worker()
            worker.start()
            worker.join()
            say(worker.exitcode)
            child = context.Process(target=shop.price, args=("tea",))
            child.start()
            child.join()
            say(child.exitcode)
            with context.Pool(2) as pool:
                say(pool.map(price, ["tea", "cake"]))
            with context.Pool(1, maxtasksperchild=1) as pool:
                pool.map(shop.price, ["tea"])
                say([pool.apply(shop.price, ["tea"]) for _ in range(2)])
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                say(list(pool.map(price, ["tea"])), pool.submit(shop.price, "tea").result())
        """,
        method,
    )
    assert answers == [
        ["tea~!?"] * 3,
        len("tea~!?"),
        0,
        ["tea~!?", "cake~!?"],
        ["tea~!?"] * 2,
        (["tea~!?"], "tea~!?"),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_an_initialiser_finds_the_hooks(program: Any, method: str) -> None:
    answers = program(
        """
        import shop_hooks
        seen = []

        def begin(): seen.append(shop.price("tea"))
        def tell(): return seen

        if __name__ == "__main__":
            hookery.registry.apply_hooks()
            context = multiprocessing.get_context(sys.argv[1])
            with ProcessPoolExecutor(1, mp_context=context, initializer=begin) as pool:
                say(pool.submit(tell).result())
            with context.Pool(1, initializer=begin) as pool:
                say(pool.apply(tell))
        """,
        method,
    )
    assert answers == [["tea!"]] * 2


@pytest.mark.parametrize("method", METHODS)
def test_a_process_that_was_made_before_the_hooks_and_is_started_after_them(program: Any, method: str) -> None:
    answers = program(
        """
        def work(): sys.exit(len(shop.price("tea")))

        if __name__ == "__main__":
            child = multiprocessing.get_context(sys.argv[1]).Process(target=work)
            import shop_hooks
            hookery.registry.apply_hooks()
            child.start()
            child.join()
            say(child.exitcode)
        """,
        method,
    )
    assert answers == [len("tea!")]


def test_a_fork_server_that_was_started_before_the_hooks(program: Any) -> None:
    answers = program(
        """
        def price(item): return shop.price(item)

        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["shop"])
            with context.Pool(1) as pool:
                say(pool.apply(price, ["tea"]))
            import shop_hooks
            hookery.registry.apply_hooks()
            with context.Pool(1) as pool:
                say(pool.apply(price, ["tea"]))
        """
    )
    assert answers == ["tea", "tea!"]


def test_hooks_reach_what_the_main_module_imported_by_name_before_them(program: Any) -> None:
    answers = program(
        """
        from shop import price

        def ask(): return price("tea")

        if __name__ == "__main__":
            import shop_hooks
            hookery.registry.apply_hooks()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(pool.apply(ask), pool.apply(price, ["tea"]))
        """
    )
    assert answers == [("tea!", "tea!")]


def test_hooks_on_the_main_module_itself(program: Any) -> None:
    answers = program(
        """
        def label(item): return "label " + item
        def ask(): return label("tea"), Shelf.full("tea")
        def mine(result, *args): return result + "~"

        class Shelf:
            @staticmethod
            def full(item): return "full " + label(item)

        if __name__ == "__main__":
            hookery.registry.register("__main__.label", mine, HookType.AFTER)
            hookery.registry.apply_hooks()
            here = ask()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(here, pool.apply(ask), pool.apply(label, ["tea"]))
        """
    )
    labelled = ("label tea~", "full label tea~")
    assert answers == [(labelled, labelled, "label tea~")]


def test_a_main_module_that_hooks_when_it_is_imported_hooks_once(program: Any) -> None:
    answers = program(
        """
        @plugin_hook("shop.price", HookType.AFTER)
        def mine(result, item): return result + "~"

        hookery.load_plugins(modules=["shop_hooks"])

        def ask(): return shop.price("tea"), states()

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(ask() == pool.apply(ask), ask())
        """
    )
    assert answers == [(True, ("tea~!", [("__main__:mine", "applied"), ("shop_hooks:loud", "applied")]))]


def test_load_plugins_in_the_child_loads_nothing_twice(program: Any, tmp_path: Path) -> None:
    (tmp_path / "counting_hooks.py").write_text(
        SHOP_HOOKS + '\nprint(repr("loaded"), flush=True)\ncalls = 0\ndef begin():\n    global calls\n    calls += 1\n'
    )
    answers = program(
        """
        def ask():
            hookery.load_plugins(modules=["counting_hooks"])
            return shop.price("tea"), states()

        if __name__ == "__main__":
            hookery.load_plugins(modules=["counting_hooks"])
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(pool.apply(ask))
        """
    )
    assert answers == ["loaded", "loaded", ("tea!", [("counting_hooks:loud", "applied")])]


def test_installed_plugins_are_loaded_in_the_child_without_looking_for_them(program: Any, tmp_path: Path) -> None:
    install_plugin(PLUGINS / "stdlib_plugin", tmp_path / "installed")
    answers = program(
        """
        def ask():
            import json
            looked = "importlib.metadata" in sys.modules
            hookery.load_plugins()
            sources = sorted({(r.source, r.distribution, r.state) for r in hookery.applied_hooks()})
            return json.dumps(1), looked, sources

        if __name__ == "__main__":
            hookery.load_plugins()
            here = ask()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                there = pool.apply(ask)
            say(here[0] == there[0] != "1", there[1], here[2] == there[2] != [])
        """,
        path=(tmp_path / "installed",),
    )
    assert answers == [(True, False, True)]


def test_what_was_taken_back_does_not_come_back_in_the_child(program: Any) -> None:
    answers = program(
        """
        import shop_hooks

        def ask(): return shop.price("tea"), shop.cost("tea"), states()

        if __name__ == "__main__":
            hookery.registry.register("shop.cost", shop_hooks.asking, HookType.AFTER)
            hookery.registry.apply_hooks()
            hookery.registry.revert("shop.price")
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(pool.apply(ask))
            hookery.registry.revert()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(pool.apply(ask)[:2])
        """
    )
    hooks = [("shop_hooks:asking", "applied"), ("shop_hooks:loud", "reverted")]
    assert answers == [("tea", "tea?", hooks), ("tea", "tea")]


def test_order_priority_and_options_are_those_of_the_parent(program: Any) -> None:
    answers = program(
        """
        def first(result, item): return result + "1"
        def second(result, item): return result + "2"
        def third(result, item): return result + "3"

        def records():
            return [
                (r.hook.partition(":")[2], r.priority, r.engine, r.on_error, r.reason, r.calls, r.source)
                for r in hookery.applied_hooks()
            ]

        def ask():
            shop.Till().sell("tea")
            return shop.price("tea"), shop.Till().sell("tea"), shop.cost("tea"), records()

        if __name__ == "__main__":
            import shop_hooks
            register = hookery.registry.register
            register("shop.price", third, HookType.AFTER, reason="last", on_error="warn")
            register("shop.price", second, HookType.AFTER, count=True)
            register("shop.price", first, HookType.AFTER, priority=5)
            register("shop.Till", shop_hooks.Better, HookType.REPLACE)
            register("shop.cost", first, HookType.AFTER, engine="wrapt")
            hookery.registry.apply_hooks(reach="deep")
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                there = pool.apply(ask)
                say(ask() == there, there[:3])
        """
    )
    assert answers == [(True, ("tea!321", "better tea", "tea1"))]


def test_a_child_elsewhere_has_the_hooks(program: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    answers = program(
        """
        def work(): sys.exit(len(shop.price("tea")))

        if __name__ == "__main__":
            import shop_hooks
            hookery.registry.apply_hooks()
            os.chdir("/")
            sys.path.insert(0, sys.argv[1])
            child = multiprocessing.get_context("spawn").Process(target=work)
            child.start()
            child.join()
            say(child.exitcode)
        """,
        str(tmp_path / "elsewhere"),
    )
    assert answers == [len("tea!")]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_plugin_that_starts_children_while_it_is_imported(program: Any, tmp_path: Path, method: str) -> None:
    """But not in a child, which multiprocessing would refuse while the child is being prepared."""
    (tmp_path / "busy_hooks.py").write_text(
        SHOP_HOOKS + "\nimport multiprocessing\nif multiprocessing.parent_process() is None:\n"
        f"    child = multiprocessing.get_context({method!r}).Process(target=print, args=('0',))\n"
        "    child.start()\n    child.join()\n    print(child.exitcode, flush=True)\n"
    )
    answers = program(
        f"""
        def ask(): return shop.price("tea"), multiprocessing.parent_process().name

        if __name__ == "__main__":
            hookery.load_plugins(modules=["busy_hooks"])
            with multiprocessing.get_context({method!r}).Pool(1) as pool:
                say(shop.price("tea"), pool.apply(ask))
        """
    )
    assert answers == [0, 0, ("tea!", ("tea!", "MainProcess"))]


def test_two_hundred_children_at_once(program: Any, tmp_path: Path) -> None:
    answers = program(
        """
        import shop_hooks

        def work(pipe, gate):
            pipe.send((os.getpid(), shop.price("tea")))
            gate.wait()

        if __name__ == "__main__":
            hookery.registry.apply_hooks()
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["hookery.manifest", "hookery.publication"])  # else each compiles them
            gate = context.Event()
            pipes = [context.Pipe(duplex=False) for _ in range(200)]
            children = [context.Process(target=work, args=(ours, gate)) for _, ours in pipes]
            for child in children: child.start()
            said = [theirs.recv() for theirs, _ in pipes]  # now all have started, and none may end
            say(len({pid for pid, _ in said}), {price for _, price in said})
            from hookery import state_files
            processes, unreadable = state_files.read_processes()
            published = {process.pid: [(r.state, r.ran) for r in process.records] for process in processes}
            say({str(published.get(pid)) for pid, _ in said}, unreadable)
            say([record.absent_in for record in hookery.applied_hooks()])
            gate.set()
            for child in children: child.join()
            say({child.exitcode for child in children})
            processes, unreadable = state_files.read_processes(ended=True)
            say({r.ran for p in processes if p.ended_at is not None for r in p.records}, unreadable)
            say([process.pid == os.getpid() for process in processes if process.ended_at is None])
        """,
        HOOKERY_STATE_DIR=str(tmp_path / "state"),
    )
    assert answers == [
        (200, {"tea!"}),
        ({"[('applied', False)]"}, []),  # whether it ran is said when a process ends
        [()],
        {0},
        ({True}, []),
        [True],
    ]


def test_hooks_of_another_registry_travel_too(program: Any) -> None:
    answers = program(
        """
        import shop_hooks
        def ask(): return shop.cost("tea")

        if __name__ == "__main__":
            own = hookery.HookRegistry()
            own.register("shop.cost", shop_hooks.asking, HookType.AFTER)
            own.apply_hooks()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(pool.apply(ask))
        """
    )
    assert answers == ["tea?"]


def test_processes_of_torch(program: Any) -> None:
    pytest.importorskip("torch")
    answers = program(
        """
        import shop_hooks

        def work(rank, queue): queue.put((rank, shop.price("tea")))

        if __name__ == "__main__":
            import torch.multiprocessing as processes
            hookery.registry.apply_hooks()
            queue = processes.get_context("spawn").SimpleQueue()
            processes.spawn(work, args=(queue,), nprocs=1)
            say(queue.get())
        """
    )
    assert answers == [(0, "tea!")]
