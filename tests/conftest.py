"""Settings of every test process and of the processes that tests start."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

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


@pytest.fixture(autouse=True)
def no_platform_is_left_behind() -> Iterator[None]:
    """A test that chooses a platform of its own and leaves it to those after it fails, and not one of those."""
    yield
    platforms = getattr(sys.modules.get("runtime.platforms"), "__dict__", {})
    chosen = platforms.get("current_platform")
    if chosen is not None and chosen.device_name != os.environ["RUNTIME_PLATFORM"]:
        del platforms["current_platform"]
        pytest.fail(f"the platform {chosen.device_name!r} was left to the tests that come after this one")


def pytest_unconfigure() -> None:
    if _state_folder is not None:
        shutil.rmtree(_state_folder, ignore_errors=True)
