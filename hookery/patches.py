"""Puts hooks on targets and takes them off: on one table that all registries share, so that any of them can leave in
any order.

Changing the hooks of a patch swaps what its stand-in calls, not the stand-in. Every function here expects :data:`lock`
to be held, and none of them imports a target's module.
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from hookery import chain, engines, locking, own_modules, patch_table, raw, reach, retired
from hookery.fitting import assign, check_fit, set_attribute
from hookery.fused import Fused
from hookery.hooks import Hook, HookError, HookState, HookType, HookWarning, MissedHookWarning, TargetNotFoundError
from hookery.patch_table import Patch, all_patches, find, patches_of, table
from hookery.reach import Holder
from hookery.targets import Target, TargetKind, again, leads_elsewhere, resolve

lock = locking.lock

_notes: list[HookWarning] = []  # what to warn about once the table is consistent and the lock free
_returning: list[reach.Rebinding] = []  # stand-ins whose last hook left
_left: list[Patch] = []  # patches whose last hook left, and whose stand-ins may be held by others
_to_reach: list[Patch] = []  # patches whose other holders are to be rebound
_held_before: dict[int, set[tuple[int, str]]] = {}  # by identity of a replacement: the globals that had it already
_changed_classes: list[Any] = []  # classes put at a target's name since the hooks on members last followed
_left_behind: list[tuple[str, Hook]] = []  # hooks on members that the class standing there now does not have


def take_notes() -> list[HookWarning]:
    """What there is to warn about; the caller does so without holding the lock."""
    own_modules.forget()
    notes = _notes.copy()
    _notes.clear()
    return notes


def add(target: Target, hook: Hook) -> None:
    """Put ``hook`` on ``target``, and on what overrides it in subclasses where the hook asks for that. The stand-in
    goes to the target's own name; :func:`settle` does the other holders.

    Raises:
        TypeError: the hook does not fit the target, or the target's owner cannot be changed. Nothing is changed then.
        HookError: the hook asks for another engine than one that is on the target already.
    """
    if hook.subclasses and (target.kind is TargetKind.CLASS or isinstance(target.owner, types.ModuleType)):
        raise TypeError(f"{hook.describe()}: subclasses=True is for members of classes, and {target.name} is none")
    on_before = patches_of(hook) if hook.subclasses else []
    _put(target, hook)
    hook.place = target.name
    if not hook.subclasses:
        return
    try:
        add_to_subclasses(hook)
    except TypeError:
        for patch in patches_of(hook):
            if patch not in on_before:
                remove(patch, [hook])
        raise


def add_to_subclasses(hook: Hook) -> bool:
    """Put a hook that asks for it on what overrides its target in the subclasses there are now; whether there was any.

    Raises:
        TypeError: it does not fit one of them.
    """
    added = False
    for patch, subclass in overriding(hook) if hook.subclasses else ():
        override = patch.target._replace(
            module=raw.class_module(subclass),
            qualname=f"{raw.class_qualname(subclass)}.{patch.target.attribute}",
            owner=subclass,
        )
        try:
            override = again(override)
        except TypeError:
            continue  # nothing that can be called, such as __hash__ = None; the listing names it
        _put(override, hook)
        added = True
    return added


def overriding(hook: Hook, on: Iterable[Patch] | None = None) -> list[tuple[Patch, type]]:
    """The subclasses that override what ``hook`` is on with something that it is not on. ``on`` are the patches that it
    is on, if they are known."""
    found = []
    for patch in patches_of(hook) if on is None else on:
        owner, attribute = patch.target.owner, patch.target.attribute
        if patch.is_class or patch.superseded or not raw.is_class(owner):
            continue
        for subclass in raw.subclasses(owner):
            if attribute not in raw.class_namespace(subclass):
                continue
            own = raw.class_namespace(subclass)[attribute]
            if own is patch.original or own is patch.stand_in:
                continue  # an alias: a holder, not an override
            there = [other for other in table if other.target.owner is subclass and other.stand_in is own]
            if not any(hook in other.hooks or other.target.inherited for other in there):
                found.append((patch, subclass))
    first = {id(subclass): (patch, subclass) for patch, subclass in reversed(found)}
    return sorted(first.values(), key=lambda pair: raw.class_name(pair[1]))


def overrides(hook: Hook, on: Iterable[Patch] | None = None) -> list[str]:
    """The addresses of what :func:`overriding` finds."""
    return [f"{raw.class_name(subclass)}.{patch.target.attribute}" for patch, subclass in overriding(hook, on)]


def all_overrides() -> dict[Hook, list[str]]:
    """That for all hooks which are applied; those without any are left out."""
    on: dict[Hook, list[Patch]] = {}
    for patch in table:
        for hook in patch.hooks if raw.is_class(patch.target.owner) else ():
            on.setdefault(hook, []).append(patch)
    found = {hook: overrides(hook, of_hook) for hook, of_hook in on.items() if hook.state is HookState.APPLIED}
    return {hook: addresses for hook, addresses in found.items() if addresses}


def _put(target: Target, hook: Hook) -> None:
    check_fit(target, hook)
    patch = find(target)
    if patch is not None and hook.engine_asked not in (engines.ENGINE_AUTO, patch.engine):
        patch = _change_engine(patch, hook)
    if patch is None:
        patch = _new_patch(target, hook)
        table.add(patch)
    if hook not in patch.hooks:
        patch.hooks.append(hook)
    if hook.deep:
        reach_deeply(patch)
    try:
        refresh(patch)
        if patch.made is not None:
            _stand(patch, hook)
    except TypeError:
        patch.hooks.remove(hook)
        if not patch.hooks:
            table.remove(patch)
        raise


def _new_patch(target: Target, first: Hook) -> Patch:
    engine, reason = engines.choose(target, first.engine_asked)
    for other in table.about(target.raw):
        if other.is_accessor_beside(target) and other.stand_in is target.raw:
            target = target._replace(raw=other.original, inherited=other.target.inherited)
    for other in table if engine == engines.ENGINE_IN_PLACE else ():
        if other.engine == engine and other.target.inner is target.inner:
            raise TypeError(f"{target.name} is hooked in place already, as {other.target.name}: they are one function")
    return Patch(target, engine, reason, first)


def _change_engine(patch: Patch, newcomer: Hook) -> Patch:
    """Put the hooks of ``patch`` in place with the engine that ``newcomer`` asks for, if none of them asks for one.

    Raises:
        HookError: one does.
        TypeError: that engine cannot serve the target.
    """
    other = next((hook for hook in patch.hooks if hook.engine_asked != engines.ENGINE_AUTO), None)
    if other is not None:
        raise HookError(
            f"two hooks ask for different engines on {patch.target.name}: {newcomer.describe()} for"
            f" {newcomer.engine_asked!r}, {other.describe()} for {other.engine_asked!r}"
        )
    engines.choose(patch.target, newcomer.engine_asked)
    hooks = patch.hooks
    remove(patch, hooks)
    _rebind()
    changed = _new_patch(patch.target, newcomer)
    changed.hooks = hooks
    table.add(changed)
    refresh(changed)
    _stand(changed, newcomer)
    return changed


def _stand(patch: Patch, hook: Hook) -> None:
    """Put the stand-in at the target's own name, if it is not there yet."""
    if patch.is_property:
        siblings = patch.siblings()
        if patch.stand_in is not None and all(sibling.stand_in is patch.stand_in for sibling in siblings):
            return
        _compose(siblings, hook)
    elif patch.engine != engines.ENGINE_IN_PLACE and patch.hooks == [hook]:
        set_attribute(patch.target, patch.stand_in, hook)


