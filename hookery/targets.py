"""From a dotted or colon name to the thing that stands there.

``pkg.mod.Class.f`` and ``pkg.mod:Class.f`` are one target. Resolving imports nothing unless ``eager`` is set, and never
wakes a package's lazy ``__getattr__``: the end of the module part is looked for in ``vars()`` alone, then in the import
system's own ``find_spec`` once the parent is imported.
"""

from __future__ import annotations

import enum
import functools
import importlib
import importlib.util
import itertools
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

from hookery import raw
from hookery.hooks import HookError, TargetNotFoundError


class TargetKind(enum.Enum):
    """What stands at a target; decides how its arguments reach a hook."""

    FUNCTION = "function"  # a plain function of a module
    METHOD = "method"  # a plain function of a class: args[0] is self
    CLASSMETHOD = "classmethod"  # args[0] is cls
    STATICMETHOD = "staticmethod"  # no first argument
    PROPERTY = "property"  # its getter, setter or deleter: args[0] is self
    CACHED_PROPERTY = "cached property"  # args[0] is self; runs where the value is computed
    CLASS = "class"  # can only be REPLACEd
    CALLABLE = "callable"  # any other callable: a C function, an object with __call__
    ABSENT = "absent"  # a module attribute that is None: can only be REPLACEd


class Target(NamedTuple):
    """A resolved target.

    ``raw`` is the object as it lies in the owner's namespace (a ``staticmethod`` object, not what it wraps), found
    along the MRO; ``inherited`` says that the owner's own namespace does not hold it.
    """

    module: str
    qualname: str
    owner: Any
    attribute: str
    raw: Any
    kind: TargetKind
    inherited: bool
    accessor: str | None = None  # of a property: fget, fset or fdel

    @property
    def name(self) -> str:
        return f"{self.module}:{self.qualname}"

    @property
    def class_depth(self) -> tuple[bool, int]:
        """Sort key: classes first, outermost first."""
        is_class = self.kind is TargetKind.CLASS
        return (not is_class, self.qualname.count(".") if is_class else 0)

    @property
    def binds(self) -> bool:
        """Whether looking it up on an instance or class adds a first argument, which hooks see as ``args[0]``."""
        if self.kind in (TargetKind.PROPERTY, TargetKind.CACHED_PROPERTY):
            return False  # what stands in for an accessor is called with self
        if isinstance(self.raw, (staticmethod, types.MethodType, types.BuiltinFunctionType)):
            return False
        return hasattr(type(self.raw), "__get__")

    @property
    def first_is_bound(self) -> bool:
        """Whether hooks see ``self`` or ``cls`` first."""
        if isinstance(self.owner, types.ModuleType) or self.kind is TargetKind.STATICMETHOD:
            return False
        return self.binds or self.kind in (TargetKind.PROPERTY, TargetKind.CACHED_PROPERTY)

    @property
    def inner(self) -> Any:
        """The callable in the descriptor, where it is one of Python's own; else the raw object."""
        raw: Any = self.raw
        if self.accessor is not None:
            return getattr(raw, self.accessor)
        if self.kind is TargetKind.CACHED_PROPERTY:
            return raw.func
        return raw.__func__ if issubclass(type(raw), (classmethod, staticmethod)) else raw

    @property
    def inspected(self) -> Any:
        """The function that says whether the target is a coroutine function or a generator function."""
        if self.kind in (TargetKind.CLASSMETHOD, TargetKind.STATICMETHOD):
            return getattr(self.raw, "__func__", self.raw)
        return self.raw.func if isinstance(self.raw, functools.partialmethod) else self.inner

    @property
    def function(self) -> Callable[..., Any]:
        """What ``original_fn`` calls when nothing is replaced; it takes the arguments that hooks of this target see."""
        raw, owner = self.raw, self.owner
        function: Callable[..., Any] = self.inner
        if self.kind is TargetKind.ABSENT:
            function = functools.partial(_call_nothing, self.name)
        elif self.inherited:
            function = _next_in_line(self)
        elif isinstance(raw, functools.partialmethod):
            function = lambda first, /, *args, **kwargs: raw.__get__(first, type(first))(*args, **kwargs)  # noqa: E731
        elif issubclass(type(raw), (classmethod, staticmethod)):
            pass
        # Else somebody's wrapper may look like the descriptor it wraps: only binding it reaches the wrapper.
        elif self.kind is TargetKind.STATICMETHOD:
            function = lambda *args, **kwargs: raw.__get__(None, owner)(*args, **kwargs)  # noqa: E731
        elif self.kind is TargetKind.CLASSMETHOD:
            function = lambda cls, /, *args, **kwargs: raw.__get__(None, cls)(*args, **kwargs)  # noqa: E731
        return function


