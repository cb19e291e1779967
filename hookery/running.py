"""``hookery run``: start a program with hooks in it and in every Python process that it starts.

The program is executed in place of this process with a ``sitecustomize`` of ours on ``PYTHONPATH``, which every Python
imports when it starts; so it is ``__main__`` as ever, and its signals and its exit status are its own. Nothing else is
changed, and nothing outside the program.

Out of reach are processes whose Python does not look at ``PYTHONPATH`` or imports no ``sitecustomize`` (the options
``-I``, ``-E`` and ``-S``), those that are started with an environment without our variables, and programs that embed
Python so. What can be seen of that is an error before the program starts. A Python that hookery is not installed for
says on standard error that it has no hooks, and with ``HOOKERY_STRICT=1`` ends.

Plugins may start processes while they are loaded. A Python among these does not load plugins by itself: it would start
the same process again, and that one too. Children of multiprocessing have the hooks that their parent sends them, any
other says on standard error that it has none, and with ``HOOKERY_STRICT=1`` ends.

Where hooks that were asked for fail, the process ends with the exit status 2 before any code of the program has run:
the program itself, and so each process that it starts.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from hookery import command_lines
from hookery.children import LOADING_VARIABLE, PROPAGATE_VARIABLE, STRICT_VARIABLE
from hookery.hooks import HookError, HookWarning
from hookery.reporting import warn

PLUGINS_VARIABLE = "HOOKERY_PLUGINS"
HOOKS_VARIABLE = "HOOKERY_HOOKS"
RUN_VARIABLE = "HOOKERY_RUN"
FOLDERS_VARIABLE = "HOOKERY_RUN_FOLDERS"
PROGRAM_VARIABLE = "HOOKERY_RUN_PROGRAM"  # the modules of hooks that are the program, for its multiprocessing children
BOOTSTRAP = str(Path(__file__).resolve().parent / "bootstrap")

FAILED = 2  # the exit status

_run_as_program: list[str] = []  # the modules of hooks that are the program of this process, or of its parent's

_PYTHON_SUFFIXES = (".py", ".pyw", ".pyc", ".pyz")


class RunError(HookError):
    """A program cannot be started with hooks."""


@dataclass(frozen=True)
class RunSettings:
    """What the processes of a run are told through their environment.

    ``plugins`` are the only entry points to load, beside those of a run that this one is within; ``None`` leaves that
    to ``HOOKERY_PLUGINS``. ``folders`` are looked in last for the modules of ``hooks``, and for hookery itself. With
    ``strict`` a target that does not exist is an error.
    """

    plugins: tuple[str, ...] | None = None
    hooks: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    strict: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> RunSettings:
        """What ``environment`` says; outside a run that is what the user has set."""
        return cls(
            plugins=None,
            hooks=_split(environment.get(HOOKS_VARIABLE, ""), ","),
            folders=tuple(filter(None, environment.get(FOLDERS_VARIABLE, "").split(os.pathsep))),
            strict=environment.get(RUN_VARIABLE) == "strict",
        )

    def put_into(self, environment: Mapping[str, str]) -> dict[str, str]:
        """A copy of ``environment`` for the program. Within another run the hooks of both are in it, each once.

        Raises:
            RunError: a folder cannot be named in a list of folders.
        """
        for folder in (*self.folders, BOOTSTRAP):
            if os.pathsep in folder:
                raise RunError(
                    f"no Python can be told to look in {folder!r} for modules: in a list of folders {os.pathsep!r}"
                    " stands between two of them; move what is needed from there to another folder, or install it"
                )
        outer = self.of(environment)
        result = dict(environment)
        result.pop(LOADING_VARIABLE, None)
        within = RUN_VARIABLE in environment
        # The other run loads all that are installed where it names none, and these are among them.
        if self.plugins is not None and (not within or PLUGINS_VARIABLE in environment):
            asked_before = environment.get(PLUGINS_VARIABLE, "") if within else ""
            result[PLUGINS_VARIABLE] = ",".join(dict.fromkeys(_split(asked_before, ",") + self.plugins))
        result[HOOKS_VARIABLE] = ",".join(dict.fromkeys(outer.hooks + self.hooks))
        result[FOLDERS_VARIABLE] = os.pathsep.join(dict.fromkeys(outer.folders + self.folders))
        result[RUN_VARIABLE] = "strict" if outer.strict or self.strict else "1"
        path = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry != BOOTSTRAP]
        result["PYTHONPATH"] = os.pathsep.join([BOOTSTRAP, *(path if path != [""] else [])])
        return result


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(separator) if part.strip())


def run(command: Sequence[str], settings: RunSettings) -> None:
    """Become the program. Returns only by raising.

    Raises:
        RunError: the program is not found, cannot be executed, or cannot be reached by hooks; or a plugin that is being
            loaded runs it.
    """
    arguments = find_program(command)
    loading = _loading_above()
    if loading is not None:
        raise RunError(f"{' '.join(arguments)} cannot be started with hooks: {_why_it_goes_without(loading)}")
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(arguments[0], arguments, settings.put_into(os.environ))
    except OSError as error:
        raise RunError(f"{arguments[0]} cannot be executed: {error.strerror}") from error


def find_program(command: Sequence[str]) -> list[str]:
    """What to execute for a script, a folder or archive with a ``__main__``, ``-m module``, ``-c code``, or the name or
    path of any program.

    Raises:
        RunError: there is no such program, or it asks for an isolated Python.
    """
    if not command:
        raise RunError("no program to run; give a script, -m and a module, or the name of an installed program")
    program, *rest = command
    if program in ("-m", "-c"):
        if not rest:
            raise RunError(f"{program} needs {'a module' if program == '-m' else 'code'} after it")
        return [sys.executable, program, *rest]
    if program.startswith("-"):
        raise RunError(f"{program} is no option of `hookery run`; options of Python go after it: python {program} ...")
    if os.sep not in program and not program.endswith(_PYTHON_SUFFIXES):
        from shutil import which

        installed = which(program, path=_search_path())
        if installed is not None:
            return _checked([installed, *rest])
    if os.path.isdir(program):
        if not os.path.exists(os.path.join(program, "__main__.py")):
            raise RunError(f"{program} is a folder without a __main__.py")
        return [sys.executable, program, *rest]
    if not os.path.exists(program):
        raise RunError(f"there is no program {program!r}, neither as a file nor installed")
    if program.endswith(_PYTHON_SUFFIXES) or not os.access(program, os.X_OK):
        return [sys.executable, program, *rest]
    return _checked([os.path.abspath(program), *rest])


def _search_path() -> str:
    """Programs that are installed beside this interpreter come first: there the plugins are installed too."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])


