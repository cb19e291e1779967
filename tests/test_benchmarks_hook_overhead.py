"""The benchmark of hooked calls runs, and prints what it says it prints. Its figures are not judged here."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from benchmarks import hook_overhead
from hookery import HookType, patch_table

TINY = ["--rounds", "2", "--calls", "3"]


def test_json_has_a_row_for_every_peer_shape_and_set_of_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    hook_overhead.main([*TINY, "--json"])
    printed = json.loads(capsys.readouterr().out)
    rows = printed["rows"]
    assert {(row["shape"], row["style"], row["hooks"], row["peer"]) for row in rows} == {
        (shape, style, hooks, peer)
        for shape in hook_overhead.SHAPES
        for style in hook_overhead.STYLES
        for hooks in hook_overhead.SCENARIOS
        for peer in hook_overhead.PEERS
    }
    cells = len(hook_overhead.SHAPES) * len(hook_overhead.STYLES) * len(hook_overhead.SCENARIOS)
    assert len(rows) == cells * len(hook_overhead.PEERS)
    for row in rows:
        assert 0 < row["ns_p10"] <= row["ns_median"] <= row["ns_p90"]
        assert row["ratio"] > 0
    assert [row["ratio"] for row in rows if row["peer"] == "unhooked"] == [1.0] * cells
    assert len(printed["limits"]) == 6
    assert all(limit["worst"] > 0 for limit in printed["limits"])
    assert {"python", "hookery", "wrapt", "cpu"} <= printed.keys()


def test_the_table_names_versions_machine_peers_and_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    hook_overhead.main(TINY)
    out = capsys.readouterr().out
    for name in (*hook_overhead.PEERS, *hook_overhead.SCENARIOS, *hook_overhead.SHAPES, "cpu: ", "python: ", "wrapt: "):
        assert name in out
    assert max(map(len, out.splitlines())) <= 200


def test_it_leaves_no_hook_no_module_and_the_garbage_collector_as_it_was() -> None:
    modules = set(sys.modules)
    hook_overhead.measure("method", "typed", "AROUND", rounds=1, calls=1)
    assert patch_table.all_patches() == []
    assert not {name for name in set(sys.modules) - modules if name.startswith("hook_overhead_target")}
    assert gc.isenabled()


@pytest.mark.parametrize("shape", hook_overhead.SHAPES)
@pytest.mark.parametrize("peer", [*hook_overhead.BY_HAND, hook_overhead.HOOKERY])
def test_a_peer_that_does_not_run_the_hooks_is_refused(shape: str, peer: str) -> None:
    hooks = hook_overhead.make_hooks(shape, "generic", ["around"])
    hook_overhead.Subject(peer, shape, hooks).close()

    class Stranger:
        __code__ = hooks[0][1].__code__.replace(co_name="stranger")

        def __call__(self, original_fn: hook_overhead.Function, *args: object, **kwargs: object) -> object:
            return original_fn(*args, **kwargs)

    with pytest.raises(AssertionError, match="ran 0 hooks instead of 1"):
        hook_overhead.Subject(peer, shape, ((HookType.AROUND, Stranger()),))
    assert patch_table.all_patches() == []


@pytest.mark.parametrize("option", ["--rounds", "--calls"])
def test_nothing_to_measure_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hook_overhead.main([option, "0"])
    assert "must be at least 1" in capsys.readouterr().err


def test_it_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, hook_overhead.__file__, *TINY], capture_output=True, text=True, check=True, timeout=120
    )
    assert "hookery, reverted" in done.stdout
