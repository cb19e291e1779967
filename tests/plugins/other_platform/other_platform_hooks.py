"""Hooks that are for the other platform alone."""

import os

from hookery import HookType, plugin_hook

with open(os.environ["PLATFORM_TRACE"], "a") as file:
    file.write("import other_platform_hooks\n")


@plugin_hook("runtime.platforms.current_platform.post_load_model", HookType.BEFORE, reason="show that it runs")
def before_post_load(*args, **kwargs):
    with open(os.environ["PLATFORM_TRACE"], "a") as file:
        file.write("hook of other_platform_hooks\n")
