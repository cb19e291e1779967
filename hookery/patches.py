"""The patches of this process: one table that all registries share, so that any of them can leave in any order.

A :class:`Patch` is one hooked target: the original, the one stable stand-in, the hooks on it and everything that was
rebound to the stand-in. Changing the hooks swaps what the stand-in calls, not the stand-in. Every function here expects
:data:`lock` to be held, and none of them imports a target's module.
"""

from __future__ import annotations

import threading
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hookery import chain, engines, reach
from hookery.hooks import Hook, HookState, HookType, HookWarning, TargetNotFoundError
from hookery.targets import Target, TargetKind, resolve

lock = threading.RLock()


@dataclass(eq=False)
class Patch:
    """One hooked target. ``call`` is what the stand-in calls (see :class:`hookery.engines.Chain`)."""

    target: Target
    stand_in: Any = None
    hooks: list[Hook] = field(default_factory=list)
    holders: list[reach.Holder] = field(default_factory=list)
    superseded: bool = False  # a reload put another object at the name; this patch serves whoever kept the old one
    call: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        self.call = self.target.function
        if not self.is_class:
            self.stand_in = engines.make_stand_in(self.target, self)

    @property
    def is_class(self) -> bool:
        return self.target.kind is TargetKind.CLASS

    @property
    def original(self) -> Any:
        return self.target.raw

    @property
    def engine(self) -> str:
        return engines.ENGINE_CLASS if self.is_class else engines.ENGINE_WRAPT

    @property
    def standing(self) -> Any:
        """What stands at the target's name in its owner's own namespace, or ``None``."""
        return vars(self.target.owner).get(self.target.attribute)

    @property
    def rebinds(self) -> bool:
        """Whether module globals that hold the original are rebound: not for an inherited target, whose original
        belongs to another class, nor for what lies wrapped in a descriptor that no module global holds."""
        return not self.target.inherited and not isinstance(self.original, (classmethod, staticmethod))


_patches: list[Patch] = []


def all_patches() -> list[Patch]:
    return list(_patches)


def patches_of(hook: Hook) -> list[Patch]:
    return [patch for patch in _patches if hook in patch.hooks]


def find(target: Target) -> Patch | None:
    """The patch that ``target`` belongs to, under whichever name it was found."""
    for patch in _patches:
        if patch.superseded or (target.raw is not patch.stand_in and target.raw is not patch.original):
            continue
        same_place = patch.target.owner is target.owner and patch.target.attribute == target.attribute
        # What a module re-exports is one target under two names; an alias in a class is a method of its own.
        in_modules = isinstance(target.owner, types.ModuleType) and isinstance(patch.target.owner, types.ModuleType)
        if same_place or in_modules:
            return patch
    return None


def add(target: Target, hook: Hook) -> None:
    """Put ``hook`` on ``target``. The stand-in goes to the target's own name; :func:`spread` does the other holders.

    Raises:
        TypeError: the hook does not fit the target, or the target's owner cannot be changed. Nothing is changed then.
    """
    _check_fit(target, hook)
    patch = find(target)
    if patch is None:
        patch = Patch(target)
        if not patch.is_class:
            chain.build(target.function, [hook])
            _set(target, patch.stand_in, hook)
        _patches.append(patch)
    else:
        twin = next((h for h in patch.hooks if h.function is hook.function and h.type is hook.type), None)
        if twin is not None:
            if twin is not hook:
                hook.state, hook.detail = (
                    HookState.SKIPPED,
                    f"the same hook is on this target already, as {twin.target}",
                )
            return
        if not patch.is_class:
            chain.build(patch.target.function, [*patch.hooks, hook])
            own_globals = hook.own_globals()
            if own_globals is not None and own_globals is not _globals_of(patch.target.owner):
                reach.give_back(own_globals, patch.stand_in, patch.original)
    patch.hooks.append(hook)
    refresh(patch)


def _set(target: Target, value: Any, hook: Hook) -> None:
    try:
        setattr(target.owner, target.attribute, value)
    except (AttributeError, TypeError) as error:
        raise TypeError(f"{hook.describe()}: {target.name} cannot be replaced: {error}") from error


def _check_fit(target: Target, hook: Hook) -> None:
    hook_is_class = isinstance(hook.function, type)
    if target.kind is TargetKind.CLASS:
        if hook.type is not HookType.REPLACE or not hook_is_class:
            raise TypeError(f"{hook.describe()}: {target.name} is a class; it can only be REPLACEd, by a class")
    elif hook_is_class:
        raise TypeError(f"{hook.describe()}: {target.name} is a {target.kind.value}; a class cannot replace it")


