"""A plugin that makes the platform name pools of its own: one as it should be, or one of the wrong kind."""

from __future__ import annotations

import os
from typing import Any

from hookery import HookType, plugin_hook
from runtime.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool


class PlatformPool(MHATokenToKVPool):
    def _create_buffers(self) -> None:
        super()._create_buffers()
        with open(os.environ["MEMORY_TRACE"], "a") as file:
            file.write(f"{os.getpid()} pool {type(self).__name__}\n")


class WrongPool(MLATokenToKVPool):
    pass


@plugin_hook("runtime.platforms.current_platform.get_mha_kv_pool_cls", HookType.REPLACE, reason="bring a pool")
def bring_a_pool(*args: Any, **kwargs: Any) -> str:
    return f"{__name__}:{os.environ['PLATFORM_POOL']}"