def _next_in_line(target: Target) -> Callable[..., Any]:
    """Call what ``super()`` finds behind the owner at that moment: hooks on the base class run whenever they were
    applied, and where the owner is one of several bases the next one in line is not skipped."""
    raw, owner, attribute, accessor = target.raw, target.owner, target.attribute, target.accessor

    def of_class(*args: Any, **kwargs: Any) -> Any:
        return getattr(super(owner, owner), attribute)(*args, **kwargs)

    def of_first(first: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(first, owner) and not (isinstance(first, type) and issubclass(first, owner)):
            return raw(first, *args, **kwargs)  # called on the class, with something else as self
        return getattr(super(owner, first), attribute)(*args, **kwargs)

    def of_property(first: Any, /, *args: Any) -> Any:
        line = type(first).__mro__
        behind = line[line.index(owner) + 1 :] if owner in line else ()
        found = next((vars(base)[attribute] for base in behind if attribute in vars(base)), raw)
        if accessor == "fset":
            return found.__set__(first, *args)
        return found.__delete__(first) if accessor == "fdel" else found.__get__(first, type(first))

    if target.kind in (TargetKind.PROPERTY, TargetKind.CACHED_PROPERTY):
        return of_property
    return of_first if target.binds else of_class


def _call_nothing(name: str, *args: Any, **kwargs: Any) -> Any:
    raise TypeError(f"{name} is None; no hook replaces it any more")


class Pending(NamedTuple):
    """A target that cannot be resolved yet. ``module`` is what has to be imported, ``why`` says it in words;
    ``attribute`` is what it waits for where the module is imported and makes attributes when they are asked for."""

    module: str
    why: str
    attribute: str | None = None


def not_imported(module: str) -> str:
    """Why names in a module wait that nobody has begun to import."""
    return f"{module} is not imported yet"


class Survey(NamedTuple):
    """What was found out about modules while several names were resolved in a row: which exist, and what names in them
    wait for. Looking for a module costs more than everything else about a name that has to wait."""

    specs: set[str]
    waiting: dict[str, Pending]

    def waits_for(self, name: str) -> Pending | None:
        """What ``name`` waits for, if a name beside it was found to wait for a module that is still not imported."""
        found = self.waiting.get(_beside(name))
        return None if found is None or found.module in sys.modules else found


def _beside(name: str) -> str:
    """What is the same for names that wait for one module."""
    module, colon, _ = name.partition(":")
    if colon:
        return module + colon
    top = name.partition(".")[0]
    return name.rpartition(".")[0] if top in sys.modules else top


def validate_name(name: str) -> str:
    """Return ``name`` if it can name a target.

    Raises:
        ValueError: it is not of the form ``pkg.mod.attr`` or ``pkg.mod:attr``.
    """
    module, colon, qualname = name.partition(":")
    parts = [*module.split("."), *(qualname.split(".") if colon else [])]
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f"{name!r} does not name a hook target;"
            " write 'package.module.attribute' or 'package.module:Class.attribute'"
        )
    return name


def may_concern(name: str, module: str) -> bool:
    """Whether importing ``module`` can make the target ``name`` resolvable."""
    target_module, colon, _ = name.partition(":")
    if colon:
        return target_module == module
    return name.startswith(module + ".")


def resolve(
    name: str, *, eager: bool = False, completed: str | None = None, survey: Survey | None = None
) -> Target | Pending:
    """Resolve ``name`` to a :class:`Target`, or say what it still waits for.

    Args:
        eager: import what the name needs, and let lazy packages load the attribute.
        completed: a module whose code has just run to its end although the import system still has it as
            initializing (the moment at which import hooks fire).
        survey: what was found out while other names were resolved; added to.

    Raises:
        TargetNotFoundError: some part of the name does not exist; the message names the part and the closest names.
        TypeError: the name leads to something that cannot be hooked.
        HookError: a module's code ends the program when it is imported or asked for an attribute.
    """
    survey = Survey(set(), {}) if survey is None else survey
    try:
        return _resolve(name, survey, eager=eager, completed=completed)
    except SystemExit as error:
        raise _ended(name, error) from error


