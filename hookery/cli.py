"""The command ``hookery``: run programs with hooks, and see which hooks there are and whether they run.

Exit statuses: 0; 1 where the answer is no (a target would be missed, or cannot be imported, a process has no hooks); 2
for what cannot be answered or run, such as a plugin that is not installed.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from json.encoder import JSONEncoder
from typing import TYPE_CHECKING, Any, TextIO

from hookery import running
from hookery.hooks import HookError, HookState, HookWarning, MissedHookWarning
from hookery.naming import MAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hookery.state_files import PublishedProcess

_RUN_USAGE = "hookery run [--plugin NAME] [--hook MODULE] [--strict] [--] PROGRAM [ARGUMENT ...]"
# What a check fails for. Holders that are not reached and overrides are shown: whether they matter is for a person.
_FAILING = ("missed", "pending", "undone", "displaced")
_WHY_MAIN_WAITS = "it stands on the main module of the program that is run; `hookery run` puts it in place"
_encode = JSONEncoder(indent=2).encode  # json.dumps may be hooked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: by default those of this process, which then is the command's: what is printed to standard output
            after the answer, when the process ends for instance, goes to standard error.
    """
    if sys.stdout is None:  # closed: the exit status is an answer too
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:  # else what is printed there would be printed to standard output
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a process may be called by what cannot be encoded
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = _end_of_own_options(given) if given[:1] == ["run"] else len(given)
    options = _parser().parse_args(given[:end])
    try:
        if options.command == "run":
            running.run(given[end + (given[end : end + 1] == ["--"]) :], _settings(options))
        from hookery import publication

        publication.turn_off()
        status: int = options.answer(options)
        sys.stdout.flush()
    except HookError as error:
        print(f"hookery: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has seen enough; Python flushes once more when it ends
        _write_no_more()
        return 1
    except OSError as error:
        _write_no_more()
        print(f"hookery: the answer cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        if arguments is None:
            sys.stdout = sys.stderr
    return status


def _write_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hookery", description="Run programs with hooks, and see what the hooks do.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        usage=_RUN_USAGE,
        help="run a program, and all the Python that it starts, with hooks",
        description="PROGRAM is a script, -m and a module, -c and code, or the name of an installed program. It keeps"
        " its exit status; hooks that were asked for and fail end it with the exit status 2.",
    )
    _add_selection(run)
    run.add_argument("--strict", action="store_true", help="end the process if a target does not exist")

    shown = commands.add_parser("list", help="the hooks that there would be here, or that a process has")
    _add_selection(shown)
    shown.add_argument("--process", type=int, metavar="PID", help="the hooks of this process, as it has published them")
    shown.add_argument("--eager", action="store_true", help="import the modules of the targets")
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.set_defaults(answer=_list)

    ps = commands.add_parser("ps", help="the processes of this user that have hooks")
    ps.add_argument("--ended", action="store_true", help="the last few hundred that have ended too")
    ps.add_argument("--json", action="store_true", help="print JSON, with every hook")
    ps.set_defaults(answer=_ps)

    explain = commands.add_parser("explain", help="what stands at a target and why, and in which order hooks run")
    explain.add_argument("target", metavar="TARGET")
    _add_selection(explain)
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.set_defaults(answer=_explain)

    check = commands.add_parser("check", help="import every target; exit status 1 if a hook would not be applied")
    _add_selection(check)
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(answer=_check)
    return parser


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        metavar="NAME",
        help="an installed plugin by the name of its entry point; may be repeated (default: HOOKERY_PLUGINS, else all)",
    )
    parser.add_argument(
        "--hook", action="append", metavar="MODULE", default=[], help="a module with hooks; may be repeated"
    )


def _end_of_own_options(given: list[str]) -> int:
    """Where the options of `hookery run` end: what follows is the program's."""
    end = 1
    while end < len(given):
        if given[end] in ("--plugin", "--hook"):
            end += 2
        elif given[end] in ("--strict", "--help", "-h") or given[end].startswith(("--plugin=", "--hook=")):
            end += 1
        else:
            break
    return min(end, len(given))


def _settings(options: argparse.Namespace) -> running.RunSettings:
    """What was asked for, after checking that it is there.

    Raises:
        HookError: it is not.
    """
    from hookery.plugins import chosen_names

    chosen_names(options.plugin, asked_by="--plugin")
    plugins = None if options.plugin is None else tuple(options.plugin)
    return running.RunSettings(plugins, tuple(options.hook), running.folders_of(options.hook), options.strict)


