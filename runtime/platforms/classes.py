"""Classes that are named where they are chosen and live somewhere else."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from typing import Any, TypeAlias, TypeVar

from runtime.core.errors import ConfigError, WrongClassError

ClassRef: TypeAlias = "type | str | None"
"""A class, its dotted name (so that a platform need not import what lies above it), or None for the in-tree class."""

_T = TypeVar("_T")


def resolve_class(
    value: type | str,
    base: type[_T],
    what: str,
    arguments: Iterable[str] | None = None,
    keywords: Iterable[str] = (),
) -> type[_T]:
    """The class that `value` is or names.

    Args:
        value: a class, or its dotted name.
        base: what the class must be a subclass of.
        what: what the class is for, as the error message shall call it.
        arguments: what whoever makes an instance passes by position, in words; None if nobody is to make one here.
        keywords: the names of what is passed by name.

    Raises:
        ConfigError: the name cannot be imported.
        WrongClassError: what it names is no subclass of `base`, has abstract methods, or cannot be made with these
            arguments; a `ConfigError` and a `TypeError`.
    """
    if value is None:
        raise WrongClassError(
            f"{what}: it returned None, and there is no in-tree class in its place; return a subclass of"
            f" {base.__module__}.{base.__qualname__}"
        )
    if isinstance(value, str):
        try:
            resolved = pkgutil.resolve_name(value)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{what}: {value!r} cannot be imported: {error}") from error
    else:
        resolved = value
    shown = f"{resolved.__module__}.{resolved.__qualname__}" if isinstance(resolved, type) else repr(resolved)
    if not isinstance(resolved, type) or not issubclass(resolved, base):
        raise WrongClassError(f"{what}: {shown} must be a subclass of {base.__module__}.{base.__qualname__}")
    lacking = getattr(resolved, "__abstractmethods__", ())
    if lacking:
        raise WrongClassError(f"{what}: {shown} lacks {', '.join(sorted(lacking))}")
    if arguments is not None:
        _check_call(resolved, f"{what}: {shown}", tuple(arguments), tuple(keywords))
    return resolved


def _check_call(function: Any, shown: str, arguments: tuple[str, ...], keywords: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C, and says nothing of its parameters
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        passed = ", ".join((*arguments, *(f"{name}=..." for name in keywords)))
        parameters = signature.replace(return_annotation=inspect.Signature.empty)
        raise WrongClassError(
            f"{shown}{parameters} does not take what the runtime passes, ({passed}): {error}"
        ) from error
