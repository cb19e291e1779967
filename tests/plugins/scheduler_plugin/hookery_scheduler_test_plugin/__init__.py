"""A plugin as a vendor would ship it. What it does is visible from outside the process it runs in:

every sampled token becomes `FORCED_TOKEN`, and each step appends a line with the process's id to a file.
"""

import json
import os

from hookery import HookType, plugin_hook

LOG_VARIABLE = "SCHEDULER_TEST_PLUGIN_LOG"
FORCED_TOKEN = 7


@plugin_hook("runtime.managers.scheduler.Scheduler.step", HookType.AROUND, reason="leave a trace of every step")
def log_step(original_fn, *args, **kwargs):
    made = original_fn(*args, **kwargs)
    with open(os.environ[LOG_VARIABLE], "a") as log:
        log.write(json.dumps({"pid": os.getpid(), "tokens": made}) + "\n")
    return made


@plugin_hook("runtime.model_executor.model_runner.ModelRunner.sample", HookType.AFTER, reason="show in the output")
def force_token(result, *args, **kwargs):
    return [FORCED_TOKEN] * len(result)