def _load(options: argparse.Namespace, *, eager: bool = False) -> None:
    """Apply the plugins and hooks in this process.

    Raises:
        HookError: they fail.
    """
    from hookery import load_plugins

    running.append_folders(options.hook, running.folders_of(options.hook))
    load_plugins(modules=options.hook, names=options.plugin, eager=eager)


@contextmanager
def _code_of_others() -> Iterator[None]:
    """Around everything that imports plugins and targets. What they print goes to standard error: on standard output
    is the answer alone. ``__main__`` is hookery's own here, so targets there are left to the program that is run. In
    the end every hook is taken back, because hooks may well be on what this process prints with."""
    from hookery import targets

    before = targets.main_is_to_come, targets.why_main_waits
    targets.main_is_to_come, targets.why_main_waits = True, _WHY_MAIN_WAITS
    with _warnings_on_one_line(), redirect_stdout(_second_standard_error()):
        try:
            yield
        finally:
            _take_back()
            targets.main_is_to_come, targets.why_main_waits = before


def _second_standard_error() -> TextIO:
    """Another stream to where standard error leads, because a module may take apart what it finds as ``sys.stdout``."""
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, AttributeError):  # it is no file
        return sys.stderr
    unbuffered = open(descriptor, "wb", buffering=0, closefd=False)  # noqa: SIM115  (a module may keep it)
    return io.TextIOWrapper(unbuffered, encoding=sys.stderr.encoding, errors="backslashreplace", write_through=True)


@contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Print warnings of hookery as a command does, but not those that the answer says anyway."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HookWarning)
        try:
            yield
        finally:
            for warning in caught:
                if issubclass(warning.category, MissedHookWarning):
                    continue
                if issubclass(warning.category, HookWarning):
                    print(f"hookery: {warning.message}", file=sys.stderr)
                else:
                    shown = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
                    print(shown, end="", file=sys.stderr)


def _take_back() -> None:
    from hookery import registry

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HookWarning)
        registry.reset()


def _list(options: argparse.Namespace) -> int:
    from hookery import applied_hooks
    from hookery.listing import COLUMNS, table_of
    from hookery.tables import print_table

    if options.process is not None:
        process = _process(options.process)
        if process is None:
            print(f"hookery: {_why_nothing(options.process)}", file=sys.stderr)
            return 1
        if options.json:
            print(_encode(process.to_dict()))
        else:
            rows, notes = table_of({process.role: process.records})
            as_of = f"whether hooks ran is as of {_clock(process.asked_at)}"
            print_table(COLUMNS, rows, [*notes, as_of])
        return 0
    with _code_of_others():
        _load(options, eager=options.eager)
        records = applied_hooks(unreached=True)
    if options.json:
        print(_encode([record.to_dict() for record in records]))
    elif records:
        rows, notes = table_of({"here": records})
        print_table(COLUMNS, rows, notes)
    else:
        print("no hooks: no plugin is installed, and no module was named with --hook")
    return 0


def _processes(*, ended: bool = False) -> list[PublishedProcess]:
    """Those that live, after asking those that can be asked.

    Raises:
        HookError: what they say cannot be read.
    """
    from hookery import asking, state_files
    from hookery.tables import on_one_line

    try:
        processes, _ = state_files.read_processes()
        for pid in sorted(asking.ask(processes)):
            print(f"hookery: process {pid} has not answered yet; what it said last is shown", file=sys.stderr)
        processes, unreadable = state_files.read_processes(ended=ended)
    except OSError as error:
        raise HookError(f"{state_files.folder()} cannot be read: {error.strerror}") from error
    for what in unreadable:
        print(f"hookery: cannot be read: {on_one_line(what)}", file=sys.stderr)
    return processes


def _process(pid: int) -> PublishedProcess | None:
    return next((process for process in _processes() if process.pid == pid), None)


def _why_nothing(pid: int) -> str:
    from hookery import state_files

    if state_files.identity_of(pid) is None:
        return f"there is no process {pid}"
    return (
        f"process {pid} has no hooks that can be seen here: none were applied in it, it belongs to another user, its"
        f" HOOKERY_STATE_DIR is not {state_files.folder()}, or HOOKERY_PUBLISH=0 is set there"
    )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