def _resolve(name: str, survey: Survey, *, eager: bool, completed: str | None) -> Target | Pending:
    if eager:
        survey.waiting.clear()  # what is imported now may bind anything
    split = _split(name, survey.specs, eager=eager, completed=completed)
    if isinstance(split, Pending):
        survey.waiting[_beside(name)] = split
        return split
    module_name, module, parts = split
    if main_is_to_come and _leads_through_main(module, parts):
        return Pending(_MAIN, why_main_waits)
    if parts[0] not in _names(module) and not eager and _is_lazy(module):
        why = f"{module_name} has not bound {parts[0]!r} yet (it is a lazy attribute)"
        return Pending(module_name, why, parts[0])
    real_name = _names(module).get("__name__")
    if sys.modules.get(real_name or "") is module:
        module_name = str(real_name)  # posixpath, for os.path: a reload of the module goes by that name
    if len(parts) > 2 and parts[-1] in ACCESSORS:
        in_class = _owner(name, module_name, module, parts[:-1])
        if isinstance(in_class, type) and isinstance(_along_mro(in_class, parts[-2])[1], property):
            return _at(name, module_name, parts, in_class)
    owner = _owner(name, module_name, module, parts)
    return _at(name, module_name, parts, owner)


ACCESSORS = ("fget", "fset", "fdel")
_MAIN = "__main__"
main_is_to_come = False
"""Whether the program has still to define what there is in ``__main__``; see :mod:`hookery.main_module`."""
why_main_waits = "the program has not come to its `if __name__ == '__main__':`"
"""What is said of targets there until then."""


def _ended(name: str, error: SystemExit) -> HookError:
    """What to raise where a module that is imported would end the program: naming a target asks for no such thing."""
    return HookError(
        f"hook target {name!r} cannot be resolved: code that runs when it is imported ended the program"
        f' (SystemExit: {error.code}); what calls sys.exit() there belongs under `if __name__ == "__main__":`'
    )


def _is_main_to_come(module: Any) -> bool:
    """Whether it is the main module, under whatever name, and not the one that multiprocessing has prepared."""
    return main_is_to_come and module is sys.modules.get(_MAIN) and _names(module).get("__name__") == _MAIN


def _leads_through_main(module: types.ModuleType, parts: list[str]) -> bool:
    """Whether a name leads from another module, which has imported the main module, into that."""
    step: Any = module
    for part in parts[:-1]:
        step = raw.attributes(step).get(part)
        if _is_main_to_come(step):
            return True
    return False


def _along_mro(owner: type, attribute: str) -> tuple[type | None, Any]:
    """The class that holds an attribute, and the raw attribute."""
    holder = next((base for base in owner.__mro__ if attribute in vars(base)), None)
    return holder, None if holder is None else vars(holder)[attribute]


def owner_path(qualname: str) -> list[str]:
    """The names that lead from the module to the owner of what stands at ``qualname``."""
    parts = qualname.split(".")
    return parts[:-2] if len(parts) > 2 and parts[-1] in ACCESSORS else parts[:-1]


def leads_elsewhere(place: str, owner: Any, classes: list[Any]) -> bool:
    """Whether a member's name leads through one of ``classes`` now, to another owner than ``owner``."""
    module, _, qualname = place.partition(":")
    step: Any = sys.modules.get(module)
    changed = False
    for part in owner_path(qualname):
        step = raw.attributes(step).get(part)
        changed |= any(step is new for new in classes)
    return changed and step is not owner


def _is_lazy(module: types.ModuleType) -> bool:
    """Whether the module makes attributes when they are asked for: by its own ``__getattr__`` or its class's."""
    if "__getattr__" in _names(module):
        return True
    bases = itertools.takewhile(lambda base: base not in (types.ModuleType, object), raw.mro(type(module)))
    return any({"__getattr__", "__getattribute__"} & raw.class_namespace(base).keys() for base in bases)


def _names(module: Any) -> dict[str, Any]:
    """What a module has bound, without asking it."""
    return raw.namespace(module) or {}


