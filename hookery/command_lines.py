"""Reading the command lines of Python interpreters."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

_INTERPRETER = re.compile(r"(?:python|pypy)(?:\d(?:\.\d+)?t?)?")
_HELPER = re.compile(r"from multiprocessing\.(\w+) import main")
# Those that keep PYTHONPATH or sitecustomize from being looked at.
_ISOLATING = "IES"


@dataclass(frozen=True)
class PythonCommand:
    """What an interpreter was told to run. ``how`` is ``"-c"``, ``"-m"``, ``"script"`` or ``""`` (its standard input);
    ``isolating`` is the option that keeps hooks out, if there is one."""

    how: str
    what: str
    isolating: str | None


def is_interpreter(program: str) -> bool:
    """Whether a program is called like an interpreter of Python."""
    return _INTERPRETER.fullmatch(os.path.basename(program)) is not None


def parse(arguments: Sequence[str]) -> PythonCommand:
    """Read what follows the interpreter's name."""
    isolating = None
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        argument = rest.pop(0)
        if argument.startswith("--"):
            if argument == "--":
                break
            if argument == "--check-hash-based-pycs":
                del rest[:1]
            continue
        for position, letter in enumerate(argument[1:], 2):
            if letter in _ISOLATING:
                isolating = isolating or f"-{letter}"
            elif letter in "cm":
                return PythonCommand(f"-{letter}", argument[position:] or (rest[0] if rest else ""), isolating)
            elif letter in "WX":
                if not argument[position:]:
                    del rest[:1]
                break
    if rest and rest[0] != "-":
        return PythonCommand("script", rest[0], isolating)
    return PythonCommand("", "", isolating)


def role_in_multiprocessing(command: Sequence[str]) -> str | None:
    """What multiprocessing has started that Python process for: "child", "forkserver", "resource tracker"."""
    if "--multiprocessing-fork" in command:
        return "child"
    helper = _HELPER.match(next((word for word in command if word.startswith("from multiprocessing.")), ""))
    return None if helper is None else helper[1].replace("_", " ")


def short_name(command: Sequence[str]) -> str:
    """What a person calls a Python process with that command line: its script, or its module."""
    if not command:
        return "python"
    role = role_in_multiprocessing(command)
    if role is not None:
        return f"multiprocessing {role}"
    python = parse(command[1:])
    if python.how == "-m":
        return f"-m {python.what}"
    if python.how == "script":
        return os.path.basename(python.what.rstrip("/")) or python.what
    return f"{os.path.basename(command[0])} {python.how}".rstrip()
