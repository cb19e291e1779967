"""Signs what `json.dumps` returns, as the plugin does whose entry point has the same name."""

from typing import Any

from hookery import HookType, plugin_hook


@plugin_hook("json.dumps", HookType.AFTER)
def sign(result: str, *args: Any, **kwargs: Any) -> str:
    return result + "+twin"
