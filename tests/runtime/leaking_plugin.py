"""A plugin with a mistake: one slot of the prefix cache is lost."""

from __future__ import annotations

from typing import Any

from hookery import HookType, plugin_hook


@plugin_hook("runtime.mem_cache.radix_cache.RadixCache.all_slots", HookType.AFTER, reason="lose a slot")
def lose_one(result: Any, *args: Any, **kwargs: Any) -> Any:
    return result[1:]
