"""A registry and a folder of modules per test, both cleaned up and checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hookery import HookRegistry, patch_table
from tests.hookery.support import Modules


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("HOOKERY_") and name != "HOOKERY_STATE_DIR"]:
        monkeypatch.delenv(variable)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    """A folder on `sys.path`. Sources may be rewritten within one tick of the clock, so no bytecode is cached."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(folder))
    made = Modules(folder)
    yield made
    made.forget()


@pytest.fixture
def registry() -> Iterator[HookRegistry]:
    """A registry that is empty again after the test, and with it the table of patches."""
    made = HookRegistry()
    yield made
    made.reset()
    assert patch_table.all_patches() == []
