"""Registering hooks, applying them and taking them back.

A registry owns hooks; what is patched lives in the process-wide table of :mod:`hookery.patches`, which all registries
share. Resolving (which may import) is done without the lock, changing the table with it.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from hookery import engines, own_modules, patch_table, patches, watching
from hookery.fitting import check_options
from hookery.hooks import (
    APPLIED,
    PENDING,
    REVERTED,
    Hook,
    HookApplyError,
    HookError,
    HookFunction,
    HookSource,
    HookState,
    HookType,
    HookWarning,
    LoadedPlugin,
    MissedHookWarning,
    TargetNotFoundError,
)
from hookery.naming import why_local
from hookery.reporting import warn
from hookery.sameness import is_registered_so, is_same, options_of, plain_name
from hookery.targets import Pending, Survey, Target, TargetKind, again, resolve, validate_name
from hookery.versions import check_specifier, check_versions_are_known, outside_versions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hookery import callable_types as of
    from hookery.explanation import Explanation, Problem
    from hookery.listing import HookRecord, Said

Failure = tuple[HookSource, Exception]
Reach = Literal["globals", "deep"]


class HookRegistry:
    """A set of hooks that are applied and taken back together or one by one.

    ``hookery.registry`` is the process's own; a test can make another. With ``counting`` on (or ``HOOKERY_COUNT=1``)
    the hooks registered from then on count their calls; whether a hook ran is always known.
    """

    def __init__(self, *, counting: bool | None = None) -> None:
        self.counting = os.environ.get("HOOKERY_COUNT") == "1" if counting is None else counting
        self.loaded_plugins: dict[tuple[str, str], LoadedPlugin] = {}  # by key, in the order of loading
        self._hooks: list[Hook] = []
        self._by_target: dict[str, list[Hook]] = {}  # the same ones, by the plain name of their target

    @overload
    def register(
        self, target: str, hook: of.BeforeHook, hook_type: of.Before, **options: Unpack[of.ObserverOptionsAndSource]
    ) -> Hook: ...
    @overload
    def register(
        self, target: str, hook: of.AfterHook, hook_type: of.After, **options: Unpack[of.ObserverOptionsAndSource]
    ) -> Hook: ...
    @overload
    def register(
        self, target: str, hook: of.AroundHook, hook_type: of.Around, **options: Unpack[of.OptionsAndSource]
    ) -> Hook: ...
    @overload
    def register(
        self, target: str, hook: HookFunction, hook_type: of.Replace, **options: Unpack[of.OptionsAndSource]
    ) -> Hook: ...
    @overload
    def register(
        self, target: str, hook: of.HookOfAnyType, hook_type: HookType, **options: Unpack[of.OptionsAndSource]
    ) -> Hook: ...
    def register(
        self,
        target: str,
        hook: HookFunction,
        hook_type: HookType,
        *,
        priority: int = 0,
        engine: of.Engine = engines.ENGINE_AUTO,
        on_error: of.OnError = "raise",
        reason: str | None = None,
        versions: str | None = None,
        count: bool | None = None,
        subclasses: bool = False,
        source: HookSource | None = None,
    ) -> Hook:
        """Register ``hook``; it takes effect with the next :meth:`apply_hooks`.

        Registering the same object twice for one target and type is one hook. An importable function that a reload
        made again replaces its older self.

        Args:
            target: ``pkg.mod.Class.f`` or ``pkg.mod:Class.f``.
            priority: higher is further out; for REPLACE the highest wins.
            engine: "auto", or by name how the target is to be hooked: "generated", "wrapt" or "inplace" (see
                :mod:`hookery.engines`). Hooks on one target that ask for different engines cannot be applied.
            on_error: what happens when a BEFORE or AFTER hook raises: "raise" lets the caller have the error; "warn"
                warns and goes on with what there was; "disable" does so once, and the hook does not run any more.
            reason: why the hook exists; shown by the listing.
            versions: a version specifier (PEP 440, ``">=2.6,<2.14"``) for the distribution that the target's top-level
                module belongs to. With another version the hook is not applied and listed as skipped.
            count: count the calls of this hook, whatever the registry's ``counting`` says.
            subclasses: hook what overrides a method in subclasses too: those there are when the hooks are applied,
                and with another :meth:`apply_hooks` those that were defined since. An override that calls ``super()``
                runs the hook once per level.
            source: who registers; by default the plugin being loaded, else the hook's own module.

        Raises:
            TypeError: the hook is not callable, ``hook_type`` is no HookType, a class is not a REPLACE, or ``on_error``
                lets an AROUND or REPLACE hook fail, whose result the program needs.
            ValueError: ``target`` cannot name a target, ``engine``, ``on_error`` or ``versions`` is not one of those
                that there are, or the hook is registered already with other options.
        """
        validate_name(target)
        check_options(target, hook, hook_type, priority=priority, engine=engine, on_error=on_error)
        if versions is not None:
            check_specifier(versions)
        loading = _loading.get()
        if source is None:
            source = loading.source if loading else HookSource(getattr(hook, "__module__", None) or "code")
        counted = self.counting if count is None else count
        with patches.lock:
            new = Hook(target, hook, hook_type, source, priority, next_order(), reason, counted)
            new.engine_asked, new.on_error, new.versions = engine, on_error, versions
            new.subclasses = subclasses
            alike = self._by_target.setdefault(new.plain_target, [])
            older = next((other for other in alike if is_same(other, new)), None)
            if older is not None and older.state is not HookState.REVERTED and older.function is hook:
                if count is None:
                    new.counted = older.counted
                if options_of(older) != options_of(new):
                    known = " and ".join(f"{name} {value!r}" for name, value in options_of(older).items())
                    raise ValueError(
                        f"{older.describe()} is registered already, with {known}; revert it first to change them"
                    )
                if loading:
                    older.source = source  # its module was imported before the plugin that it belongs to was loaded
                return older
            if older is not None:
                self._hooks.remove(older)
                alike.remove(older)
            self._hooks.append(new)
            alike.append(new)
            watching.live.setdefault(self)
            if older is not None and older.state is not HookState.REVERTED:
                new.order, new.state, new.detail, new.notes = older.order, older.state, older.detail, older.notes
                try:
                    patches.swap(older, new)
                except TypeError:  # what it has become does not fit; applying says so
                    self._take_off([older])
                    new.state = HookState.PENDING
                patches.settle()
            return new

    def register_again(
        self, target: str, hook: HookFunction, hook_type: HookType, options: dict[str, Any]
    ) -> Hook | None:
        """As :meth:`register`, with all its options, if that changes nothing but who registers the hook; ``None`` if it
        would do more. A plugin that was imported before does so with all its hooks, in every child process."""
        for known in self.hooks(plain_name(target)):
            if is_registered_so(known, target, hook, hook_type, options):
                loading = _loading.get()
                if loading:
                    known.source = loading.source
                return known
        return None

    def apply_hooks(self, *, strict: bool = False, eager: bool = False, reach: Reach = "globals") -> None:
        """Apply every hook that is not applied yet. May be called any number of times.

        A target whose module is not imported yet is applied when it is. A target that does not exist is recorded as
        missed, with the nearest names that do exist, and warned about.

        Args:
            strict: raise for a target that does not exist; everything of its source is undone.
            eager: import the modules of the targets now.
            reach: ``"globals"`` rebinds every module global that holds an original. ``"deep"`` also rebinds, for all
                hooks registered so far, elements of lists and dictionaries, attributes of classes and instances,
                default arguments and closure cells; all of it is restored with the last hook. What cannot be rebound
                stays *unreached*: see :meth:`unreached`.

        Raises:
            HookApplyError: the hooks of some sources could not be applied. Everything of those sources is undone; the
                hooks of all other sources stand.
            ValueError: ``reach`` is neither ``"globals"`` nor ``"deep"``.
        """
        failures = self.apply_pending(strict=strict, eager=eager, reach=reach)
        if failures:
            raise HookApplyError("; ".join(f"{error}" for _, error in failures)) from failures[0][1]

    def apply_pending(
        self,
        *,
        strict: bool = False,
        eager: bool = False,
        reach: Reach = "globals",
        completed: str | None = None,
        made: tuple[str, str] | None = None,
    ) -> list[Failure]:
        """Like :meth:`apply_hooks`, but returns what failed, by source, instead of raising.

        ``completed`` is the module whose import is calling, ``made`` a package and the attribute that it has just made.
        """
        if reach not in ("globals", "deep"):
            raise ValueError(f"reach is {reach!r}; it must be 'globals' or 'deep'")
        if reach == "deep":
            from hookery import held  # noqa: F401  (here and not when it is needed: then the lock is held)
        failures: list[Failure] = []
        with patches.lock:
            if reach == "deep":
                for hook in self._hooks:
                    hook.deep = True
                    for patch in patch_table.patches_of(hook):
                        patches.reach_deeply(patch)
            waiting = [hook for hook in self._hooks if hook.state in _WAITING]
        resolved: list[tuple[Hook, Target]] = []
        waits: list[tuple[Hook, Pending]] = []
        survey = Survey(set(), {})
        notes: list[HookWarning] = []
        for hook in waiting:
            skips = None if hook.versions is None else outside_versions(hook)
            if skips is not None:
                self._still_waits(hook, HookState.SKIPPED, skips)
                continue
            is_made = made is not None and (hook.waits_for, hook.waits_for_attribute) == made
            known = None if eager or is_made else survey.waits_for(hook.target)
            if known is not None:
                waits.append((hook, known))
                continue
            if is_made:
                self._still_wait(waits)
            outcome = self._resolve(hook, notes, survey, eager=eager or is_made, completed=completed)
            if isinstance(outcome, Target):
                resolved.append((hook, outcome))
            elif isinstance(outcome, Exception) and (strict or not isinstance(outcome, TargetNotFoundError)):
                failures.append((hook.source, outcome))
        self._still_wait(waits)
        if resolved:
            engines.prepare((target, hook.engine_asked) for hook, target in resolved)
        with patches.lock:
            own_modules.forget()
            # Classes first, outermost first: a member hook belongs to whichever class stands at the name.
            resolved.sort(key=lambda pair: pair[1].class_depth)
            failed = {source for source, _ in failures}
            subclasses_hooked = False
            a_class_was_replaced = False
            registered = set(self._hooks) if resolved else ()
            for hook, target in resolved:
                if hook.source in failed or hook not in registered or hook.state not in _WAITING:
                    continue  # another thread was faster, or took it back
                try:
                    found = resolve(hook.target, completed=completed) if a_class_was_replaced else again(target)
                    target = found if isinstance(found, Target) else target
                    patches.add(target, hook)
                except (HookError, TypeError) as error:
                    failures.append((hook.source, error))
                    failed.add(hook.source)
                a_class_was_replaced |= target.kind is TargetKind.CLASS
            for hook in self._hooks:
                if hook.subclasses and hook.state is APPLIED and hook.source not in failed:
                    try:
                        subclasses_hooked |= patches.add_to_subclasses(hook)
                    except TypeError as error:
                        failures.append((hook.source, error))
                        failed.add(hook.source)
            for source in failed:
                first = next(failure for failing, failure in failures if failing == source)
                self._undo(source, f"its source was undone: {first}")
            if resolved or subclasses_hooked or completed is None:
                patches.settle()
            watching.watch_imports()
            again_now = watching.imported_meanwhile(self._hooks)
            left = patches.take_left()
            notes += patches.take_notes()
        _give_back(left)
        if strict:  # the caller hears of it as an error
            notes = [note for note in notes if not isinstance(note, MissedHookWarning)]
        self._tell_observers()
        warn(notes, never_raise=completed is not None or made is not None)
        if again_now:
            failures += self.apply_pending(strict=strict, reach=reach, completed=completed)
        return failures

    def _tell_observers(self) -> None:
        for observe in observers:
            observe(self)

    def _resolve(
        self, hook: Hook, notes: list[HookWarning], survey: Survey, *, eager: bool, completed: str | None
    ) -> Target | Exception | None:
        """The hook's target, the error that stands in the way, or ``None`` while it has to wait."""
        try:
            outcome = resolve(hook.target, eager=eager, completed=completed, survey=survey)
            if isinstance(outcome, Target):
                check_versions_are_known(hook)
        except TargetNotFoundError as error:
            if hook.detail != str(error):
                notes.append(MissedHookWarning(f"{hook.function_name} will not run: {error}"))
            self._still_waits(hook, HookState.MISSED, str(error))
            return error
        except Exception as error:  # noqa: BLE001  (an eager import runs other people's code; the caller reports it)
            return error
        if isinstance(outcome, Pending):
            self._still_wait([(hook, outcome)])
            return None
        return outcome

    @staticmethod
    def _still_waits(hook: Hook, state: HookState, why: str) -> None:
        with patches.lock:
            if hook.state in _WAITING:  # else another thread has applied it or taken it back meanwhile
                hook.state, hook.detail, hook.waits_for, hook.waits_for_attribute = state, why, None, None

    @staticmethod
    def _still_wait(waits: list[tuple[Hook, Pending]]) -> None:
        with patches.lock:
            for hook, (module, why, attribute) in waits:
                if hook.state in _WAITING:
                    hook.state, hook.detail = PENDING, why
                    hook.waits_for, hook.waits_for_attribute = module, attribute
        waits.clear()

    def revert(self, target: str | None = None, source: HookSource | str | None = None) -> None:
        """Take hooks back, in any order: those on ``target``, those of ``source``, both, or all.

        When the last hook of a target goes, the object that stood there before stands there again, everywhere. The
        hooks are unregistered and stay in the listing as *reverted*.

        Args:
            target: a target's name, in either spelling.
            source: a source, or the name of an entry point, module or distribution.

        Raises:
            HookError: a target or source was named and no hook is registered for it.
        """
        place = None if target is None else _place(target)
        with patches.lock:
            patch = None if place is None else patch_table.find(place)
            chosen = [
                hook
                for hook in self._hooks
                if hook.state is not HookState.REVERTED
                and (target is None or _names(hook, target) or (patch is not None and hook in patch.hooks))
                and (source is None or source in (hook.source, hook.source.name, hook.source.distribution))
            ]
            if not chosen and (target is not None or source is not None):
                wanted = " of ".join(str(part) for part in (target, source) if part is not None)
                raise HookError(f"nothing to revert: no hook is registered for {wanted}")
            left = self._withdraw(chosen)
            notes = patches.take_notes()
        _give_back(left)
        self._tell_observers()
        warn(notes)

    def take_back(self, hooks: list[Hook]) -> None:
        """As :meth:`revert`, for certain hooks."""
        with patches.lock:
            left = self._withdraw(hooks)
        _give_back(left)

    def _withdraw(self, hooks: list[Hook]) -> list[patch_table.Patch]:
        self._take_off(hooks)
        for hook in hooks:
            hook.state, hook.detail = HookState.REVERTED, ""
        self._after_removal()
        return patches.take_left()

    def _after_removal(self) -> None:
        patches.settle()
        watching.watch_imports()
        if all(hook.state is HookState.REVERTED for hook in self._hooks):
            watching.live.pop(self, None)

    def reset(self) -> None:
        """Revert everything, forget all hooks and forget which plugins were loaded."""
        try:
            self.revert()
        finally:
            with patches.lock:
                self._hooks.clear()
                self._by_target.clear()
                self.loaded_plugins.clear()
            self._tell_observers()

    def discard(self, source: HookSource) -> None:
        """Forget the hooks of ``source`` as if they had not been registered: its loading failed."""
        with patches.lock:
            gone = [hook for hook in self._hooks if hook.source == source]
            self._take_off(gone)
            self._hooks = [hook for hook in self._hooks if hook not in gone]
            for hook in gone:
                self._by_target[hook.plain_target].remove(hook)
            self._after_removal()
            left = patches.take_left()
        _give_back(left)
        self._tell_observers()

    def applied_hooks(self, *, unreached: bool = False) -> list[HookRecord]:
        """Every hook of this registry, in the order of registration, as it stands now.

        Args:
            unreached: fill that field of the records too, which takes tens of milliseconds: the garbage collector is
                asked who holds the originals.
        """
        from hookery.listing import records_in

        return records_in(self.said(unreached=unreached).groups)

    def said(self, *, unreached: bool = False) -> Said:
        """As :meth:`applied_hooks`, before records are made of it."""
        if unreached:
            from hookery import held  # noqa: F401  (before the lock is taken)
        from hookery import children
        from hookery.listing import Said

        absent = children.absent(self._hooks)
        with patches.lock:
            found = self._unreached(self._hooks) if unreached else {}
            return Said.of(self._hooks, patches.all_overrides(), found, self.why_local, absent)

    def why_local(self, hook: Hook) -> str | None:
        """Why ``hook`` stays in this process, or ``None`` if child processes have it too."""
        name, distribution, _ = hook.source
        from_plugin = (distribution or "", name) in self.loaded_plugins
        return None if from_plugin or hook.state is REVERTED else why_local(hook)

    def unreached(self, target: str | None = None) -> dict[str, list[str]]:
        """Who still holds the original of a hooked target, and so calls past the hooks: the addresses, by target.

        Local variables of running functions are not looked at. A hook's own module is given the original on purpose
        and is not listed, nor is anything of an inherited target, whose original is another class's.

        Args:
            target: only this one, in either spelling.

        Raises:
            HookError: no hook is registered for ``target``.
        """
        from hookery import held  # noqa: F401  (before the lock is taken)

        with patches.lock:
            hooks = [hook for hook in self._hooks if target is None or _names(hook, target)]
            if not hooks and target is not None:
                raise HookError(f"no hook is registered for {target}")
            found = self._unreached(hooks)
            result: dict[str, list[str]] = {}
            for hook in hooks:
                if found[hook]:
                    result[hook.target] = sorted({*result.get(hook.target, ()), *found[hook]})
            return result

    def explain(self, target: str) -> Explanation:
        """What stands at ``target`` and why: what the name leads to, the engine, the chain in the order of the call,
        who was rebound, who was not reached and what overrides it. Hooks of all registries are in it.

        Nothing is imported. ``str()`` of the record is a text for a person.

        Raises:
            ValueError: ``target`` cannot name a target.
        """
        from hookery import explanation

        validate_name(target)
        with patches.lock:
            place = _place(target)
            patch = None if place is None else patch_table.find(place)
            asked = [
                hook
                for registry in dict.fromkeys([*watching.live, self])
                for hook in registry.hooks()
                if hook.state is not HookState.REVERTED or hook.detail
                if _names(hook, target) or (patch is not None and hook in patch.hooks)
            ]
            return explanation.explain(target, asked)

    def problems(self) -> list[Problem]:
        """Everything about the hooks of this registry that is not as it was asked for: hooks that are missed, skipped,
        pending or undone, targets that somebody has put something else over, holders that are not reached and
        overrides in subclasses. An empty list means that every hook is where it was asked for.
        """
        from hookery import explanation

        with patches.lock:
            return explanation.problems(sorted(self._hooks, key=lambda hook: hook.order))

    def never_imported(self) -> list[Problem]:
        """The hooks that are still pending, each with the module that it waits for. At the end of a program's start,
        when everything that it needs is imported, these are hooks that will not run."""
        from hookery import explanation
        from hookery.listing import stand_ins_on_main

        with patches.lock:
            on_main = stand_ins_on_main(self._hooks).values()
            pending = [hook for hook in self._hooks if hook.state is HookState.PENDING and hook not in on_main]
            return explanation.problems(sorted(pending, key=lambda hook: hook.order))

    @staticmethod
    def _unreached(hooks: list[Hook]) -> dict[Hook, list[str]]:
        on = {hook: patch_table.patches_of(hook) for hook in hooks}
        found = patches.unreached(dict.fromkeys(patch for hooked in on.values() for patch in hooked))
        return {
            hook: sorted({holder.address for patch in hooked for holder in found.get(patch, ())})
            for hook, hooked in on.items()
        }

    def hooks(self, plain_target: str | None = None) -> list[Hook]:
        """The hooks themselves, those that were taken back too: all, or those on one target."""
        return self._hooks.copy() if plain_target is None else [*self._by_target.get(plain_target, ())]

    def live_targets(self) -> list[str]:
        """The targets of all hooks that were not taken back."""
        return [hook.target for hook in self._hooks if hook.state is not REVERTED]

    def reapply(self, orphans: list[Hook], module: str) -> None:
        """Apply again what a reload of ``module`` has thrown off."""
        for hook in self._hooks:
            if hook in orphans:
                hook.state, hook.detail = HookState.PENDING, f"{module} was reloaded"

    def _undo(self, source: HookSource, why: str) -> None:
        undone = [hook for hook in self._hooks if hook.source == source and hook.state is not HookState.REVERTED]
        self._take_off(undone)
        for hook in undone:
            if hook.state is not HookState.MISSED:
                hook.detail = why
            hook.state = HookState.REVERTED

    def _take_off(self, hooks: list[Hook]) -> None:
        own_modules.forget()
        for patch in patch_table.all_patches():
            if any(hook in hooks for hook in patch.hooks):
                patches.remove(patch, hooks)