def _compose(siblings: list[Patch], hook: Hook | None) -> None:
    """Put a property at the name that has the accessors of all ``siblings``."""
    target = siblings[0].target
    accessors = {patch.target.accessor or "": patch.made.value for patch in siblings if patch.made is not None}
    composed = engines.compose_property(target.raw, accessors)
    set_attribute(target, composed, hook)
    for patch in siblings:
        patch.stand_with(composed)


def swap(older: Hook, newer: Hook) -> None:
    """Let ``newer`` do what ``older`` does, on every target that it is on.

    Raises:
        TypeError: it does not fit one of them. Nothing is changed then.
    """
    hooked = patches_of(older)
    for patch in hooked:
        check_fit(patch.target, newer)
        if newer.engine_asked not in (engines.ENGINE_AUTO, patch.engine):
            raise TypeError(f"{newer.describe()} asks for the engine {newer.engine_asked!r}, which has changed")
        if not patch.is_class:
            _fuse(patch, [newer if hook is older else hook for hook in patch.hooks])
    for patch in hooked:
        patch.hooks = [newer if hook is older else hook for hook in patch.hooks]
        refresh(patch)


def _fuse(patch: Patch, hooks: list[Hook], prelude: Callable[[], bool] | None = None) -> Fused:
    assert patch.made is not None
    return chain.fuse(patch.made.callee, hooks, prelude=prelude, free_variables=patch.made.free_variables)


