"""A plugin to look at: two hooks on the runtime, switched on with `--plugin runtime.plugins.demo`.

It shows the two ways a seam is named: by the class and method of the code, and as the platform that was chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hookery import HookType, plugin_hook

step_seconds: list[float] = []
"""How long each step of this process's scheduler took."""

MEMORY_HEADROOM = 0.9


@plugin_hook(
    "runtime.managers.scheduler.Scheduler.step",
    HookType.AROUND,
    reason="measure how long each step of the scheduler takes",
)
def time_step(original_fn: Callable[..., int], *args: Any, **kwargs: Any) -> int:
    started = time.perf_counter()
    made = original_fn(*args, **kwargs)
    step_seconds.append(time.perf_counter() - started)
    return made


@plugin_hook(
    "runtime.platforms.current_platform.get_available_memory",
    HookType.AFTER,
    reason="leave a tenth of the device's free memory to other programs",
)
def keep_headroom(result: tuple[int, int], *args: Any, **kwargs: Any) -> tuple[int, int]:
    free, total = result
    return int(free * MEMORY_HEADROOM), total