def _checked(arguments: list[str]) -> list[str]:
    """Refuse a program that is known to run in a Python that hooks cannot reach.

    Raises:
        RunError: it is one.
    """
    interpreter, where = arguments, "it"
    if not command_lines.is_interpreter(arguments[0]):
        interpreter, where = _first_line(arguments[0]), f"the first line of {arguments[0]}"
    if interpreter and command_lines.is_interpreter(interpreter[0]):
        isolating = command_lines.parse(interpreter[1:]).isolating
        if isolating is not None:
            raise RunError(
                f"{' '.join(arguments)}: {where} asks Python for {isolating}, which keeps hooks from being applied;"
                " start it without that option"
            )
    return arguments


def _first_line(program: str) -> list[str]:
    """The interpreter that a script names, and its options."""
    try:
        with open(program, "rb") as file:
            first = file.readline(4096)
    except OSError as error:
        raise RunError(f"{program} cannot be read: {error.strerror}") from error
    if not first.startswith(b"#!"):
        return []
    words = os.fsdecode(first[2:]).split()
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if word != "-S"]
    return words


def folders_of(modules: Sequence[str]) -> tuple[str, ...]:
    """Where hook modules, and hookery, are found that are not installed: so they are found from other folders too.

    Raises:
        RunError: one is found neither on ``sys.path`` nor in the current folder.
    """
    return tuple(dict.fromkeys(folder for module in (*modules, "hookery") if (folder := _folder_of(module))))


def _folder_of(module: str) -> str | None:
    top = module.partition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")):
        raise RunError(f"{module!r} is not the dotted name of a module; write it as an import statement would")
    loaded = sys.modules.get(top)
    spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(top)
    if spec is None:
        spec = PathFinder.find_spec(top, [os.getcwd()])
    if spec is None:
        raise RunError(f"there is no module {top!r} to take hooks from, neither on sys.path nor in {os.getcwd()}")
    places = list(spec.submodule_search_locations or [])
    place = os.path.dirname(places[0]) if places else os.path.dirname(spec.origin or "")
    place = os.path.abspath(place) if place else ""
    return None if not place or _is_installed(place) else place


def _is_installed(folder: str) -> bool:
    import sysconfig

    paths = sysconfig.get_paths()
    return any(os.path.samefile(folder, place) for place in set(paths.values()) if os.path.isdir(place))


def append_folders(modules: Sequence[str], folders: Sequence[str]) -> None:
    """Put ``folders`` last on ``sys.path``, if a module is not found without them."""
    if not folders or all(importlib.util.find_spec(module.partition(".")[0]) for module in modules):
        return
    sys.path.extend(folder for folder in folders if folder not in sys.path)


def apply_asked_for() -> None:
    """Load the plugins and the hooks that the environment asks for, and apply them.

    A module that runs as the program is not imported for that: it registers its hooks as the program.

    Raises:
        HookError: what was asked for fails.
    """
    from hookery.plugins import load_plugins

    settings = RunSettings.of(os.environ)
    append_folders(settings.hooks, settings.folders)
    load_plugins(modules=[name for name in settings.hooks if name not in _run_as_program], strict=settings.strict)


