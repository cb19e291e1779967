"""The catalogue: every hook target of the runtime in one list, and what the code says of each when it is asked.

`python -m runtime hooks` prints it. `tests/runtime/test_hook_catalogue.py` checks the list against the code: each
target exists, is run by the processes and at the moments that are said here, and none is left out.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import hookery.targets
from hookery.targets import TargetKind
from runtime.plugins.graph_targets import GRAPH_TARGETS
from runtime.plugins.hook_target import HookTarget, Role, When
from runtime.plugins.memory_targets import MEMORY_TARGETS
from runtime.plugins.model_targets import MODEL_TARGETS
from runtime.plugins.platform_targets import PLATFORM_TARGETS
from runtime.plugins.serving_targets import SERVING_TARGETS

AREAS = {
    "platform": PLATFORM_TARGETS,
    "memory": MEMORY_TARGETS,
    "graphs": GRAPH_TARGETS,
    "model": MODEL_TARGETS,
    "serving": SERVING_TARGETS,
}
"""The targets of each part of the runtime."""

CATALOGUE: tuple[HookTarget, ...] = tuple(
    dataclasses.replace(target, area=area) for area, targets in AREAS.items() for target in targets
)
"""Every hook target, area by area."""


def find(text: str = "", *, role: Role | None = None, when: When | None = None) -> list[HookTarget]:
    """The targets that have `text` in their name, purpose or area, and that this process runs, at this moment."""
    wanted = text.lower()
    return [
        target
        for target in CATALOGUE
        if any(wanted in said.lower() for said in (target.name, target.purpose, target.area))
        and any(
            role in (None, process) and (when is None or when in moments) for process, moments in target.runs.items()
        )
    ]


@dataclass(frozen=True)
class TargetDescription:
    """What the code says of a target, here and now.

    Attributes:
        target: what the catalogue says.
        kind: what stands there, as hookery sees it: "function", "method", "property", "class", …
        defined_in: the module or class that holds it; on this platform, for one of the platform's.
        signature: its parameters and result as a hook meets them: `self` or `cls` first where a hook gets it as
            `args[0]`.
        names: the same without types.
    """

    target: HookTarget
    kind: str
    defined_in: str
    signature: str
    names: str

    def __str__(self) -> str:
        """A paragraph: name, purpose, where, when and with what it runs, what it is and its signature."""
        target = self.target
        lines = [target.name, target.purpose]
        lines.append(f"{target.processes}, {target.moments}; {self.kind} in {self.defined_in}")
        if target.always_with is not None:
            lines.append(f"{_ONLY_WITH} {target.always_with.value}")
        elif target.only_with:
            some = ((when.value, target.only_with[when].value) for when in When if when in target.only_with)
            lines.append("; ".join(f"{when} {_ONLY_WITH} {part}" for when, part in some))
        return "\n  ".join([*lines, self.signature])

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON takes it."""
        target = self.target
        return {
            "name": target.name,
            "purpose": target.purpose,
            "area": target.area,
            "runs": {role.value: sorted(when.value for when in target.runs[role]) for role in target.runs},
            "only_with": {when.value: target.only_with[when].value for when in When if when in target.only_with},
            "recorded": target.recorded,
            "kind": self.kind,
            "defined_in": self.defined_in,
            "signature": self.signature,
        }


def describe(targets: Iterable[HookTarget]) -> list[TargetDescription]:
    """Look targets up as hookery does, which imports their modules and chooses the platform.

    Raises:
        hookery.TargetNotFoundError: there is no such thing; the message names what there is.
        PlatformError: no platform can be chosen.
    """
    return [_describe(target) for target in targets]


def _describe(target: HookTarget) -> TargetDescription:
    found = hookery.targets.resolve(target.name, eager=True)
    assert isinstance(found, hookery.targets.Target), "nothing is left to wait for when modules are imported"
    holder = found.owner
    if isinstance(holder, type):
        holder = next(cls for cls in holder.__mro__ if found.attribute in vars(cls))
        defined_in = f"{holder.__module__}.{holder.__qualname__}"
    else:
        defined_in = found.module
    signature = inspect.signature(found.raw if found.kind is TargetKind.CLASS else found.inner)
    return TargetDescription(target, found.kind.value, defined_in, _spoken(signature), str(_without_types(signature)))


def _spoken(signature: inspect.Signature) -> str:
    """The signature as the source has it: annotations are strings there, which `str` would put in quotes."""
    parameters = [
        parameter.replace(annotation=_Verbatim(parameter.annotation))
        if isinstance(parameter.annotation, str)
        else parameter
        for parameter in signature.parameters.values()
    ]
    result = signature.return_annotation
    if isinstance(result, str):
        result = _Verbatim(result)
    return str(signature.replace(parameters=parameters, return_annotation=result))


class _Verbatim:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _without_types(signature: inspect.Signature) -> inspect.Signature:
    empty = inspect.Parameter.empty
    parameters = [parameter.replace(annotation=empty) for parameter in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


_ONLY_WITH = "only with"
_DEFINED_IN = "defined in"
_COLUMNS = ("target", "process", "when", _ONLY_WITH, "purpose", _DEFINED_IN, "arguments")
_OPTIONAL = (_ONLY_WITH, _DEFINED_IN)
_USUAL = (TargetKind.FUNCTION.value, TargetKind.METHOD.value)


def table(descriptions: Sequence[TargetDescription]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a table of them. Left out is what an engine has to have where none of them needs
    anything, and where they are defined where each name says it."""
    rows = [_row(each) for each in descriptions]
    columns = [column for column in _COLUMNS if column not in _OPTIONAL or any(row[column] for row in rows)]
    return columns, [[row[column] for column in columns] for row in rows]


def _row(description: TargetDescription) -> dict[str, str]:
    target, holder = description.target, description.defined_in
    said = (
        target.name,
        target.processes,
        target.moments,
        target.needs,
        target.purpose,
        "" if target.name.startswith(f"{holder}.") else holder.rpartition(".")[2],
        description.names if description.kind in _USUAL else f"{description.names} {description.kind}",
    )
    return dict(zip(_COLUMNS, said, strict=True))


def notes(descriptions: Sequence[TargetDescription]) -> list[str]:
    """What has to be known to read that table."""
    number = len(descriptions)
    said = [
        f"{number} target{'s' * (number != 1)}; a hook gets these arguments, self or cls first where there is one, and"
        " calls them so or *args, **kwargs"
    ]
    if any(each.kind == TargetKind.CLASS.value for each in descriptions):
        said.append("a class is replaced by a subclass of it, which is made with these arguments")
    if any(each.target.only_with for each in descriptions):
        said.append(
            "only with: an engine without it never runs the target, or never at the moment that is named; with a graph"
            " runner, capture and replay are that runner's"
        )
    if any(each.target.recorded for each in descriptions):
        said.append("recorded: where a device records steps, a hook runs at capture and not when they are replayed")
    return [*said, "what the moments mean: python -m runtime hooks --help"]