def refresh(patch: Patch) -> None:
    """Make the patch do what its hooks say: rebuild the chain, or put the winning replacement class in place.

    One function registered twice, by two registries or under two names of the target, is one hook: the first counts.
    """
    first: dict[tuple[int, HookType], Hook] = {}
    for hook in sorted(patch.hooks, key=_order) if len(patch.hooks) > 1 else patch.hooks:
        first.setdefault((id(hook.function), hook.type), hook)
    active = [hook for hook in first.values() if not hook.disabled]
    replacements = [hook for hook in active if hook.type is HookType.REPLACE]
    winner = max(replacements, key=chain.replacement_order) if replacements else None
    if patch.is_class:
        _stand_class(patch, winner)
    else:
        assert patch.made is not None
        patch.looking_after = _looking_after_own_modules(patch, active)
        patch.made.use(_fuse(patch, active, patch.looking_after))
    for hook in patch.hooks:
        hook.engine, hook.engine_reason = patch.engine, patch.engine_reason
        if hook.disabled:
            continue  # its state and detail say so
        before, hook.state, hook.detail = hook.state, HookState.APPLIED, ""
        twin = first[id(hook.function), hook.type]
        if twin is not hook:
            hook.state, hook.detail = HookState.SKIPPED, f"the same hook is on this target already, as {twin.target}"
        elif hook.type is HookType.REPLACE and hook is not winner and winner is not None:
            hook.state, hook.detail = HookState.SKIPPED, f"outranked by {winner.function_name}"
            if before is not HookState.SKIPPED:
                _notes.append(
                    HookWarning(
                        f"two REPLACE hooks on {patch.target.name}: {winner.function_name} ({winner.source}) wins over"
                        f" {hook.function_name} ({hook.source})"
                    )
                )


_order = operator.attrgetter("order")


def _looking_after_own_modules(patch: Patch, active: list[Hook]) -> Callable[[], bool] | None:
    """What the stand-in has to call first, so that a hook's module which imports the target later has the original."""
    own = _own_modules(patch)
    if patch.stand_in is patch.original or not own_modules.any_imports_later(own):
        return None

    def imported() -> set[str]:
        return {patch.target.attribute, *(each.name for each in patch.holders if type(each) is reach.Entry)}

    def done() -> None:
        if lock.acquire(blocking=False):  # not at once possible: then it stays, and finds nothing
            try:
                if patch.looking_after is look_after and patch.made is not None:
                    patch.looking_after = None
                    patch.made.use(_fuse(patch, [hook for hook in active if not hook.disabled]))
            finally:
                lock.release()

    look_after = own_modules.looking_after(own, patch.stand_in, patch.original, imported, done)
    return look_after


