"""The hooks, in a module of their own that the plugin imports."""

from typing import Any

from hookery import HookType, plugin_hook


@plugin_hook("json.dumps", HookType.AFTER, reason="sign what is written")
def sign(result: str, *args: Any, **kwargs: Any) -> str:
    return result + "+stdlib"


@plugin_hook("wsgiref.util.guess_scheme", HookType.AFTER, reason="a module that nobody has imported yet")
def shout(result: str, *args: Any, **kwargs: Any) -> str:
    return result.upper()
