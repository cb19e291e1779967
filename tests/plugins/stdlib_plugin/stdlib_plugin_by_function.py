"""An entry point that names a function, which registers when it is called."""

from typing import Any

import hookery


def register() -> None:
    @hookery.plugin_hook("json.dumps", hookery.HookType.AFTER)
    def sign(result: str, *args: Any, **kwargs: Any) -> str:
        return result + "+function"
