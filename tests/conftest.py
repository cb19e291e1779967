"""Settings of every test process and of the processes that tests start."""

import os
import shutil
import tempfile

# Tests run in parallel and start processes of their own: with every one of them spinning a thread per core, small
# matrix products take many times as long. Read by torch and tokenizers when they are imported, so set before that.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Results are compared with the CPU's; what a GPU does has tests of its own, which say so.
os.environ.setdefault("RUNTIME_PLATFORM", "cpu")
# Models come from directories that tests make; nothing may ask a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Distributions with tests of their own, for an environment in which they are installed.
collect_ignore = ["plugins"]

# Where processes say which hooks they have: a folder of this run's own, which its worker processes inherit.
_state_folder = None
if "HOOKERY_STATE_DIR" not in os.environ:
    _state_folder = os.environ["HOOKERY_STATE_DIR"] = tempfile.mkdtemp(prefix="hookery-tests-")


def pytest_unconfigure() -> None:
    if _state_folder is not None:
        shutil.rmtree(_state_folder, ignore_errors=True)
