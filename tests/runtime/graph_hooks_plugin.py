"""A plugin that puts a hook on every seam of the graph runners of decodes and of broken steps with prompts."""

from __future__ import annotations

from typing import Any

import hookery
from runtime.plugins.graph_targets import GRAPH_TARGETS

TARGETS = [target for target in GRAPH_TARGETS if "Piecewise" not in target.name]


def passing(*args: Any, **kwargs: Any) -> None:
    """A hook that changes nothing."""


for _target in TARGETS:
    hookery.registry.register(_target.name, passing, hookery.HookType.BEFORE)
