"""What a reload leaves behind: patches that no longer stand at their names."""

from __future__ import annotations

from typing import Any

from hookery import patch_table
from hookery.hooks import Hook, TargetNotFoundError
from hookery.targets import Target, may_concern, resolve


def supersede(module: str) -> list[Hook]:
    """After the code of ``module`` ran again: set aside the patches that no longer stand at their names.

    Returns the hooks that have to be applied to what stands there now.
    """
    orphans: list[Hook] = []
    for patch in patch_table.all_patches():
        if patch.superseded:
            continue
        if patch.target.module == module and _found_by(patch.target.name, module) is not patch:
            patch.superseded = True
            orphans.extend(hook for hook in patch.hooks if hook not in orphans)
        elif patch.target.module != module:
            # A hook may name its target by another module than the one where it stands.
            orphans.extend(
                hook
                for hook in patch.hooks
                if hook not in orphans
                and may_concern(hook.target, module)
                and _found_by(hook.target, module) not in (patch, _ELSEWHERE)
            )
    return orphans


_ELSEWHERE: Any = object()


def _found_by(name: str, module: str) -> Any:
    """The patch that ``name`` leads to in ``module``, ``None`` if what stands there is not patched."""
    try:
        now = resolve(name, completed=module)
    except (TargetNotFoundError, TypeError):
        return None
    if not isinstance(now, Target):
        return None
    return patch_table.find(now) if now.module == module else _ELSEWHERE
