"""Finding and loading plugins: installed entry points of the group ``hookery.plugins``, or modules by name.

An entry point names a module, whose decorators register hooks as it is imported, or a function of a module, which is
called without arguments and registers them. Plugins load in a fixed order: distribution name, then entry-point name.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hookery import registry as registry_module
from hookery.decorator import declarations
from hookery.hooks import HookApplyError, HookSource, HookWarning, LoadedPlugin, PluginError
from hookery.registry import HookRegistry, Loading, Reach

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "hookery.plugins"
ALLOW_LIST_VARIABLE = "HOOKERY_PLUGINS"


def load_plugins(
    *,
    modules: Sequence[str] = (),
    names: Iterable[str] | None = None,
    except_distributions: Collection[str] = (),
    registry: HookRegistry | None = None,
    strict: bool = False,
    eager: bool = False,
    reach: Reach = "globals",
) -> None:
    """Load the plugins of this process and apply every hook registered so far. Call it once, before the program starts.

    Called again it loads only what was not loaded before, and applies what is pending. A plugin that raises leaves no
    hooks behind and is reported as a warning while the others go on; one that was asked for by name raises.

    Args:
        modules: plugin modules to load by dotted name, after the installed plugins.
        names: the entry points to load; by default those of the variable ``HOOKERY_PLUGINS`` (comma-separated; empty
            for none), and all that are installed when it is not set.
        except_distributions: distributions whose entry points are not loaded, those for other hardware for instance.
        registry: where the hooks go; the process's registry by default.
        strict: raise for any plugin that fails and any target that does not exist.
        eager: import the modules of all targets now.
        reach: how far the hooks reach, as for :meth:`HookRegistry.apply_hooks`.

    Raises:
        PluginError: a plugin that was asked for by name is not installed, is of a distribution that is left out, or
            raised; with ``strict``, any that raised.
        HookApplyError: the hooks of a plugin that was asked for, or of code, cannot be applied; with ``strict``, any.
    """
    registry = registry_module.registry if registry is None else registry
    plugins = _choose(modules, names, frozenset(except_distributions))
    for plugin in plugins:
        if plugin.key in registry.loaded_plugins:
            continue
        try:
            _load(plugin, registry)
        except PluginError as error:
            if strict or plugin.asked_for:
                raise
            warnings.warn(str(error), HookWarning, stacklevel=2)
        else:
            registry.loaded_plugins[plugin.key] = plugin
    tolerated = set() if strict else {plugin.source for plugin in plugins if not plugin.asked_for}
    failures = registry.apply_pending(strict=strict, eager=eager, reach=reach)
    for source, failure in failures:
        if source in tolerated:
            warnings.warn(f"hooks of {source} were taken back: {failure}", HookWarning, stacklevel=2)
    fatal = [failure for source, failure in failures if source not in tolerated]
    if fatal:
        raise HookApplyError("; ".join(map(str, fatal))) from fatal[0]


def chosen_names(names: Iterable[str] | None, *, asked_by: str) -> list[str]:
    """The names of the installed plugins that :func:`load_plugins` would load. Nothing is loaded.

    Args:
        asked_by: what messages are to say that a name was given with.

    Raises:
        PluginError: one that was asked for is not installed.
    """
    return list(dict.fromkeys(plugin.source.name for plugin in _choose((), names, asked_by=asked_by)))


def _choose(
    modules: Sequence[str],
    names: Iterable[str] | None,
    except_distributions: Collection[str] = (),
    *,
    asked_by: str = "load_plugins(names=...)",
) -> list[LoadedPlugin]:
    """The plugins to load, in their fixed order.

    Raises:
        PluginError: a name on the allow-list is not installed, or only by distributions that are left out.
    """
    from importlib.metadata import entry_points  # a third of the time that importing hookery would take

    entries = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: (_distribution(entry) or "", entry.name))
    installed = [entry for entry in entries if _distribution(entry) not in except_distributions]
    if names is None and ALLOW_LIST_VARIABLE in os.environ:
        names, asked_by = os.environ[ALLOW_LIST_VARIABLE].split(","), ALLOW_LIST_VARIABLE
    allowed = None if names is None else {name.strip() for name in names} - {""}
    if allowed is not None:
        unknown = sorted(allowed - {entry.name for entry in installed})
        for entry in entries:
            if entry.name in unknown:
                raise PluginError(
                    f"{asked_by} asks for the plugin {entry.name!r} of {_distribution(entry)}, whose plugins are left"
                    " out here"
                )
        if unknown:
            known = ", ".join(sorted({entry.name for entry in installed})) or "none"
            raise PluginError(
                f"{asked_by} asks for the plugin {unknown[0]!r}, which is not installed; installed: {known}"
            )
    plugins = [
        LoadedPlugin(
            HookSource(entry.name, _distribution(entry), entry.dist.version if entry.dist else None),
            entry.module,
            entry.attr or None,
            asked_for=allowed is not None,
        )
        for entry in installed
        if allowed is None or entry.name in allowed
    ]
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise PluginError(f"{module!r} is not the dotted name of a module; write it as an import statement would")
        plugins.append(LoadedPlugin(HookSource(module), module, asked_for=True))
    return plugins


def _distribution(entry: EntryPoint) -> str | None:
    return entry.dist.name if entry.dist is not None else None


def load_known(plugin: LoadedPlugin, registry: HookRegistry) -> None:
    """Load one plugin that is known from elsewhere, without looking for it among those that are installed.

    Raises:
        PluginError: it cannot be imported, or it raised.
    """
    _load(plugin, registry)
    registry.loaded_plugins[plugin.key] = plugin


def _run(plugin: LoadedPlugin) -> None:
    loaded: Any = importlib.import_module(plugin.module)
    if plugin.attribute is None:
        return
    before = len(declarations)
    functools.reduce(getattr, plugin.attribute.split("."), loaded)()
    # The call is made again at every loading; what it imports runs its decorators only once.
    declarations[before:] = [made for made in declarations[before:] if not made.local]


def _load(plugin: LoadedPlugin, registry: HookRegistry) -> None:
    """Import (or call) the plugin with its hooks attributed to it; on an error nothing of it stays registered."""
    token = registry_module._loading.set(Loading(registry, plugin.source))
    before = len(declarations)
    try:
        _run(plugin)
        # Decorators run once per import: what was imported before declares again what it declared then.
        for declaration in declarations[:before]:
            module = declaration.module
            if declaration.source == plugin.source or f"{module}.".startswith(f"{plugin.module}."):
                declaration.register(registry)
    except (Exception, SystemExit) as error:
        registry.discard(plugin.source)
        # A module that failed runs its decorators again at the next attempt; one that stands imported does not.
        declarations[before:] = [made for made in declarations[before:] if made.module in sys.modules]
        raise PluginError(f"plugin {plugin.source} failed to load: {type(error).__name__}: {error}") from error
    finally:
        registry_module._loading.reset(token)