def _own_modules(patch: Patch) -> list[dict[str, Any]]:
    """The globals of the hooks' own modules, but for the target's own."""
    of_target = raw.module_globals(patch.target.owner)
    found = {id(namespace): namespace for hook in patch.hooks if (namespace := hook.own_globals()) is not None}
    return [namespace for namespace in found.values() if namespace is not of_target]


def _spare_own_modules(patches: Iterable[Patch]) -> None:
    """Give the hooks' own modules the originals where they hold the stand-ins, so that no hook calls itself."""
    exchanges: dict[int, tuple[dict[str, Any], dict[int, tuple[Any, Any]]]] = {}
    for patch in patches:
        for namespace in _own_modules(patch):
            exchange = exchanges.setdefault(id(namespace), (namespace, {}))[1]
            exchange[id(patch.stand_in)] = (patch.stand_in, patch.original)
    for namespace, exchange in exchanges.values():
        reach.give_back(namespace, exchange)


def _stand_class(patch: Patch, winner: Hook | None) -> None:
    old = patch.original if patch.stand_in is None else patch.stand_in
    new = patch.original if winner is None else winner.function
    if new is old:
        return
    if patch.standing is old:
        set_attribute(patch.target, new, winner)
    elif not patch.superseded:
        _report_foreign(patch)
    for holder in patch.holders:
        holder.exchange(old, new)
    if old is not patch.original:  # who imported it from the target's name
        others = [other for other in table if other is not patch and other.stand_in is old]
        spared = {entry for other in others for entry in other.entries} | _held_before.get(id(old), set())
        own = {id(raw.namespace(sys.modules.get(raw.class_module(old))))}
        _returning.append(reach.Rebinding(old, new, own, name=patch.target.attribute, spared_entries=spared))
        if not others:
            _held_before.pop(id(old), None)
    patch.stand_with(None if new is patch.original else new)
    _changed_classes.append(new)


def settle() -> None:
    """After any change: one pass over the loaded modules rebinds what has to be, and hooks on members follow the
    classes that were put at or taken from a target's name."""
    _rebind()
    while _changed_classes:
        classes = _changed_classes.copy()
        _changed_classes.clear()
        if _follow(classes):
            _rebind()


def _rebind() -> None:
    patch_of: dict[int, Patch] = {}
    wishes: list[reach.Rebinding] = []
    for patch in table:
        if patch.rebinds and patch.stand_in is not None and id(patch.original) not in patch_of:
            wishes.append(reach.Rebinding(patch.original, patch.stand_in, patch.own_modules))
            patch_of[id(patch.original)] = patch
            for older in retired.stood_for(patch.original):
                wishes.append(reach.Rebinding(older, patch.stand_in, patch.own_modules))
                patch_of[id(older)] = patch
            if patch.is_class and id(patch.stand_in) not in _held_before:
                _held_before[id(patch.stand_in)] = set()
                wishes.append(reach.Rebinding(patch.stand_in, patch.stand_in))
    _spare_own_modules([patch for patch in patch_of.values() if not patch.is_class])
    returning = [wish for wish in _returning if id(wish.old) not in patch_of]
    _returning.clear()
    for wish, holder in reach.rebind([*wishes, *returning]):
        if id(wish.old) in _held_before and wish.old is wish.new and type(holder) is reach.Entry:
            _held_before[id(wish.old)].add((id(holder.namespace), holder.name))
        elif id(wish.old) in patch_of:
            patch_of[id(wish.old)].holders.append(holder)
        else:
            for patch in table:
                if patch.is_class and patch.stand_in is wish.new:
                    patch.holders.append(holder)
    reached = [patch for patch in table if patch in _to_reach and not patch.superseded]
    _to_reach.clear()
    if reached:
        from hookery import held

        for patch, holders in held.rebind(reached, patch_table.made).items():
            patch.holders.extend(holders)


