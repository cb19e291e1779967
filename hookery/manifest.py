"""What another process needs to have the same hooks: plain data, made in one process and applied in another.

::

    text = Manifest.of(hookery.registry).to_json()
    # in the other process
    for failure in Manifest.from_json(text).apply(hookery.registry):
        print(failure)
"""

from __future__ import annotations

import importlib
import itertools
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hookery import patch_table, patches, plugins, reporting
from hookery.hooks import Hook, HookSource, HookState, HookType, HookWarning, LoadedPlugin, PluginError
from hookery.naming import MAIN, HookName, look_up, module_name_of, name_of, qualname_of, why_local
from hookery.registry import HookRegistry, Reach, next_order
from hookery.registry import registry as process_registry
from hookery.sameness import options_of, plain_name

VERSION = 2
"""Of the form of the data. Another version is refused."""


@dataclass(frozen=True)
class ManifestPlugin:
    """A plugin that was loaded: ``module`` is imported, and ``attribute`` of it called if there is one.

    ``distribution`` and ``version`` are those of an installed plugin, ``None`` for one that was named by its module.
    """

    name: str
    module: str
    attribute: str | None = None
    distribution: str | None = None
    version: str | None = None


class ManifestHook(NamedTuple):
    """A hook that was registered, by code or by a plugin, with all its options, in the order of registration.

    ``plugin`` is the key of the plugin that registers it (distribution or "", name), ``None`` for code. ``local`` says
    why the hook cannot be found by its name and so stays where it is. ``reverted`` ones were taken back: where a
    module's import registers them again, they are taken back again.
    """

    target: str
    type: str
    module: str
    qualname: str
    source: tuple[str, str | None, str | None]  # name, distribution, version
    priority: int = 0
    engine: str = "auto"
    on_error: str = "raise"
    reason: str | None = None
    versions: str | None = None
    count: bool = False  # type: ignore[assignment]  # in the place of a method of tuples that nobody needs
    subclasses: bool = False
    deep: bool = False
    plugin: tuple[str, str] | None = None
    local: str | None = None
    reverted: bool = False

    @property
    def name(self) -> HookName:
        return HookName(self.target.replace(":", "."), self.type, self.module, self.qualname)

    def describe(self) -> str:
        """``AROUND pkg.plugin:hook on pkg.mod.f``: for messages."""
        return f"{self.type.upper()} {self.module}:{self.qualname} on {self.target}"


