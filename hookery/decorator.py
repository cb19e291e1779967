"""The decorator, and what it was used on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from hookery import engines
from hookery.hooks import HookFunction, HookSource, HookType
from hookery.registry import HookRegistry, current_loading, registry

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hookery import callable_types as of


class Declaration(NamedTuple):
    """One use of the decorator, remembered so that a plugin whose module is imported already can register again."""

    target: str
    function: HookFunction
    type: HookType
    options: dict[str, Any]  # all that HookRegistry.register has
    source: HookSource | None  # the plugin that was being loaded

    @property
    def module(self) -> str:
        return getattr(self.function, "__module__", None) or ""

    @property
    def local(self) -> bool:
        """Whether the hook was made inside a function, so that calling that again makes another."""
        return "<locals>" in getattr(self.function, "__qualname__", "<locals>")

    def register(self, registry: HookRegistry) -> None:
        again = registry.register_again(self.target, self.function, self.type, self.options)
        hook = again or registry.register(self.target, self.function, self.type, **self.options)
        hook.declared = True


declarations: list[Declaration] = []


@overload
def plugin_hook(
    target: str,
    type: of.After = ...,
    **options: Unpack[of.ObserverOptions],
) -> Callable[[of.AfterF], of.AfterF]: ...
@overload
def plugin_hook(
    target: str,
    type: of.Before,
    **options: Unpack[of.ObserverOptions],
) -> Callable[[of.BeforeF], of.BeforeF]: ...
@overload
def plugin_hook(
    target: str,
    type: of.Around,
    **options: Unpack[of.Options],
) -> Callable[[of.AroundF], of.AroundF]: ...
@overload
def plugin_hook(
    target: str,
    type: of.Replace,
    **options: Unpack[of.Options],
) -> Callable[[of.ReplaceF], of.ReplaceF]: ...
@overload
def plugin_hook(
    target: str,
    type: HookType,
    **options: Unpack[of.Options],
) -> Callable[[of.AnyTypeF], of.AnyTypeF]: ...
def plugin_hook(
    target: str,
    type: HookType = HookType.AFTER,  # noqa: A002
    *,
    priority: int = 0,
    engine: of.Engine = engines.ENGINE_AUTO,
    on_error: of.OnError = "raise",
    reason: str | None = None,
    versions: str | None = None,
    count: bool | None = None,
    subclasses: bool = False,
) -> Callable[[Any], Any]:
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

    def decorate(function: HookFunction) -> HookFunction:
        loading = current_loading()
        source = loading.source if loading else None
        declaration = Declaration(target, function, type, options, source)
        declaration.register(loading.registry if loading else registry)
        declarations.append(declaration)
        return function

    return decorate
