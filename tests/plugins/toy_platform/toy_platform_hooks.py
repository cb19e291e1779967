"""Hooks that the toy's distribution ships beside the platform."""

from toy_platform import trace

from hookery import HookType, plugin_hook

trace("import toy_platform_hooks")


@plugin_hook("runtime.platforms.current_platform.post_load_model", HookType.BEFORE, reason="show that it runs")
def before_post_load(*args, **kwargs):
    trace("hook of toy_platform_hooks")