@dataclass(frozen=True)
class Failure:
    """Something of a manifest that is not in place: a hook, or a whole plugin where ``hook`` is ``None``."""

    hook: HookName | None
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Manifest:
    """The plugins and hooks of one process. ``hooks`` are in the order of registration.

    ``main_name`` is the dotted name of the main module where it was started as ``python -m``, ``main_path`` its file
    otherwise; both are ``None`` where no hook comes from it.
    """

    plugins: tuple[ManifestPlugin, ...] = ()
    hooks: tuple[ManifestHook, ...] = ()
    main_name: str | None = None
    main_path: str | None = None
    counting: bool = False
    version: int = field(default=VERSION)

    @classmethod
    def of(cls, *registries: HookRegistry) -> Manifest:
        """The manifest of the process's registry, or of several together, as they stand now.

        Hooks that were registered after the last ``apply_hooks()`` are not in it.
        """
        registries = registries or (process_registry,)
        with patches.lock:
            loaded = {key: plugin for registry in registries for key, plugin in registry.loaded_plugins.items()}
            hooks = sorted((hook for registry in registries for hook in registry.hooks()), key=lambda hook: hook.order)
            entries = tuple(
                _entry(hook, loaded) for hook in hooks if hook.state is not HookState.PENDING or hook.detail
            )
        main_name, main_path = _main() if any(entry.module == MAIN for entry in entries) else (None, None)
        return cls(
            plugins=tuple(
                ManifestPlugin(
                    plugin.source.name,
                    plugin.module,
                    plugin.attribute,
                    plugin.source.distribution,
                    plugin.source.version,
                )
                for plugin in loaded.values()
            ),
            hooks=entries,
            main_name=main_name,
            main_path=main_path,
            counting=any(registry.counting for registry in registries),
        )

    @property
    def empty(self) -> bool:
        """Whether another process would have nothing to do."""
        return not self.plugins and all(hook.local is not None or hook.reverted for hook in self.hooks)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON takes it. Hooks are lists, in the order of the fields of :class:`ManifestHook`."""
        data = dict(vars(self))  # dataclasses.asdict copies everything deeply, which takes as long as all the rest
        data["plugins"] = [dict(vars(plugin)) for plugin in self.plugins]
        data["hooks"] = [tuple(hook) for hook in self.hooks]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """The manifest that :meth:`to_dict` has made.

        Raises:
            ValueError: the data is of another version, or no manifest.
        """
        if not isinstance(data, dict) or data.get("version") != VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"this is no manifest of version {VERSION} but of {found!r}: another hookery has made it")
        try:
            given = dict(data)
            loaded = tuple(ManifestPlugin(**entry) for entry in given.pop("plugins"))
            hooks = tuple(map(_hook_of, given.pop("hooks")))
            return cls(plugins=loaded, hooks=hooks, **given)
        except (TypeError, KeyError) as error:
            raise ValueError(f"the manifest is damaged: {error}") from error

    def to_json(self) -> str:
        """The manifest as text."""
        import json

        return json.JSONEncoder().encode(self.to_dict())  # json.dumps may well be hooked: examples do so

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest that :meth:`to_json` has written.

        Raises:
            ValueError: the text is no JSON, or no manifest of this version.
        """
        import json

        return cls.from_dict(json.JSONDecoder().decode(text))

    def apply(self, registry: HookRegistry, *, warn: bool = True) -> list[Failure]:
        """Have the hooks of the manifest in ``registry``: load the plugins, import the hooks' modules, register what
        that has not registered, in the order and with the options of the manifest, and apply.

        What is there already, because the program has loaded or registered it itself, is left as it is. Hooks of a main
        module are looked for in the main module of this process, which has to be prepared before. Nothing raises: one
        part that fails does not keep the others from being applied.

        Args:
            warn: warn about each failure (HookWarning); where warnings are errors they are printed.

        Returns:
            What is not in place, and why. An empty list means that every hook is applied or waits for its module.
        """
        failures = _Applying(self, registry).run()
        if warn:
            notes = [HookWarning(f"{failure.what} is not in place here: {failure.why}") for failure in failures]
            reporting.warn(notes, never_raise=True)
        return failures


def _hook_of(fields: Any) -> ManifestHook:
    if type(fields) is tuple:
        return ManifestHook._make(fields)
    if type(fields) is not list:
        raise TypeError(f"a hook is a list of its fields, not {fields!r}")
    hook: Any = ManifestHook._make(fields)  # JSON has made lists of what was a tuple
    made: ManifestHook = hook._replace(
        source=tuple(hook.source), plugin=None if hook.plugin is None else tuple(hook.plugin)
    )
    return made


def _entry(hook: Hook, loaded: dict[tuple[str, str], LoadedPlugin]) -> ManifestHook:
    name, source = name_of(hook), hook.source
    key = (source.distribution or "", source.name)
    plugin = key if key in loaded else None
    return ManifestHook(
        target=hook.target,
        type=hook.type.value,
        module=name.module,
        qualname=name.qualname,
        source=(source.name, source.distribution, source.version),
        **options_of(hook),
        deep=hook.deep,
        plugin=plugin,
        local=None if plugin is not None else why_local(hook),  # a plugin that is loaded makes it again
        reverted=hook.state is HookState.REVERTED,
    )


