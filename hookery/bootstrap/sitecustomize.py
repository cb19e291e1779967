"""Found first on ``PYTHONPATH`` by every Python that ``hookery run`` starts: applies the hooks, then gives way.

Python imports a module of this name when it starts. The user's own is found and run as it would be without this one,
and where there is none, Python is told so. Whatever Python a program starts comes by here, so this compiles with old
ones too.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_above = os.path.dirname(os.path.dirname(_here))
sys.path[:] = [_entry for _entry in sys.path if os.path.abspath(_entry) != _here]
sys.path_importer_cache.pop(_here, None)
_this_module = sys.modules.pop("sitecustomize", None)  # kept, or Python 2 would clear it

_unreachable = None
if sys.version_info < (3, 10):  # noqa: UP036
    _unreachable = "hookery needs Python 3.10 or newer"
else:
    try:
        import hookery  # noqa: F401
    except ImportError:
        if _above in os.environ.get("HOOKERY_RUN_FOLDERS", "").split(os.pathsep):
            sys.path.append(_above)  # hookery is not installed, but used from a folder
    try:
        from hookery import running as _running
    except ImportError as _error:
        _unreachable = "hookery cannot be imported there ({})".format(_error)  # noqa: UP032
    else:
        _running.apply_in_this_process()

if _unreachable is not None:
    sys.stderr.write(
        "hookery run: no hooks in process {}, {}: {}\n".format(os.getpid(), sys.executable, _unreachable)  # noqa: UP032
    )
    sys.stderr.flush()
    if os.environ.get("HOOKERY_STRICT") == "1":
        os._exit(2)

# The user's own; if there is none, Python expects just the error that this then is.
import sitecustomize  # type: ignore[import-not-found,unused-ignore]  # noqa: E402, F401
