"""`hookery run` with programs that nobody here wrote."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

from tests.hookery.support import environment_of, run_hookery


def write(path: Path, source: str) -> None:
    path.write_text(textwrap.dedent(source))


def test_a_web_server_of_the_standard_library(tmp_path: Path) -> None:
    write(
        tmp_path / "web_hooks.py",
        """
        from hookery import HookType, plugin_hook

        @plugin_hook("http.server.SimpleHTTPRequestHandler.do_GET", HookType.BEFORE)
        def note_request(handler):
            print(f"hook: {handler.path}", flush=True)

        @plugin_hook("http.server.SimpleHTTPRequestHandler.end_headers", HookType.BEFORE)
        def sign(handler):
            handler.send_header("X-Hooked", "yes")
        """,
    )
    (tmp_path / "page.txt").write_text("a page")
    server = subprocess.Popen(
        [sys.executable, "-m", "hookery", "run", "--hook", "web_hooks", "-m", "http.server", "0", "-b", "127.0.0.1"],
        cwd=tmp_path,
        env=environment_of([], {"PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/page.txt", timeout=60) as answer:
            assert answer.read() == b"a page"
            assert answer.headers["X-Hooked"] == "yes"
        assert server.stdout.readline() == "hook: /page.txt\n"
        listed = run_hookery("list", "--process", str(server.pid), "--json", folder=tmp_path)
        states = {record["target"]: record["state"] for record in json.loads(listed.stdout)["records"]}
        # The program is that module under another name, and nobody has imported the module itself.
        targets = ("do_GET", "end_headers")
        assert states == {f"http.server.SimpleHTTPRequestHandler.{name}": "applied" for name in targets}
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_pytest_by_its_console_script(tmp_path: Path) -> None:
    write(
        tmp_path / "test_hooks.py",
        """
        from hookery import HookType, plugin_hook

        @plugin_hook("_pytest.runner.call_and_report", HookType.BEFORE, count=True)
        def note(item, when, *args, **kwargs):
            print(f"hook: {when} {item.name}")
        """,
    )
    write(tmp_path / "test_it.py", "def test_one(): pass\n\ndef test_two(): assert 0\n")
    arguments = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q", "-s", "test_it.py"]
    done = run_hookery("run", "--hook", "test_hooks", "pytest", *arguments, folder=tmp_path, status=1)
    assert "1 failed, 1 passed" in done.stdout
    noted = [line.partition("hook: ")[2] for line in done.stdout.splitlines() if "hook: " in line]
    assert noted == [f"{when} test_{name}" for name in ("one", "two") for when in ("setup", "call", "teardown")]


def test_transformers_generating(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    write(
        tmp_path / "attention_hooks.py",
        """
        from hookery import HookType, plugin_hook

        shapes = []

        @plugin_hook("transformers.models.llama.modeling_llama.eager_attention_forward", HookType.BEFORE)
        def note_shape(module, query, *args, **kwargs):
            shapes.append(tuple(query.shape))
        """,
    )
    write(
        tmp_path / "generate.py",
        """
        import sys
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                             num_attention_heads=2, num_key_value_heads=2, attn_implementation="eager")
        model = LlamaForCausalLM(config).eval()
        tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0,
                                eos_token_id=None)
        hooks = sys.modules.get("attention_hooks")
        print(tokens.tolist(), None if hooks is None else hooks.shapes)
        """,
    )
    done = run_hookery("run", "--hook", "attention_hooks", "generate.py", folder=tmp_path)
    plainly = subprocess.run(
        [sys.executable, "generate.py"],
        cwd=tmp_path,
        env=environment_of([]),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # Two layers, a prompt of three tokens in one pass, then three passes of one token.
    shapes = [(1, 2, 3, 8)] * 2 + [(1, 2, 1, 8)] * 6
    assert done.stdout == plainly.stdout.replace("None", str(shapes))