def _main(module: str = MAIN) -> tuple[str | None, str | None]:
    """How the main module was started: its dotted name, or its file."""
    main = sys.modules.get(module)
    name = getattr(getattr(main, "__spec__", None), "name", None)
    return (name, None) if name is not None else (None, getattr(main, "__file__", None))


class _Applying:
    """One application of a manifest."""

    def __init__(self, manifest: Manifest, registry: HookRegistry) -> None:
        self.manifest, self.registry = manifest, registry
        self.failures: list[Failure] = []
        self.failed_plugins: dict[tuple[str, str], str] = {}
        self.failed_modules: dict[str, str] = {}

    def run(self) -> list[Failure]:
        self.registry.counting |= self.manifest.counting
        for plugin in self.manifest.plugins:
            self._load(plugin)
        by_code = [entry for entry in self.manifest.hooks if entry.plugin is None]
        known = {name_of(hook) for hook in self.registry.hooks()} if by_code else set()
        for entry in by_code:
            if not entry.reverted and entry.local is None and entry.name not in known:
                self._import(entry.module)
        placed = self._place()
        self._arrange([hook for _, hook in placed])
        self._apply(placed)
        return self.failures

    def _load(self, plugin: ManifestPlugin) -> None:
        source = HookSource(plugin.name, plugin.distribution, plugin.version)
        known = LoadedPlugin(source, plugin.module, plugin.attribute)
        if known.key in self.registry.loaded_plugins:
            return
        try:
            plugins.load_known(known, self.registry)
        except PluginError as error:
            self.failed_plugins[known.key] = str(error)
            if not any(entry.plugin == known.key and not entry.reverted for entry in self.manifest.hooks):
                self.failures.append(Failure(None, f"plugin {source}", str(error)))

    def _import(self, module: str) -> None:
        """Import the module of a hook, so that its decorators register what they do everywhere."""
        if module == MAIN:
            why_not = self._why_other_main()
            if why_not is not None:
                self.failed_modules[module] = why_not
        elif module not in self.failed_modules:
            try:
                importlib.import_module(module)
            except (Exception, SystemExit) as error:  # noqa: BLE001  (other people's code; it becomes a failure)
                said = f"its module {module} cannot be imported: {type(error).__name__}: {error}"
                self.failed_modules[module] = said

    def _why_other_main(self) -> str | None:
        if getattr(sys.modules.get(MAIN), "__name__", MAIN) != MAIN:
            return None  # multiprocessing has prepared it from what the parent process said
        expected = (self.manifest.main_name, self.manifest.main_path)
        if _main() == expected:
            return None
        return f"it is defined in the main program {expected[0] or expected[1]}, which is not that of this process"

    def _place(self) -> list[tuple[ManifestHook, Hook]]:
        """Find or register every hook; take back what was."""
        taken: set[Hook] = set()  # several may have one name
        in_order = iter(self.registry.hooks())
        placed: list[tuple[ManifestHook, Hook]] = []
        unwanted: list[Hook] = []
        for entry in self.manifest.hooks:
            found = next(in_order, None)  # that is it where the plugins are all that registers
            if found is None or not _is_the_same(found, entry):
                in_order = iter(())  # from here on hooks of one name may be in another order
                found = self._here(entry, taken)
            if found is not None:
                taken.add(found)
            if entry.reverted:
                unwanted += [found] if found is not None else []
                continue
            if found is not None and _differs(found, entry):
                self.registry.take_back([found])
                found = self._register(entry, found.function)
            elif found is None:
                found = self._register(entry)
            if found is None:
                continue
            taken.add(found)
            found.counted |= entry.count
            if entry.plugin is None:
                found.source = HookSource(*entry.source)
            placed.append((entry, found))
        if unwanted:
            self.registry.take_back(unwanted)
        return placed

    def _here(self, entry: ManifestHook, taken: set[Hook]) -> Hook | None:
        """The first of the hooks registered here that are known by the name of ``entry``, but for those ``taken``."""
        for hook in self.registry.hooks(plain_name(entry.target)):
            function = hook.function
            if (
                qualname_of(function) == entry.qualname
                and module_name_of(function) == entry.module
                and hook.type._value_ == entry.type
                and hook not in taken
            ):
                return hook
        return None

    def _register(self, entry: ManifestHook, function: Any = None) -> Hook | None:
        if entry.local is not None and function is None:
            return None  # whoever starts the process has said so
        why = self.failed_plugins.get(entry.plugin) if entry.plugin is not None else None
        why = why or self.failed_modules.get(entry.module)
        if why is None:
            try:
                register: Callable[..., Hook] = self.registry.register  # which checks what the other process has sent
                return register(
                    entry.target,
                    look_up(entry.module, entry.qualname) if function is None else function,
                    HookType(entry.type),
                    priority=entry.priority,
                    engine=entry.engine,
                    on_error=entry.on_error,
                    reason=entry.reason,
                    versions=entry.versions,
                    count=entry.count,
                    subclasses=entry.subclasses,
                    source=HookSource(*entry.source),
                )
            except (AttributeError, KeyError):
                why = "its name leads to nothing in this process"
                if entry.plugin is not None:
                    why = f"the plugin {entry.plugin[1]} has not registered it in this process"
                elif entry.module == MAIN:
                    why += ": what is defined under `if __name__ == '__main__':` exists in the main process alone"
            except (TypeError, ValueError) as error:
                why = str(error)
        self.failures.append(Failure(entry.name, entry.describe(), why))
        return None

    @staticmethod
    def _arrange(hooks: Sequence[Hook]) -> None:
        """Give the hooks the order in which they are in the manifest."""
        if all(one.order < other.order for one, other in itertools.pairwise(hooks)):
            return
        with patches.lock:
            for hook in hooks:
                hook.order = next_order()
            for patch in dict.fromkeys(patch for hook in hooks for patch in patch_table.patches_of(hook)):
                patches.refresh(patch)
            patches.settle()

    def _apply(self, placed: Iterable[tuple[ManifestHook, Hook]]) -> None:
        placed = list(placed)
        if not placed and not self.manifest.plugins:
            return
        with warnings.catch_warnings():
            # What is not in place is returned, and two REPLACE hooks were warned about where they were registered.
            warnings.simplefilter("ignore", HookWarning)
            reach: Reach = "deep" if any(entry.deep for entry in self.manifest.hooks) else "globals"
            failed = self.registry.apply_pending(reach=reach)
        not_here = (HookState.MISSED, HookState.REVERTED)
        for entry, hook in placed:
            if hook.detail and hook.state in not_here:
                self.failures.append(Failure(entry.name, entry.describe(), hook.detail))
        ours = {hook.source for _, hook in placed} if failed else set()
        self.failures += [
            Failure(None, f"the hooks of {source}", str(error)) for source, error in failed if source not in ours
        ]


def _differs(hook: Hook, entry: ManifestHook) -> bool:
    """Whether a hook was registered with other options here, because it was taken back and registered anew there."""
    return bool(_options_here(hook) != _options_there(entry))


def _is_the_same(hook: Hook, entry: ManifestHook) -> bool:
    """Whether a hook is surely what ``entry`` says, which the most are: much faster than to look for it."""
    try:
        return bool(_all_here(hook) == _all_there(entry))
    except AttributeError:  # it has no name
        return False


_options_here = operator.attrgetter("priority", "engine_asked", "on_error", "reason", "versions", "subclasses")
_options_there = operator.attrgetter("priority", "engine", "on_error", "reason", "versions", "subclasses")
_all_here = operator.attrgetter(
    "target",
    "type._value_",
    "function.__module__",
    "function.__qualname__",
    "priority",
    "engine_asked",
    "on_error",
    "reason",
    "versions",
    "subclasses",
)
_all_there = operator.attrgetter(
    "target", "type", "module", "qualname", "priority", "engine", "on_error", "reason", "versions", "subclasses"
)
