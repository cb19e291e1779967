"""The imports, reloads and lazy attributes that hooks wait for, and what is done when they come."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Protocol

from hookery import patch_table, patches, reloading
from hookery.deferred import ImportWatcher, modules_to_watch
from hookery.hooks import PENDING, Hook, HookSource, HookWarning
from hookery.lazies import LazyWatcher
from hookery.reporting import warn
from hookery.targets import not_imported

Failure = tuple[HookSource, Exception]


class Registry(Protocol):
    """What a registry does for this."""

    def hooks(self) -> list[Hook]: ...

    def live_targets(self) -> list[str]: ...

    def reapply(self, orphans: list[Hook], module: str) -> None: ...

    def apply_pending(self, *, completed: str | None = None, made: tuple[str, str] | None = None) -> list[Failure]: ...


# Those that have hooks: patches outlive whoever forgets his registry, and a reload has to hook again.
live: dict[Registry, None] = {}


def _on_executed(module: str) -> None:
    """Called inside the import of ``module``, right after its code has run: apply what waited for it."""
    with patches.lock:
        orphans = reloading.supersede(module)
        registries = list(live)
        for registry in registries:
            registry.reapply(orphans, module)
    for registry in registries:
        _report(registry.apply_pending(completed=module), f"while {module} was imported")


def _on_made(package: str, attribute: str) -> None:
    """Called when the lazy ``package`` was asked for ``attribute``, before it answers: apply what waited for that."""
    with patches.lock:
        registries = list(live)
    for registry in registries:
        _report(registry.apply_pending(made=(package, attribute)), f"when {package} made {attribute!r}")


def _report(failures: list[Failure], when: str) -> None:
    notes = [HookWarning(f"hooks of {source} were taken back {when}: {error}") for source, error in failures]
    warn(notes, never_raise=True)


_watcher = ImportWatcher(_on_executed)
_lazy_watcher = LazyWatcher(_on_made)
_HANDS_DOWN = "multiprocessing.process"  # what stands here has to be known to the processes that it starts


def watch_imports() -> None:
    """Watch the modules that pending targets wait for, and those of applied ones (a reload has to hook them again); and
    the attributes of lazy packages that are waited for."""
    modules = {patch.target.module for patch in patch_table.all_patches()}
    for registry in list(live):
        modules |= modules_to_watch(registry.live_targets())
    if modules and _HANDS_DOWN not in sys.modules:
        modules.add(_HANDS_DOWN)
    _watcher.watch(frozenset(modules))
    attributes: dict[str, set[str]] = {}
    for hook in (hook for registry in list(live) for hook in registry.hooks()):
        if hook.waits_for_attribute and hook.waits_for and hook.state is PENDING:
            attributes.setdefault(hook.waits_for, set()).add(hook.waits_for_attribute)
    _lazy_watcher.watch(attributes)


def imported_meanwhile(hooks: Iterable[Hook]) -> bool:
    """Whether another thread has imported what one of the hooks waits for, after that was looked for and before it was
    watched, or has found out more about it than what was noted then."""
    return any(
        hook.state is PENDING
        and hook.waits_for is not None
        and sys.modules.get(hook.waits_for) is not None
        and hook.detail == not_imported(hook.waits_for)
        for hook in hooks
    )