def _split(
    name: str, specs: set[str], *, eager: bool, completed: str | None
) -> tuple[str, types.ModuleType, list[str]] | Pending:
    """Find where the module part of ``name`` ends: the module's name, the module, and the rest of the name."""
    module_name, colon, qualname = name.partition(":")
    parts = module_name.split(".")
    if colon:
        found = _import_or_wait(name, module_name, specs, eager=eager, completed=completed)
        if type(found) is Pending:  # a module may be lazy: it is not asked what it is
            return found
        return module_name, cast("types.ModuleType", found), qualname.split(".")
    module_name, taken = parts[0], 1
    while True:
        submodule_name = f"{module_name}.{parts[taken]}"
        more = taken < len(parts) - 1
        parent = sys.modules.get(module_name)
        if parent is not None and more and sys.modules.get(submodule_name) is not None:
            module_name, taken = submodule_name, taken + 1  # whether the parent's own body has finished matters not
            continue
        found = _import_or_wait(name, module_name, specs, eager=eager, completed=completed)
        if type(found) is Pending:
            # An attribute may stand in a package whose body has not finished, so that is what the target waits for.
            return found
        found = cast("types.ModuleType", found)
        if not more:
            return module_name, found, parts[taken:]
        value = _names(found).get(parts[taken])
        known_as = str(_names(value).get("__name__")) if raw.is_module(value) else ""
        if known_as and sys.modules.get(known_as) is value:
            submodule_name = known_as  # a module under another name, such as os.path
        elif value is not None or not _has_spec(found, submodule_name, specs):
            return module_name, found, parts[taken:]
        module_name, taken = submodule_name, taken + 1


def _import_or_wait(
    name: str, module_name: str, specs: set[str], *, eager: bool, completed: str | None
) -> types.ModuleType | Pending:
    module = sys.modules.get(module_name)
    if module is None and eager:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name + ".").startswith(error.name + "."):
                raise _not_found(name, error.name.rpartition(".")[2], error.name.rpartition(".")[0]) from None
            raise
    if module is None:
        parent, _, leaf = module_name.rpartition(".")
        if parent and parent not in sys.modules:
            missing = _first_missing(module_name, specs)
            if missing is not None:
                raise _not_found(name, missing.rpartition(".")[2], missing.rpartition(".")[0])
        elif not _spec_exists(module_name, specs):
            raise _not_found(name, leaf, parent)
        return Pending(module_name, not_imported(module_name))
    if _is_main_to_come(module):
        return Pending(_MAIN, why_main_waits)
    spec = _names(module).get("__spec__")
    if module_name != completed and getattr(spec, "_initializing", False):
        return Pending(module_name, f"{module_name} is being imported")
    return module


def _first_missing(module_name: str, specs: set[str]) -> str | None:
    """The first package of a colon name's module part that surely does not exist, importing nothing."""
    parts = module_name.split(".")
    for length in range(1, len(parts) + 1):
        prefix = ".".join(parts[:length])
        if prefix in sys.modules:
            continue
        return None if _spec_exists(prefix, specs) else prefix
    return None


def _has_spec(package: types.ModuleType, submodule_name: str, specs: set[str]) -> bool:
    return "__path__" in _names(package) and _spec_exists(submodule_name, specs)


def _spec_exists(module_name: str, specs: set[str]) -> bool:
    if module_name in specs:
        return True
    try:
        if importlib.util.find_spec(module_name) is None:
            return False
    except (ImportError, ValueError):
        return False
    specs.add(module_name)
    return True


def _owner(name: str, module_name: str, module: types.ModuleType, parts: list[str]) -> Any:
    """The module or class that holds the last part; a name that passes through an instance means its class."""
    try:
        owner = module if len(parts) == 1 else pkgutil.resolve_name(f"{module_name}:{'.'.join(parts[:-1])}")
    except AttributeError:
        holder: Any = module
        for position, part in enumerate(parts[:-1]):
            if not hasattr(holder, part):
                where = ".".join([module_name, *parts[:position]])
                raise _not_found(name, part, where, _names_in(holder)) from None
            holder = getattr(holder, part)
        raise
    if isinstance(owner, (type, types.ModuleType)):
        return owner
    _refuse_what_an_instance_hides(name, owner, parts[-1])
    return type(owner)


def _refuse_what_an_instance_hides(name: str, instance: Any, attribute: str) -> None:
    """Raise for a name that leads to an instance's own attribute: a hook goes to the class, and would not run."""
    if attribute not in (raw.namespace(instance) or ()):
        return
    cls = type(instance)
    in_class = _along_mro(cls, attribute)[1]
    if hasattr(type(in_class), "__set__") or issubclass(type(in_class), functools.cached_property):
        return  # the class's goes first, or the instance's is what it computed
    raise TypeError(
        f"{name}: the instance has a {attribute!r} of its own, in front of what its class"
        f" {cls.__module__}.{cls.__qualname__} has; hooks go to classes, and this one would not run"
    )


