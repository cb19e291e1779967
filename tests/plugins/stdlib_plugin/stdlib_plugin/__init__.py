"""Hooks that this plugin registers as it is imported: signs what `json.dumps` returns.

`STDLIB_PLUGIN_FAILS` makes it raise after its hooks are registered: `import`, or `apply` for a hook that does not fit.
"""

import os

from hookery import HookType, plugin_hook
from stdlib_plugin import hooks

FAILS = os.environ.get("STDLIB_PLUGIN_FAILS")

if FAILS == "import":
    raise RuntimeError("stdlib_plugin was told to fail")
if FAILS == "exit":
    raise SystemExit("stdlib_plugin was told to exit")
if FAILS == "apply":
    plugin_hook("json.JSONDecoder", HookType.BEFORE)(hooks.sign)
if FAILS == "miss":
    plugin_hook("json.dumsp", HookType.AFTER)(hooks.sign)
