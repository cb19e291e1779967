"""The life of the scheduler process, from its first line to its exit.

Nothing heavy is imported at the top: the module is unpickled in the child before any hook is in place, and the main
process imports it only for the name of the entry function. Hooks are applied first, then the scheduler is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from multiprocessing import connection, parent_process

from runtime.config import ServerArgs
from runtime.core.errors import EngineError
from runtime.managers.io_struct import Channel, ChannelClosedError, SchedulerFailed, SchedulerReady, ToScheduler

PARENT_POLL_SECONDS = 1.0


def run_scheduler_process(server_args: ServerArgs, pipe: connection.Connection) -> None:
    """Entry point of the spawned process. Exits with 0 after a shutdown or when the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's; it shuts this one down
    os.dup2(2, 1)  # what a hook prints here is not the main process's output, which may be JSON
    _exit_with_parent()
    channel: Channel[ToScheduler] = Channel(pipe, ToScheduler)
    try:
        _serve(server_args, channel)
    except ChannelClosedError:
        return
    except Exception as error:  # noqa: BLE001  (whatever it is, the main process has to hear of it)
        _report(channel, error)
        sys.exit(1)


def _serve(server_args: ServerArgs, channel: Channel[ToScheduler]) -> None:
    from runtime.plugins import bootstrap

    with bootstrap.building(server_args.plugins):
        from runtime.managers import scheduler

        served = scheduler.Scheduler(server_args, channel)
    channel.send(SchedulerReady(served.limits))
    served.event_loop()


def _report(channel: Channel[ToScheduler], error: Exception) -> None:
    import hookery

    if not isinstance(error, (EngineError, hookery.HookError)):
        traceback.print_exception(error)  # unforeseen: whoever has to mend it needs more than a line
    try:
        channel.send(SchedulerFailed(type(error).__name__, " ".join((str(error) or repr(error)).split())))
    except ChannelClosedError:
        print(f"the scheduler failed and the main process is gone: {error}", file=sys.stderr)


def _exit_with_parent() -> None:
    """End this process when the main process ends, however it ends and whatever this process is doing.

    The sentinel tells at once, unless a fork of the main process keeps it open; then the changed parent tells.
    """
    parent = parent_process()
    if parent is None:
        return

    def wait_for_parent() -> None:
        while os.getppid() == parent.pid and not connection.wait([parent.sentinel], PARENT_POLL_SECONDS):
            continue
        os._exit(0)

    threading.Thread(target=wait_for_parent, name="exit-with-parent", daemon=True).start()
