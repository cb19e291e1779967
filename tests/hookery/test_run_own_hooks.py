"""`hookery run --hook prog prog.py`: a program that is asked for as a module of hooks too has each of them once."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.hookery.support import run_hookery

PROGRAM = """
    import multiprocessing, os, subprocess, sys
    import hookery, shop

    asked = []

    @hookery.plugin_hook("shop.price", hookery.HookType.AFTER)
    def loud(result, item):
        asked.append(item)
        return result + "!"

    def ask(item): return shop.price(item)

    {anywhere}
    if __name__ == "__main__":
        {as_program}
"""
ASK = "import shop; print(shop.price('{}'), flush=True)"


def write(folder: Path, **sources: str) -> None:
    for name, source in {"shop": "def price(item): return item", **sources}.items():
        path = folder / f"{name.replace('___', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))


def program(as_program: str, *, anywhere: str = "") -> str:
    body = textwrap.indent(textwrap.dedent(as_program), "        ").strip()
    return PROGRAM.format(anywhere=anywhere, as_program=body)


@pytest.mark.parametrize("start", [["prog.py"], ["-m", "prog"]], ids=" ".join)
@pytest.mark.parametrize("anywhere", ["", "hookery.load_plugins()"])
def test_with_and_without_a_call_of_its_own(tmp_path: Path, start: list[str], anywhere: str) -> None:
    write(tmp_path, prog=program("print(ask('tea'), asked, 'prog' in sys.modules)", anywhere=anywhere))
    done = run_hookery("run", "--hook", "prog", *start, folder=tmp_path)
    assert (done.stdout, done.stderr) == ("tea! ['tea'] False\n", "")


@pytest.mark.parametrize(
    ("method", "anywhere"),
    [("spawn", ""), ("spawn", "hookery.load_plugins()"), ("forkserver", "hookery.load_plugins()"), ("fork", "")],
)
def test_in_its_children(tmp_path: Path, method: str, anywhere: str) -> None:
    body = f"""
        with multiprocessing.get_context({method!r}).Pool(1) as pool:
            print(pool.apply(ask, ["child"]))
    """
    write(tmp_path, prog=program(body, anywhere=anywhere))
    done = run_hookery("run", "--hook", "prog", "prog.py", folder=tmp_path)
    assert (done.stdout, done.stderr) == ("child!\n", "")


def test_in_other_programs_that_it_starts(tmp_path: Path) -> None:
    """They import it, as any module of hooks, and so do their children."""
    other = """
        import multiprocessing, shop
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(shop.price("other"), pool.apply(shop.price, ["its child"]))
    """
    write(tmp_path, prog=program("subprocess.run([sys.executable, 'other.py'])"), other=other)
    done = run_hookery("run", "--hook", "prog", "prog.py", folder=tmp_path)
    assert (done.stdout, done.stderr) == ("other! its child!\n", "")


@pytest.mark.parametrize(
    ("hook", "start", "printed"),
    [
        ("pkg.__main__", ["-m", "pkg"], "tea!\n"),
        ("pkg.__main__", ["pkg"], "tea!\n"),
        ("pkg.tool", ["-m", "pkg.tool"], "tea!\n"),
        ("pkg.tool", ["pkg/tool.py"], "tea!\n"),
        ("pkg", ["-m", "pkg"], "tea?\n"),  # the program is pkg.__main__, and that registers no more than it applies
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_program_in_a_package(tmp_path: Path, hook: str, start: list[str], printed: str) -> None:
    tool = program("print(ask('tea'))")
    init = "from hookery import plugin_hook\n@plugin_hook('shop.price')\ndef ask(result, item): return result + '?'"
    init = init if hook == "pkg" else ""
    write(tmp_path, pkg_____init__=init, pkg_____main__=tool if not init else ASK.format("tea"), pkg___tool=tool)
    done = run_hookery("run", "--hook", hook, *start, folder=tmp_path, path=[tmp_path])
    assert (done.stdout, done.stderr) == (printed, "")


def test_its_hooks_on_itself(tmp_path: Path) -> None:
    own = "hookery.plugin_hook('prog.ask', hookery.HookType.AFTER)(lambda result, item: result + '?')"
    write(tmp_path, prog=program("print(ask('tea'))", anywhere=own))
    done = run_hookery("run", "--hook", "prog", "prog.py", folder=tmp_path)
    assert (done.stdout, done.stderr) == ("tea!?\n", "")


def test_where_it_is_not_seen_when_they_can_be_applied_it_is_said(tmp_path: Path) -> None:
    write(tmp_path, prog=program("pass", anywhere="print(ask('tea'))").partition('    if __name__ == "__main__"')[0])
    done = run_hookery("run", "--hook", "prog", "prog.py", folder=tmp_path)
    assert done.stdout == "tea\n"
    assert done.stderr.count("prog is run as the program, and the hooks in it are applied only where it calls") == 1
    assert "move the hooks to a module of their own" in done.stderr


def test_where_its_children_have_nothing_from_it_that_is_said(tmp_path: Path) -> None:
    body = """
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(ask("tea"), pool.apply(ask, ["child"]))
    """
    write(tmp_path, prog=program(body))
    done = run_hookery("run", "--hook=prog", "prog.py", folder=tmp_path, environment={"HOOKERY_PROPAGATE": "0"})
    assert done.stdout == "tea! child\n"
    assert "prog is the program, and its hooks do not follow it here (HOOKERY_PROPAGATE is 0)" in done.stderr
