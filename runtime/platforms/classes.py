"""Classes that are named where they are chosen and live somewhere else."""

from __future__ import annotations

import pkgutil
from typing import TypeAlias, TypeVar

from runtime.core.errors import ConfigError, WrongClassError

ClassRef: TypeAlias = "type | str | None"
"""A class, its dotted name (so that a platform need not import what lies above it), or None for the in-tree class."""

_T = TypeVar("_T")


def resolve_class(value: type | str, base: type[_T], what: str) -> type[_T]:
    """The class that `value` is or names.

    Args:
        value: a class, or its dotted name.
        base: what the class must be a subclass of.
        what: what the class is for, as the error message shall call it.

    Raises:
        ConfigError: the name cannot be imported.
        WrongClassError: what it names is no subclass of `base`; a `ConfigError` and a `TypeError`.
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
    if not isinstance(resolved, type) or not issubclass(resolved, base):
        shown = f"{resolved.__module__}.{resolved.__qualname__}" if isinstance(resolved, type) else repr(resolved)
        raise WrongClassError(f"{what}: {shown} must be a subclass of {base.__module__}.{base.__qualname__}")
    return resolved
