"""The records of the engine: what a hook is, where it came from, and what went wrong. Plain data, no behaviour."""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable
from typing import Any, Final, NamedTuple

HookFunction = Callable[..., Any]


class HookType(enum.Enum):
    """How a hook is called, relative to its target.

    ========  ====================================  ==================================================
    type      called as                             returns
    ========  ====================================  ==================================================
    BEFORE    ``hook(*args, **kwargs)``             ``None``, or ``(args, kwargs)`` to use instead
    AFTER     ``hook(result, *args, **kwargs)``     ``None`` to keep the result, a value to use instead,
                                                    :data:`NONE` to make it ``None``
    AROUND    ``hook(original_fn, *args, **kw)``    the result
    REPLACE   ``hook(*args, **kwargs)``, or a       the result
              class for a class
    ========  ====================================  ==================================================
    """

    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"

    __hash__ = object.__hash__  # each is one object; an enumeration's own is written in Python, and slow


class HookState(enum.Enum):
    """Where a hook stands. Only ``APPLIED`` hooks can run."""

    APPLIED = "applied"
    PENDING = "pending"  # not applied yet, or its module is not imported yet
    MISSED = "missed"  # its target does not exist
    SKIPPED = "skipped"  # outranked by another REPLACE, outside its versions, or disabled after an error
    REVERTED = "reverted"  # taken back, by ``revert`` or because its source failed

    __hash__ = object.__hash__  # as that of HookType


# For what asks every hook: a member is found slowly through its class, before CPython 3.12.
APPLIED, PENDING, REVERTED = HookState.APPLIED, HookState.PENDING, HookState.REVERTED


class _NoneResult:
    """The type of :data:`NONE`; it has one instance."""

    _instance: _NoneResult | None = None

    def __new__(cls) -> _NoneResult:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "hookery.NONE"

    def __reduce__(self) -> str:
        return "NONE"


NONE: Final = _NoneResult()
"""What an AFTER hook returns to turn the result into ``None`` (a plain ``None`` keeps the result)."""


class HookSource(NamedTuple):
    """Who registered a hook. All hooks of one source are applied, or undone, together.

    ``name`` is the entry point's name for an installed plugin, the module for one asked for by module, and the
    hook's own module for a hook that code registered; ``distribution`` is the installed distribution, if any.
    """

    name: str
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        if self.distribution is None:
            return self.name
        return (
            f"{self.name} ({self.distribution} {self.version})"
            if self.version
            else f"{self.name} ({self.distribution})"
        )


class LoadedPlugin(NamedTuple):
    """A plugin that was loaded, and what another process has to do to load it: import ``module``, and call
    ``attribute`` of it if there is one. ``asked_for``: by name."""

    source: HookSource
    module: str
    attribute: str | None = None
    asked_for: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What tells plugins apart: the distribution, or "", and the name."""
        return (self.source.distribution or "", self.source.name)


class Mark:
    """Whether a hook ran; what its stand-in writes, with nothing else in reach."""

    __slots__ = ("ran",)

    def __init__(self) -> None:
        self.ran = False


class Hook:
    """One registered hook. ``mark``, ``calls``, ``last_error`` and ``disabled`` are written by the stand-in, the rest
    by the registry. ``engine`` is what it was put in place with, ``engine_asked`` what was asked for."""

    def __init__(
        self,
        target: str,
        function: HookFunction,
        type: HookType,  # noqa: A002
        source: HookSource,
        priority: int = 0,
        order: int = 0,
        reason: str | None = None,
        counted: bool = False,
    ) -> None:
        self.target = target
        self.plain_target = target.replace(":", ".")  # in the one spelling that names are compared in
        self.function = function
        self.type = type
        self.source = source
        self.priority = priority
        self.order = order
        self.reason = reason
        self.counted = counted
        self.subclasses = False  # hook what overrides the target in subclasses too
        self.deep = False  # reach more than module globals
        self.declared = False  # by the decorator: importing its module registers it
        self.handed_down = False  # it was there when hooks were applied: processes started since then have it
        self.state = HookState.PENDING
        self.detail = ""
        self.waits_for: str | None = None  # while it is pending: the module
        self.waits_for_attribute: str | None = None  # and what a lazy package makes when it is asked for it
        self.engine: str | None = None
        self.place = ""  # the name, in colon form, under which the target was found
        self.calls = 0
        self.engine_asked = "auto"
        self.engine_reason = ""
        self.on_error = "raise"
        self.versions: str | None = None
        self.last_error: str | None = None
        self.notes: tuple[str, ...] = ()  # what the program has to say of it
        self.disabled = False  # raised, and asked to be taken out then
        self.mark = Mark()

    def __repr__(self) -> str:
        return f"<{self.describe()}, {self.state.value}>"

    @property
    def ran(self) -> bool:
        """Whether it was ever called."""
        return self.mark.ran

    @property
    def submitted(self) -> bool:
        """Whether it was there when hooks were last applied."""
        return self.state is not HookState.PENDING or bool(self.detail)

    @property
    def function_name(self) -> str:
        """``module:qualified.name`` of the hook itself."""
        module = getattr(self.function, "__module__", None) or type(self.function).__module__
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        return f"{module}:{name}"

    def own_globals(self) -> dict[str, Any] | None:
        """The globals of the module that the hook was written in, or ``None`` if the hook has none."""
        import sys

        function: Any = self.function
        if type(function) is types.FunctionType:
            return function.__globals__
        while True:
            if isinstance(function, functools.partial):
                function = function.func
            elif isinstance(function, types.MethodType):
                function = function.__func__
            else:
                break
        found = getattr(function, "__globals__", None)
        if type(found) is dict:
            return found
        module = sys.modules.get(getattr(function, "__module__", None) or "")
        return None if module is None else vars(module)

    def describe(self) -> str:
        """``AROUND pkg.plugin:hook on pkg.mod.f``: for messages."""
        return f"{self.type.name} {self.function_name} on {self.target}"


class HookError(Exception):
    """Base of the errors of hookery. The message says what happened, where, and what to do."""


class TargetNotFoundError(HookError):
    """A target's name does not resolve: some part of it does not exist."""


class HookApplyError(HookError):
    """Hooks could not be applied; every hook of the sources it names was taken back."""


class PluginError(HookError):
    """A plugin could not be loaded."""


class HookWarning(UserWarning):
    """A hook or a plugin that will not run as asked, where the program goes on."""


class MissedHookWarning(HookWarning):
    """A hook that will not run because its target does not exist."""
