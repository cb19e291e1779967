"""Engines with `catalogue_plugin`, each in a process of its own: everything that a short run can reach, with all graph
runners, with one, and with none, as an engine is by default; with a prefix cache and without; with pages and without.

The first requests run one by one, so that what belongs to a step or a request shows in the counts; see `REGULAR`.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime.plugins.hook_target import Part

ROOT = Path(__file__).resolve().parents[2]

CHUNK = 16
LAYERS = 8
"""Layers of the model: more than any step runs something that is not run in each layer."""


@dataclass(frozen=True)
class Regular:
    """One request that runs alone: the length of its prompt in letters, and how many tokens it gets."""

    prompt: str
    new_tokens: int


REGULAR = (Regular("b" * 5, 6), Regular("c" * 5, 12), Regular("d" * 20, 6))
"""The second is longer than the first, and the prompt of the third is run in two pieces; no other differs.

Where there are graph runners, they replay what the first runs, not the last decode of the second, which has become too
long, and of the third nothing but the second piece of its prompt: the first piece is too large.
"""

_DECODES = {"decode_graph": "on", "decode_graph_sizes": (1, 2)}
_PROMPTS = {"prefill_graph": "breakable", "prefill_graph_sizes": (1, 2, 4, 8)}
_PLAIN = {"graph_backend": "plain"}


@dataclass(frozen=True)
class EngineKind:
    """An engine.

    Attributes:
        arguments: what makes it one.
        parts: what a catalogue may say that it takes, and this one has.
        kept: classes that are not replaced, for it makes a subclass of them: hooks on what that inherits would go to
            the replacement.
    """

    arguments: Mapping[str, Any]
    parts: frozenset[Part]
    kept: tuple[str, ...] = ()


EVERY_RUNNER = "both graph runners and pages"
NO_RUNNER = "no graph runner"
ENGINES = MappingProxyType(
    {
        EVERY_RUNNER: EngineKind(
            _DECODES | _PROMPTS | _PLAIN | {"page_size": 4},
            frozenset(Part) - {Part.PIECEWISE_RUNNER, Part.SINGLE_SLOTS},
            kept=("TokenToKVPoolAllocator",),
        ),
        "a decode graph runner and no prefix cache": EngineKind(
            _DECODES | _PLAIN | {"disable_radix_cache": True},
            frozenset({Part.GRAPH_RUNNER, Part.DECODE_RUNNER, Part.SINGLE_SLOTS}),
        ),
        "a prefill graph runner and no prefix cache": EngineKind(
            _PROMPTS | _PLAIN | {"disable_radix_cache": True},
            frozenset({Part.GRAPH_RUNNER, Part.PREFILL_RUNNER, Part.BREAKABLE_RUNNER, Part.SINGLE_SLOTS}),
        ),
        NO_RUNNER: EngineKind({}, frozenset({Part.PREFIX_CACHE, Part.SINGLE_SLOTS})),
    }
)
"""The last is an engine as it is by default. No part is there in just those that have another, so that what runs tells
which it takes."""

OTHERS, ASKED = -3, -2
"""Where, of what ran in the main process, the other requests are, and the questions about the engine."""


@dataclass(frozen=True)
class Run:
    """What ran where.

    Attributes:
        scheduler: in order: "start", "capture" of each graph runner, and each "step", with what ran in it how often.
        engine: which of `ENGINES` it was.
        main: what ran until the engine was there, for the request that fills caches, for each of `REGULAR`, for all the
            rest, for what asks about the engine, and for the end.
    """

    engine: str
    scheduler: list[dict[str, Any]]
    main: list[dict[str, int]]

    @property
    def parts(self) -> frozenset[Part]:
        """What the engine has."""
        return ENGINES[self.engine].parts

    @property
    def steps(self) -> list[list[dict[str, Any]]]:
        """For each of `REGULAR`, its steps."""
        found: dict[str, list[dict[str, Any]]] = {}
        for window in self.scheduler:
            if window["kind"] == "step" and "requests" in window:
                found.setdefault(window["requests"][0], []).append(window)
        return list(found.values())[1 : 1 + len(REGULAR)]  # the first one fills caches


def run(model: Path, engine: str) -> Run:
    """Run one of `ENGINES` on the CPU, with chunks, a shortage, an abort and draws."""
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.runtime.catalogue_run", str(model), engine],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "RUNTIME_PLATFORM": "cpu",
                "CATALOGUE_TRACE": str(trace),
                "CATALOGUE_KEPT": " ".join(ENGINES[engine].kept),
            },
        )
        assert done.returncode == 0, done.stderr
        return Run(engine, json.loads(trace.read_text()), json.loads(done.stdout))


def main() -> None:
    import hookery

    # Before there is an engine, so that what makes one is hooked as well.
    hookery.registry.counting = True
    hookery.load_plugins(modules=["tests.runtime.catalogue_plugin"], strict=True)
    from runtime.core.sampling_params import SamplingParams
    from runtime.entrypoints.engine import Engine
    from tests.runtime import catalogue_plugin as plugin

    counts = [plugin.calls()]

    def params(new_tokens: int, **others: Any) -> SamplingParams:
        return SamplingParams(max_new_tokens=new_tokens, ignore_eos=True, **others)

    with Engine(
        sys.argv[1],
        dtype="float32",
        max_total_tokens=96,
        context_length=64,
        chunked_prefill_size=CHUNK,
        max_running_requests=8,
        random_seed=1,
        **ENGINES[sys.argv[2]].arguments,
    ) as engine:
        counts.append(plugin.calls())
        engine.generate("a" * 5, sampling_params=params(3))
        counts.append(plugin.calls())
        for each in REGULAR:
            engine.generate(each.prompt, sampling_params=params(each.new_tokens))
            counts.append(plugin.calls())
        engine.generate("x", sampling_params=params(4, temperature=0.8, top_k=5, top_p=0.9))
        together = [letter * 3 for letter in "efgh"[: plugin.TOGETHER]]
        engine.generate(together, sampling_params=params(plugin.TOGETHER_TOKENS))
        stream = engine.stream("k", sampling_params=params(plugin.ABORTED_TOKENS))
        next(stream)
        stream.close()
        counts.append(plugin.calls())
        assert engine.applied_hooks()["scheduler"]
        assert engine.tokenizer_manager.scheduler_pid
        counts.append(plugin.calls())
    counts.append(plugin.calls())
    differences = [
        {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
        for before, after in itertools.pairwise(counts)
    ]
    assert "torch" not in sys.modules, "no class of a model, a pool or a runner can be made here"
    print(json.dumps(differences))


if __name__ == "__main__":
    main()