_PS_COLUMNS = ("pid", "role", "applied", "pending", "missed", "unreached", "ran", "calls", "as of")


def _ps(options: argparse.Namespace) -> int:
    from hookery.tables import print_table

    processes = _processes(ended=options.ended)
    if options.json:
        print(_encode([process.to_dict() for process in processes]))
    elif processes:
        print_table(_PS_COLUMNS, [_ps_row(process) for process in processes])
    else:
        print("no process of this user has hooks")
    return 0


def _ps_row(process: PublishedProcess) -> tuple[str, ...]:
    def count(state: HookState) -> int:
        return sum(record.state == state.value for record in process.records)

    unreached = [len(record.unreached) for record in process.records if record.unreached is not None]
    calls = [record.calls for record in process.records if record.calls is not None]
    ran = sum(record.ran is True for record in process.records)
    ended = " (ended)" if process.ended_at is not None else ""
    return (
        str(process.pid),
        process.role,
        str(count(HookState.APPLIED)),
        str(count(HookState.PENDING)),
        str(count(HookState.MISSED)),
        str(sum(unreached)) if unreached else "-",
        str(ran),
        str(sum(calls)) if calls else "-",
        _clock(process.asked_at) + ended,
    )


def _explain(options: argparse.Namespace) -> int:
    from hookery import registry
    from hookery.targets import resolve, validate_name

    try:
        validate_name(options.target)
    except ValueError as error:
        raise HookError(str(error)) from error
    failure: Exception | None = None
    with _code_of_others():
        _load(options)
        try:
            resolve(options.target, eager=True)
            registry.apply_pending()
        except Exception as error:  # noqa: BLE001  (importing runs other people's code; the explanation follows)
            failure = error
        explanation = registry.explain(options.target)
    if failure is not None and str(failure) != explanation.detail:
        said = f"{failure}"
        if not isinstance(failure, HookError):
            said = f"{options.target} cannot be imported: {type(failure).__name__}: {failure}"
        print(f"hookery: {said}", file=sys.stderr)
    print(_encode(explanation.to_dict()) if options.json else str(explanation))
    return int(explanation.state == "missed" or failure is not None)


def _check(options: argparse.Namespace) -> int:
    from hookery import registry
    from hookery.listing import COLUMNS, table_of
    from hookery.plugins import chosen_names
    from hookery.tables import print_table

    running.append_folders(options.hook, running.folders_of(options.hook))
    errors: list[str] = []
    with _code_of_others():
        parts: list[dict[str, Any]] = [{"names": [name]} for name in chosen_names(options.plugin, asked_by="--plugin")]
        parts += [{"names": [], "modules": [module]} for module in options.hook]
        for part in parts:  # one after the other, so that each is checked, whatever the others do
            errors += _errors_of(part)
        records = registry.applied_hooks(unreached=True)
        problems = registry.problems()
    failed = [problem for problem in problems if problem.kind in _FAILING and problem.waits_for != MAIN]
    ok = bool(records) and not failed and not errors
    if options.json:
        plain = {"ok": ok, "errors": errors, "problems": [problem.to_dict() for problem in problems]}
        print(_encode({**plain, "hooks": [record.to_dict() for record in records]}))
        return int(not ok)
    rows, notes = table_of({"here": records})
    if rows:
        print_table(COLUMNS, rows, notes)
    for error in errors:
        print(f"error: {error}")
    if not records and not errors:
        print("nothing to check: no plugin is installed, and no module was named with --hook")
    else:
        skipped = sum(record.state == HookState.SKIPPED.value for record in records)
        on_main = sum(problem.waits_for == MAIN for problem in problems)
        said = f"{len(records)} hook{'s' * (len(records) != 1)}, {len(failed)} would not be applied"
        said += f", {skipped} skipped" if skipped else ""
        said += f", {on_main} left to `hookery run`" if on_main else ""
        print(said)
    return int(not ok)


def _errors_of(part: dict[str, Any]) -> list[str]:
    """What is wrong with one plugin, apart from what its hooks say themselves."""
    from hookery import HookApplyError, PluginError, load_plugins

    try:
        load_plugins(**part, eager=True)
    except (PluginError, HookApplyError) as error:
        return [str(error)]
    return []
