"""Operations that every platform may do in its own way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, ClassVar

from runtime.core.errors import ConfigError
from runtime.platforms import answers
from runtime.platforms.discovery import IN_TREE

_FORWARD = "forward_"
_NATIVE = "forward_native"


class MultiPlatformOp:
    """An operation with one forward per platform.

    A subclass writes `forward_native` in torch operations that any device has, and where it pays a `forward_cuda`,
    `forward_cpu` and so on with the same parameters. Callers call `forward`: it runs `forward_<key>`, the key being
    the platform's `get_dispatch_key()`, or `forward_native` where the op has none. A platform that comes from a plugin
    adds its own with `register_oot_forward`.

    Which forward runs is decided once per class, at the first call. It is then looked up by name at every call, so that
    a hook on `forward_native` or `forward_<key>` takes whenever it is applied. An op that runs in every layer writes
    its own `forward` with its own parameters, one line: passing `*args, **kwargs` on takes several times as long.

    Raises:
        ConfigError: when a subclass is defined: it has no `forward_native`, or a forward with other parameters.
    """

    forward_native: Callable[..., Any]
    _forward_name: ClassVar[str | None] = None
    # The forwards that the class brings itself. Its namespace does not tell: a hook on what it inherits stands there.
    _own_forwards: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not callable(getattr(cls, _NATIVE, None)):
            raise ConfigError(f"{_shown(cls)} is no MultiPlatformOp: it has no {_NATIVE}")
        cls._forward_name = None
        cls._own_forwards = {
            name: value for name, value in vars(cls).items() if name.startswith(_FORWARD) and callable(value)
        }
        for name, value in cls._own_forwards.items():
            _check_signature(cls, value, f"{_shown(cls)}.{name}")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The operation as the current platform does it; parameters and result are those of `forward_native`."""
        return getattr(self, self._forward_name or self.resolve_forward())(*args, **kwargs)

    @classmethod
    def resolve_forward(cls) -> str:
        """The name of the method that `forward` runs, decided now for the current platform.

        A subclass that brings another `forward_native` does not run the platform's forward of the class it overrides.

        Raises:
            PlatformError: no platform can be chosen.
            ConfigError: its dispatch key is no part of an identifier.
        """
        name = f"{_FORWARD}{answers.get_dispatch_key()}"
        ops = (each for each in cls.__mro__ if issubclass(each, MultiPlatformOp))
        first = next(each for each in ops if each._own_forwards.keys() & {name, _NATIVE})
        cls._forward_name = name if name in first._own_forwards else _NATIVE
        return cls._forward_name

    @classmethod
    def register_oot_forward(cls, forward: Callable[..., Any], key: str) -> None:
        """Add the forward of a platform that comes from a plugin; it takes at once, for instances there are too.

        Args:
            forward: a function of the instance and the parameters of `forward_native`; it becomes `forward_<key>`.
            key: the platform's dispatch key. One of another platform is welcome, and does not run on this one; for what
                looks like a mistake there is a warning when a model is loaded, see `unused_forwards`.

        Raises:
            ConfigError: `forward` is no function or does not take the calls `forward_native` takes, the key is an
                in-tree platform's or no identifier, or another function has been registered for it, or a re-made one
                while there are hooks on the first.
        """
        name = f"{_FORWARD}{key}"
        what = f"{_shown(cls)}.register_oot_forward(..., {key!r})"
        if key in (*IN_TREE, "native"):
            raise ConfigError(f"{what}: {key} is not a plugin's; hook {_shown(cls)}.{name} to change what is in-tree")
        if not name.isidentifier():
            raise ConfigError(f"{what}: the key must be part of an identifier, like a device_name")
        if not isinstance(forward, FunctionType):
            raise ConfigError(f"{what}: {forward!r} is no function; wrap it in one that takes the instance first")
        _check_signature(cls, forward, what)
        present = cls._own_forwards.get(name)
        if present is forward:
            return  # what stands there may be hooked by now
        if present is not None and not _is_same(present, forward):
            raise ConfigError(f"{what}: {'.'.join(_identity(present))} is registered already")
        if vars(cls).get(name) is not present:
            raise ConfigError(f"{what}: {_shown(cls)}.{name} is hooked, and the hook would be lost; revert it first")
        setattr(cls, name, forward)
        cls._own_forwards = {**cls._own_forwards, name: forward}
        for each in _with_subclasses(cls):
            each._forward_name = None  # decided anew at the next call


def _check_signature(cls: type[MultiPlatformOp], forward: Any, what: str) -> None:
    """Raise unless `forward` takes every call that the class's `forward_native` takes."""
    native = getattr(cls, _NATIVE)
    parameters = list(inspect.signature(native).parameters.values())[1:]
    positional = [None] * (len(parameters) + 1)
    required = [None, *(None for each in parameters if each.default is inspect.Parameter.empty)]
    try:
        signature = inspect.signature(forward)
        signature.bind(*positional)
        signature.bind(*required)
        signature.bind(None, **{each.name: None for each in parameters})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what}: {'.'.join(_identity(forward))}{_signature(forward)} does not take the calls that"
            f" {'.'.join(_identity(native))}{_signature(native)} takes: {error}"
        ) from error


def _signature(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(unknown)"


def _identity(function: Any) -> tuple[str, str]:
    """Module and name: what stays the same when a plugin is loaded again."""
    module = getattr(function, "__module__", None) or "?"
    return module, getattr(function, "__qualname__", None) or repr(function)


def _is_same(present: Any, forward: Any) -> bool:
    """Whether `forward` is what a reload of its module has made of what is `present`."""
    return _identity(present) == _identity(forward) and "<" not in _identity(forward)[1]


def _shown(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _with_subclasses(cls: type[MultiPlatformOp]) -> Iterator[type[MultiPlatformOp]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _with_subclasses(subclass)
