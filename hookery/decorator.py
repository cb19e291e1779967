"""The decorator, and what it was used on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hookery import engines
from hookery.hooks import HookFunction, HookSource, HookType
from hookery.registry import HookRegistry, current_loading, registry

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Declaration:
    """One use of the decorator, remembered so that a plugin whose module is imported already can register again."""

    target: str
    function: HookFunction
    type: HookType
    options: dict[str, Any]
    source: HookSource | None  # the plugin that was being loaded

    @property
    def module(self) -> str:
        return getattr(self.function, "__module__", None) or ""

    @property
    def local(self) -> bool:
        """Whether the hook was made inside a function, so that calling that again makes another."""
        return "<locals>" in getattr(self.function, "__qualname__", "<locals>")

    def register(self, registry: HookRegistry) -> None:
        registry.register(self.target, self.function, self.type, **self.options).declared = True


declarations: list[Declaration] = []


def plugin_hook(
    target: str,
    type: HookType = HookType.AFTER,  # noqa: A002  (the contract's name)
    *,
    priority: int = 0,
    engine: str = engines.ENGINE_AUTO,
    on_error: str = "raise",
    reason: str | None = None,
    versions: str | None = None,
    count: bool | None = None,
    subclasses: bool = False,
) -> Callable[[F], F]:
    """Register the decorated function (or class, for REPLACE) as a hook on ``target`` and return it unchanged.

    See :class:`HookType` for how it will be called and :meth:`HookRegistry.register` for the arguments and errors. The
    hook takes effect with ``load_plugins()`` or ``hookery.registry.apply_hooks()``.
    """

    options: dict[str, Any] = {
        "priority": priority,
        "engine": engine,
        "on_error": on_error,
        "reason": reason,
        "versions": versions,
        "count": count,
        "subclasses": subclasses,
    }

    def decorate(function: F) -> F:
        loading = current_loading()
        source = loading.source if loading else None
        declaration = Declaration(target, function, type, options, source)
        declaration.register(loading.registry if loading else registry)
        declarations.append(declaration)
        return function

    return decorate