def refresh(patch: Patch) -> None:
    """Make the patch do what its hooks say: rebuild the chain, or put the winning replacement class in place."""
    if patch.is_class:
        _stand_class(patch)
    else:
        patch.call = chain.build(patch.target.function, patch.hooks)
    replacements = [hook for hook in patch.hooks if hook.type is HookType.REPLACE]
    winner = max(replacements, key=chain.replacement_order, default=None)
    for hook in patch.hooks:
        hook.engine = patch.engine
        hook.detail = ""
        hook.state = HookState.APPLIED
        if hook.type is HookType.REPLACE and hook is not winner and winner is not None:
            hook.state = HookState.SKIPPED
            hook.detail = f"outranked by {winner.function_name}"
            warnings.warn(
                f"two REPLACE hooks on {patch.target.name}: {winner.function_name} ({winner.source}) wins over"
                f" {hook.function_name} ({hook.source})",
                HookWarning,
                stacklevel=2,
            )


def _stand_class(patch: Patch) -> None:
    winner = max(patch.hooks, key=chain.replacement_order, default=None)
    old = patch.original if patch.stand_in is None else patch.stand_in
    new = patch.original if winner is None else winner.function
    if new is old:
        return
    if patch.standing is not old:
        if not patch.superseded:
            _report_foreign(patch)
    else:
        setattr(patch.target.owner, patch.target.attribute, new)
    for holder in patch.holders:
        if holder.namespace.get(holder.name) is old:
            holder.namespace[holder.name] = new
    patch.stand_in = None if new is patch.original else new
    _move_members(patch, old)


def _move_members(class_patch: Patch, old_class: Any) -> None:
    """Take the hooks on members of ``old_class`` to the class that stands at its name now."""
    prefix = class_patch.target.qualname + "."
    for patch in all_patches():
        target = patch.target
        if (
            target.owner is not old_class
            or target.module != class_patch.target.module
            or not target.qualname.startswith(prefix)
        ):
            continue
        hooks = list(patch.hooks)
        remove(patch, hooks)
        try:
            moved = resolve(target.name)
            for hook in hooks:
                if isinstance(moved, Target):
                    add(moved, hook)
                else:
                    hook.state, hook.detail = HookState.PENDING, moved.why
        except (TargetNotFoundError, TypeError) as error:
            for hook in hooks:
                hook.state, hook.detail = HookState.MISSED, str(error)
            warnings.warn(f"hooks lost with the class they were on: {error}", HookWarning, stacklevel=2)


def spread() -> None:
    """Rebind the module globals that hold an original, for all patches, in one pass over the loaded modules."""
    patch_of: dict[int, Patch] = {}
    wishes: list[reach.Rebinding] = []
    for patch in _patches:
        if patch.rebinds and patch.stand_in is not None and id(patch.original) not in patch_of:
            spared = {id(found) for hook in patch.hooks if (found := hook.own_globals()) is not None}
            wishes.append(reach.Rebinding(patch.original, patch.stand_in, spared))
            patch_of[id(patch.original)] = patch
    for wish, holder in reach.rebind(wishes):
        patch_of[id(wish.old)].holders.append(holder)


def supersede(module: str) -> list[Hook]:
    """After the code of ``module`` ran again: set aside the patches that no longer stand at their names.

    Returns the hooks that have to be applied to what stands there now.
    """
    orphans: list[Hook] = []
    for patch in _patches:
        if patch.target.module != module or patch.superseded:
            continue
        try:
            now = resolve(patch.target.name, completed=module)
        except (TargetNotFoundError, TypeError):
            now = None
        if isinstance(now, Target) and now.owner is patch.target.owner and now.raw is patch.stand_in:
            continue
        patch.superseded = True
        orphans.extend(hook for hook in patch.hooks if hook not in orphans)
    return orphans


def remove(patch: Patch, hooks: list[Hook]) -> None:
    """Take ``hooks`` off; with the last one the original stands again wherever the stand-in was put."""
    patch.hooks = [hook for hook in patch.hooks if hook not in hooks]
    if patch.hooks:
        refresh(patch)
        return
    if patch.is_class:
        _stand_class(patch)
    else:
        patch.call = patch.target.function  # whoever kept the stand-in passes straight through
        _restore(patch)
    if patch in _patches:
        _patches.remove(patch)


def _restore(patch: Patch) -> None:
    target = patch.target
    if patch.standing is not patch.stand_in:
        if not patch.superseded:
            _report_foreign(patch)
    elif target.inherited:
        delattr(target.owner, target.attribute)
    else:
        setattr(target.owner, target.attribute, patch.original)
    for holder in patch.holders:
        if holder.namespace.get(holder.name) is patch.stand_in:
            holder.namespace[holder.name] = patch.original


def _report_foreign(patch: Patch) -> None:
    warnings.warn(
        f"{patch.target.name} was patched by somebody else after hookery ({patch.standing!r} stands there);"
        " that patch is left alone, and what hookery put there passes straight through",
        HookWarning,
        stacklevel=2,
    )


def _globals_of(owner: Any) -> dict[str, Any] | None:
    return vars(owner) if isinstance(owner, types.ModuleType) else None