def apply_in_this_process() -> None:
    """Apply what the environment asks for. Called while this process starts; where that fails, it ends."""
    if RUN_VARIABLE not in os.environ:
        _go_without(f"{RUN_VARIABLE} has been taken out of its environment")
        return
    if _is_own_command():
        return
    loading = _loading_above()
    if loading is not None:
        if not _hooks_come_from_the_parent():
            _go_without(_why_it_goes_without(loading))
        return
    from hookery import targets

    program = command_lines.parse(sys.orig_argv[1:])
    # The helpers of multiprocessing define nothing, and its children are given the program's main module.
    targets.main_is_to_come = program.how in ("-m", "script") or program.what.startswith("from multiprocessing.")
    with _failing_ends_the_process() as settings:
        append_folders(settings.hooks, settings.folders)
        _run_as_program[:] = _hooks_that_are_the_program(program, settings.hooks)
        with _loading():
            apply_asked_for()
        if program.how in ("-m", "script"):
            from hookery import main_module

            has_hooks = bool(_run_as_program)
            if program.how == "script" and os.path.isfile(program.what):
                targets.main_is_to_come = main_module.watch_script(program.what, has_hooks=has_hooks)
                has_hooks = False
            main_module.watch_module(has_hooks=has_hooks)


def _hooks_that_are_the_program(program: command_lines.PythonCommand, modules: Sequence[str]) -> list[str]:
    """Those of the ``modules`` of hooks that this process runs as its program. The children that multiprocessing starts
    for it run it too, and have its hooks from it."""
    if command_lines.role_in_multiprocessing(sys.orig_argv) is None:
        os.environ.pop(PROGRAM_VARIABLE, None)
        if program.how not in ("-m", "script"):
            return []
        from hookery import main_module

        found = [module for module in modules if main_module.is_program(module, program)]
        if found:
            os.environ[PROGRAM_VARIABLE] = ",".join(found)
        return found
    found = [module for module in modules if module in _split(os.environ.get(PROGRAM_VARIABLE, ""), ",")]
    if found and not _hooks_come_from_the_parent():
        message = (
            f"{', '.join(found)} is the program, and its hooks do not follow it here ({PROPAGATE_VARIABLE} is 0): they"
            " are applied where it calls hookery.load_plugins(); or move them to a module of their own"
        )
        warn([HookWarning(message)], never_raise=True)
    return found


def apply_to_main(module: str) -> None:
    """Apply the hooks on what the program, ``module``, has defined. It calls this itself; where that fails, it ends."""
    from hookery import main_module

    with _failing_ends_the_process() as settings:
        main_module.apply_to_main(module, strict=settings.strict)


@contextmanager
def _failing_ends_the_process() -> Iterator[RunSettings]:
    """What is done in it is done with what the environment asks for; if it fails, this process ends and says why."""
    try:
        yield RunSettings.of(os.environ)
    except Exception as error:  # noqa: BLE001  (a plugin may raise anything; it ends the process)
        _complain(f"{error}" if isinstance(error, HookError) else f"{type(error).__name__}: {error}")
        if sys.stdout is not None:
            sys.stdout.flush()
        # Python would report a SystemExit here as an error of its own start.
        os._exit(FAILED)


@contextmanager
def _loading() -> Iterator[None]:
    """What is started in it knows that a plugin of this process has started it.

    A process that is forked in it and goes on with the loading comes to its end too. Any other stays what the plugin
    has forked it for, and so does what it starts: to load the plugin there would fork it again.
    """
    os.environ[LOADING_VARIABLE] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(LOADING_VARIABLE, None)


def _loading_above() -> str | None:
    """The number of the process whose plugin has started this one while it was being loaded, if that is so."""
    number = os.environ.get(LOADING_VARIABLE)
    # A plugin may replace its process by another program: nobody but that one is left to load it.
    return None if number == str(os.getpid()) else number


def _why_it_goes_without(loading: str) -> str:
    return (
        f"it comes from a plugin that process {loading} was still loading, and would load that again; let the plugin"
        f" start it, and take its environment, in a function that is called later ({LOADING_VARIABLE} is set)"
    )


def _hooks_come_from_the_parent() -> bool:
    """Whether multiprocessing gives this process what its parent has, or it runs nothing that could be hooked."""
    role = command_lines.role_in_multiprocessing(sys.orig_argv)
    return role == "resource tracker" or (role is not None and os.environ.get(PROPAGATE_VARIABLE) != "0")


def _go_without(why: str) -> None:
    _complain(why)
    if os.environ.get(STRICT_VARIABLE) == "1":
        os._exit(FAILED)


def _complain(what: str) -> None:
    name = command_lines.short_name(sys.orig_argv)
    print(f"hookery run: no hooks in process {os.getpid()}, {name}: {what}", file=sys.stderr, flush=True)


def _is_own_command() -> bool:
    """Whether this is a command of hookery: it loads what it is about itself."""
    command = command_lines.parse(sys.orig_argv[1:])
    if command.how == "-m":
        return command.what == "hookery"
    if command.how != "script" or os.path.basename(command.what) != "hookery":
        return False
    try:
        return "hookery.cli" in Path(command.what).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
