"""Hooks that are meant for certain versions of the distribution that their target belongs to."""

from __future__ import annotations

import functools

from hookery.hooks import Hook, HookError


def check_specifier(specifier: str) -> None:
    """Check that ``specifier`` is a version specifier as PEP 440 defines it.

    Raises:
        ValueError: it is not.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(specifier)
    except (InvalidSpecifier, AttributeError, TypeError) as error:
        raise ValueError(f"versions is {specifier!r}, not a version specifier such as '>=2.6,<3': {error}") from None


def outside_versions(hook: Hook) -> str | None:
    """Why the hook is to be skipped: no installed distribution of its target is of a version that it is for.

    ``None`` if one is, if the hook is for every version, or if the target belongs to no distribution.
    """
    if hook.versions is None:
        return None
    from packaging.specifiers import SpecifierSet

    wanted = SpecifierSet(hook.versions)
    installed = _installed(_top_level(hook))
    # A development version is compared like any other: a hook for ">=2" is for 3.0.dev1 too.
    if not installed or any(wanted.contains(version, prereleases=True) for _, version in installed):
        return None
    found = ", ".join(f"{name} {version}" for name, version in installed)
    return f"it is for versions {hook.versions}, and {found} is installed"


def check_versions_are_known(hook: Hook) -> None:
    """Refuse a hook that is for certain versions of something that has none.

    Raises:
        HookError: the target's module belongs to no installed distribution.
    """
    if hook.versions is not None and not _installed(_top_level(hook)):
        raise HookError(
            f"{hook.describe()}: it is for versions {hook.versions}, but the module {_top_level(hook)!r} belongs to no"
            " installed distribution"
        )


def _top_level(hook: Hook) -> str:
    return hook.target.partition(":")[0].partition(".")[0]


def _installed(module: str) -> list[tuple[str, str]]:
    """Name and version of the distributions that a top-level module belongs to."""
    import importlib.metadata

    found = sorted(set(_distributions().get(module, ())))
    return [(name, importlib.metadata.version(name)) for name in found]


@functools.cache
def _distributions() -> dict[str, list[str]]:
    import importlib.metadata

    # Reads the files of every installed distribution: once is enough for a process.
    return dict(importlib.metadata.packages_distributions())
