"""The README's own examples work as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def run(*arguments: str, python_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{python_path}{os.pathsep}{ROOT}", "HOOKERY_PLUGINS": ""},
    )


def test_the_users_own_hook_is_fifteen_lines_and_runs_in_the_scheduler(tmp_path: Path) -> None:
    (block,) = [block for block in python_blocks() if "never_end" in block]
    assert len([line for line in block.splitlines() if line]) == 15
    (tmp_path / "my_hooks.py").write_text(block)
    prompts = ["Return the", "If the", "A list"]
    flags = ["--max-new-tokens", "4", "--plugin", "my_hooks"]
    done = run("-m", "runtime", "generate", *prompts, *flags, python_path=tmp_path)
    assert done.returncode == 0, done.stderr
    timed = re.findall(r"^\[(\d) tokens: \d\.\d{4} s\]$", done.stderr, flags=re.MULTILINE)
    assert sum(map(int, timed)) == 12
    applied = re.findall(r"^scheduler .* (\w+) +my_hooks +applied +yes +\d+$", done.stdout, flags=re.MULTILINE)
    assert sorted(applied) == ["never_end", "time_batch"]


def test_the_hookery_example_runs(tmp_path: Path) -> None:
    (block,) = [block for block in python_blocks() if "sign" in block]
    (tmp_path / "example.py").write_text(
        "import json\n"
        + block.replace('hookery.registry.revert("json.dumps")', "")
        + 'assert json.dumps({}) == "{}\\n"\n'
        + 'hookery.registry.revert("json.dumps")\n'
        + 'assert json.dumps({}) == "{}"\n'
    )
    done = run(str(tmp_path / "example.py"), python_path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_engine_example_runs_on_the_embedded_model(tmp_path: Path) -> None:
    (block,) = [block for block in python_blocks() if "with Engine(" in block]
    (tmp_path / "example.py").write_text(block.replace('model="path/to/a/model", ', ""))
    done = run(str(tmp_path / "example.py"), python_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("length") + done.stdout.count("stop") >= 2


def test_the_command_line_example_is_applied(tmp_path: Path) -> None:
    (block,) = [block for block in python_blocks() if "note_request" in block]
    (tmp_path / "web_hooks.py").write_text(block)
    done = run("-m", "hookery", "check", "--hook", "web_hooks", python_path=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 hook, 0 would not be applied")
