"""What a program decides about hooks while they stand, because only it knows where they are run."""

from __future__ import annotations

from hookery import patch_table, patches, watching
from hookery.hooks import Hook, HookError
from hookery.registry import HookRegistry, observers, registry


def add_note(hook: Hook, note: str) -> None:
    """Let every listing say something of ``hook``: its records (``HookRecord.notes``), the table, :func:`explain`, and
    what other processes are told of it.

    Args:
        hook: one of :meth:`HookRegistry.hooks`.
        note: what follows its name, such as ``"runs at start only"``; said twice it is said once.

    Raises:
        HookError: no registry has the hook.
    """
    with patches.lock:
        owner = _owner(hook)
        if note in hook.notes:
            return
        hook.notes = (*hook.notes, note)
    _tell(owner)


def set_counted(hook: Hook, counted: bool) -> None:
    """Count the calls of a hook from now on, or count them no more.

    Raises:
        HookError: no registry has the hook.
    """
    with patches.lock:
        owner = _owner(hook)
        if hook.counted is counted:
            return
        hook.counted = counted
        for patch in patch_table.patches_of(hook):
            patches.refresh(patch)
    _tell(owner)


def _owner(hook: Hook) -> HookRegistry:
    for candidate in dict.fromkeys([registry, *watching.live]):
        if hook in candidate.hooks() and isinstance(candidate, HookRegistry):
            return candidate
    raise HookError(f"{hook.describe()} is not registered: nothing can be said of it")


def _tell(owner: HookRegistry) -> None:
    for observe in observers:
        observe(owner)