_WAITING = (HookState.PENDING, HookState.MISSED)
# Called with a registry, without any lock, after its hooks were applied or taken back, inside an import perhaps.
observers: list[Callable[[HookRegistry], object]] = []
_orders = iter(range(1, 2**62))


def next_order() -> int:
    """The place of a hook that is registered now, among those of all registries."""
    return next(_orders)


def _names(hook: Hook, target: str) -> bool:
    """Whether ``target`` is a name of what the hook is on."""
    if hook.plain_target == plain_name(target):
        return True
    return any(plain_name(patch.target.name) == plain_name(target) for patch in patch_table.patches_of(hook))


def _place(target: str) -> Target | None:
    """Where a target's name leads now, if anywhere."""
    try:
        found = resolve(target)
    except (HookError, TypeError):
        return None
    return found if isinstance(found, Target) else None


def _give_back(left: list[patch_table.Patch]) -> None:
    if left:
        from hookery import held  # noqa: F401  (before the lock is taken)

        with patches.lock:
            patches.give_back(left)


class Loading(NamedTuple):
    """The plugin that is being loaded: hooks that it registers without saying otherwise are its own."""

    registry: HookRegistry
    source: HookSource


_loading: contextvars.ContextVar[Loading | None] = contextvars.ContextVar("hookery_loading", default=None)


def current_loading() -> Loading | None:
    """The plugin that is being loaded in this context."""
    return _loading.get()


registry = HookRegistry()
"""The process's registry."""
