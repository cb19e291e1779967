"""What the platform interface has no method for: the device saves power unless a batch runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from acme_accelerator import evidence
from hookery import HookType, plugin_hook


@plugin_hook(
    "runtime.managers.scheduler.Scheduler.run_batch",
    HookType.AROUND,
    reason="run the device at its high clock while it has a batch, and save power otherwise",
)
def at_high_clock(original_fn: Callable[..., list[int]], *args: Any, **kwargs: Any) -> list[int]:
    """The batch, at the high clock."""
    from acme_accelerator import device  # loading hooks must not load torch

    device.set_clock(True)
    try:
        tokens = original_fn(*args, **kwargs)
    finally:
        device.set_clock(False)
    evidence.note("batch", tokens=len(tokens))
    return tokens