def reach_deeply(patch: Patch) -> None:
    """Have :func:`settle` rebind every holder of the patch's original that can be."""
    patch.deep = True
    _to_reach.append(patch)


def unreached(wanted: Iterable[Patch]) -> dict[Patch, list[Holder]]:
    """Who still holds the originals of some patches, and so calls past the hooks. Asks the garbage collector."""
    from hookery import held

    found = held.find([patch for patch in wanted if not patch.superseded], patch_table.made)
    return {
        patch: [*(holder for _, _, holder in places), *held.in_chains(patch, table)] for patch, places in found.items()
    }


def _follow(classes: list[Any]) -> bool:
    """Take the hooks on members to the classes that stand at their targets' names now; whether any had to move."""
    homeless = _left_behind.copy()
    _left_behind.clear()
    for patch in all_patches():
        if patch.superseded or isinstance(patch.target.owner, types.ModuleType):
            continue
        movers = [hook for hook in patch.hooks if leads_elsewhere(hook.place, patch.target.owner, classes)]
        if movers:
            homeless.extend((hook.place, hook) for hook in movers)
            remove(patch, movers)
    for name, hook in homeless:
        if hook.state is HookState.REVERTED:
            continue
        try:
            found = resolve(name)
            if isinstance(found, Target):
                add(found, hook)
            else:
                hook.state, hook.detail = HookState.PENDING, found.why
        except (TargetNotFoundError, TypeError) as error:
            if hook.detail != str(error):
                _notes.append(MissedHookWarning(f"{hook.function_name} will not run: {error}"))
            hook.state, hook.detail = HookState.MISSED, str(error)
            _left_behind.append((name, hook))
    return bool(homeless)


def remove(patch: Patch, hooks: list[Hook]) -> None:
    """Take ``hooks`` off; with the last one the original stands again wherever the stand-in was put."""
    patch.hooks = [hook for hook in patch.hooks if hook not in hooks]
    if patch.hooks:
        refresh(patch)
        return
    if patch in table:
        table.remove(patch)
    if patch in _to_reach:
        _to_reach.remove(patch)
    if patch.made is None:
        _stand_class(patch, None)
        return
    patch.looking_after = None
    patch.made.retire()
    if patch.engine != engines.ENGINE_IN_PLACE:
        _restore(patch)


def _restore(patch: Patch) -> None:
    target = patch.target
    siblings = patch.siblings() if patch.is_property else []
    if patch.standing is not patch.stand_in:
        if not patch.superseded:
            _report_foreign(patch)
    elif siblings:
        _compose(siblings, None)
    elif target.inherited:
        delattr(target.owner, target.attribute)
    else:
        assign(target, patch.original)
    for holder in patch.holders:
        holder.exchange(patch.stand_in, patch.original)
    if not target.inherited:
        retired.retire(patch.original, patch.stand_in)
        _left.append(patch)
    if patch.rebinds or patch.original is None:
        _returning.append(reach.Rebinding(patch.stand_in, patch.original))


def take_left() -> list[Patch]:
    """The patches whose last hook left and whose stand-ins somebody still seems to have, other than module globals."""
    left = [patch for patch in _left if patch.is_property or retired.references(patch.stand_in) > patch.references]
    _left.clear()
    return left


def give_back(left: list[Patch]) -> None:
    """Whoever was given, or has taken, the stand-ins of patches whose last hook left gets the originals."""
    from hookery import held

    held.give_back(left, patch_table.made)


def _report_foreign(patch: Patch) -> None:
    _notes.append(
        HookWarning(
            f"{patch.target.name} was patched by somebody else after hookery ({patch.standing!r} stands there);"
            " that patch is left alone, and what hookery put there passes straight through"
        )
    )