def _at(name: str, module_name: str, parts: list[str], owner: Any) -> Target:
    attribute, accessor = parts[-1], None
    inherited = False
    if isinstance(owner, types.ModuleType):
        if attribute not in _names(owner) and not hasattr(owner, attribute):
            raise _not_found(name, attribute, owner.__name__, _names_in(owner))
        found = _names(owner)[attribute] if attribute in _names(owner) else getattr(owner, attribute)
    else:
        if len(parts) > 2 and attribute in ACCESSORS and isinstance(_along_mro(owner, parts[-2])[1], property):
            attribute, accessor = parts[-2], attribute
        holder, found = _along_mro(owner, attribute)
        if holder is None:
            where = ".".join([module_name, *parts[:-1]])
            meta, hint = type(owner), None
            if _along_mro(meta, attribute)[0] is not None:
                hint = f"; it is an attribute of its metaclass, {meta.__module__}.{meta.__qualname__}"
            raise _not_found(name, attribute, where, _names_in(owner), hint=hint)
        inherited = holder is not owner
    kind = _kind(name, owner, found)
    if kind is TargetKind.PROPERTY:
        accessor = accessor or "fget"
        if getattr(found, accessor) is None:
            present = [each for each in ACCESSORS if getattr(found, each) is not None]
            where = ".".join([module_name, *owner_path(".".join(parts)), attribute])
            raise _not_found(name, accessor, where, present, hint=f"; the property has {', '.join(present) or 'none'}")
        if accessor == "fget":  # pkg.mod.Class.p and pkg.mod.Class.p.fget are one target
            parts = [*owner_path(".".join(parts)), attribute]
    return Target(module_name, ".".join(parts), owner, attribute, found, kind, inherited, accessor)


def again(target: Target) -> Target:
    """What stands at the target's name in its owner now: another thread may have changed that since.

    Raises:
        TargetNotFoundError, TypeError, HookError: as :func:`resolve`.
    """
    if (
        not target.inherited
        and target.accessor is None
        and raw.attributes(target.owner).get(target.attribute) is target.raw
    ):
        return target
    try:
        return _at(target.name, target.module, target.qualname.split("."), target.owner)
    except SystemExit as error:
        raise _ended(target.name, error) from error


def _kind(name: str, owner: Any, raw: Any) -> TargetKind:
    # isinstance, not type(): what already stands in for a function or a descriptor claims the class of what it wraps.
    if isinstance(raw, (classmethod, types.ClassMethodDescriptorType)):
        return TargetKind.CLASSMETHOD
    if isinstance(raw, staticmethod):
        return TargetKind.STATICMETHOD
    if isinstance(raw, type):
        return TargetKind.CLASS
    if issubclass(type(raw), property):
        return TargetKind.PROPERTY
    if issubclass(type(raw), functools.cached_property):
        return TargetKind.CACHED_PROPERTY
    if raw is None and isinstance(owner, types.ModuleType):
        return TargetKind.ABSENT
    if isinstance(raw, types.FunctionType):
        return TargetKind.FUNCTION if isinstance(owner, types.ModuleType) else TargetKind.METHOD
    if callable(raw) or isinstance(raw, functools.partialmethod):
        return TargetKind.CALLABLE
    raise TypeError(
        f"{name}: {type(raw).__name__} objects cannot be hooked; hook targets are functions, methods, classmethods,"
        " staticmethods, properties, classes and other callables, and module attributes that are None"
    )


def _names_in(holder: Any) -> Iterator[str]:
    if isinstance(holder, types.ModuleType):
        yield from _names(holder)
        for info in pkgutil.iter_modules(_names(holder).get("__path__") or []):
            yield info.name
    else:
        yield from dir(holder)


def _not_found(
    name: str, part: str, where: str, candidates: Iterable[str] | None = None, *, hint: str | None = None
) -> TargetNotFoundError:
    import difflib  # slow to import, and most names exist

    if candidates is None:
        parent = sys.modules.get(where)
        if parent is not None:
            candidates = _names_in(parent)
        elif where:
            candidates = []
        else:
            candidates = {
                *sys.stdlib_module_names,
                *sys.modules,
                *(info.name for info in pkgutil.iter_modules()),
            }

    close = difflib.get_close_matches(part, [c for c in set(candidates) if "." not in c], n=3)
    place = f"{where!r} has no {part!r}" if where else f"there is no module {part!r}"
    if hint is None:
        hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return TargetNotFoundError(f"hook target {name!r} does not exist: {place}{hint}")
