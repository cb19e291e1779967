"""Steps that a compiler makes faster: whole or in pieces, once, and never as they are written instead."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from runtime.core.errors import ConfigError
from runtime.mem_cache.memory_pool import AttentionKind
from runtime.model_executor import bucketed_graph_runner
from runtime.model_executor.bucketed_graph_runner import ShapeKey
from runtime.model_executor.cuda_graph_runner import CudaGraphRunner
from runtime.platforms.cpu import CpuSRTPlatform
from tests.runtime.checkpoints import random_prompts
from tests.runtime.families import make_checkpoint
from tests.runtime.graph_runs import (
    DECODE_SIZES,
    FAMILIES,
    LENGTHS,
    generate,
    make_runner,
    poison,
    surroundings,
)

__all__ = ["surroundings"]

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture
def inductor(mocker: MockerFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's own compiler, and where it keeps what it makes."""
    kept = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kept))
    mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value="inductor")
    return kept


class TestPieces:
    def test_pieces_are_compiled_between_one_attention_and_the_next(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        graphs = []

        def compiler(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
            graphs.append([str(node.target) for node in graph.graph.nodes if node.op.startswith("call")])
            return graph

        mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value=compiler)
        make_runner(family("llama"), prefill_graph="piecewise", graph_backend="plain", prefill_graph_sizes=(8,))
        assert len(graphs) > 3
        assert not any("scaled_dot_product" in target or "index_copy" in target for each in graphs for target in each)
        assert sum("linear" in target or "addmm" in target for each in graphs for target in each) >= 3

    def test_layers_of_all_sizes_are_compiled_beyond_torch_s_limit(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        # Layers have their code in common, so that torch counts an entry for each of them and each size.
        runs = Counter[str]()

        def compiler(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
            runs["compiled"] += 1

            def run(*args: Any) -> Any:
                runs["run"] += 1
                return graph.forward(*args)

            return run

        mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value=compiler)
        args = {"prefill_graph": "piecewise", "graph_backend": "plain", "prefill_graph_sizes": (4, 8)}
        with torch._dynamo.config.patch(recompile_limit=2):
            runner = make_runner(family("llama"), **args)
            compiled, pieces = runs["compiled"], []
            for length in (4, 8, 4):
                before = runs["run"]
                generate(runner, [random_prompts((length,), vocab_size=100)], 1)
                pieces.append(runs["run"] - before)
        assert pieces[0] >= 3
        assert len(set(pieces)) == 1, "nothing runs as it is written"
        assert runs["compiled"] == compiled, "nothing is compiled at replay"
        mocker.patch.object(bucketed_graph_runner, "COMPILED_ENTRIES", 2)
        torch.compiler.reset()
        with pytest.raises(ConfigError, match=r"Piecewise.* cannot record .*recompile_limit"):
            make_runner(family("llama"), **args)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch has deprecated
    def test_compiled_pieces_say_the_same(self, inductor: Path, mocker: MockerFixture, tmp_path: Path) -> None:
        directory = make_checkpoint(tmp_path / "model", FAMILIES[AttentionKind.MLA], num_hidden_layers=1)
        plain = make_runner(directory)
        poison(mocker)
        runner = make_runner(directory, prefill_graph="piecewise", graph_backend="plain", prefill_graph_sizes=(16,))
        for lengths in ((16,), (3, 8)):
            arrivals = [random_prompts(lengths, vocab_size=100)]
            assert generate(runner, arrivals) == generate(plain, arrivals)
        assert any(inductor.rglob("*.so")), "kept on disk"


class TestDecodes:
    @pytest.mark.parametrize(("kind", "sizes"), [("mha", DECODE_SIZES), ("mla", (4,)), ("nsa", (4,))])
    def test_the_compiled_backend_compiles_decodes_whole_and_once_per_size(
        self, family: Callable[[str], Path], mocker: MockerFixture, kind: str, sizes: tuple[int, ...]
    ) -> None:
        graphs = []

        def compiler(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
            graphs.append(graph)
            return graph

        mocker.patch.object(CpuSRTPlatform, "get_compile_backend", return_value=compiler)
        directory = family(FAMILIES[AttentionKind(kind)])
        plain = make_runner(directory)
        runner = make_runner(directory, decode_graph="on", graph_backend="compiled", decode_graph_sizes=sizes)
        assert len(graphs) == len(sizes)
        for size in (1, 2, 3, 4, 2):
            arrivals = [random_prompts(LENGTHS[:size], vocab_size=100)]
            assert generate(runner, arrivals) == generate(plain, arrivals)
        assert len(graphs) == len(sizes), "nothing is compiled at replay"

    def test_what_cannot_be_compiled_whole_is_refused(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        real = CudaGraphRunner.step_for

        def step_for(self: Any, key: ShapeKey) -> Any:
            step = real(self, key)

            def breaking() -> Any:
                torch._dynamo.graph_break()
                return step()

            return breaking

        mocker.patch.object(CudaGraphRunner, "step_for", step_for)
        with pytest.raises(ConfigError, match=r"cannot record .*CompiledGraphBackend.*graph_break"):
            make_runner(family("llama"), decode_graph="on", graph_backend="compiled", decode_graph_sizes=(2,))

    def test_an_error_where_nothing_is_compiled_imports_no_compiler(
        self, family: Callable[[str], Path], mocker: MockerFixture
    ) -> None:
        mocker.patch.object(CudaGraphRunner, "step_for", side_effect=LookupError("of somebody"))
        mocker.patch.dict(sys.modules)
        sys.modules.pop("torch._dynamo.exc", None)
        mocker.patch.object(torch, "_dynamo", None)
        with pytest.raises(LookupError, match="of somebody"):
            make_runner(family("llama"), decode_graph="on")
        assert "torch._dynamo.exc" not in sys.modules

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch has deprecated
    def test_compiled_decodes_say_the_same(
        self, family: Callable[[str], Path], inductor: Path, mocker: MockerFixture
    ) -> None:
        plain = make_runner(family("llama"))
        poison(mocker)
        runner = make_runner(family("llama"), decode_graph="on", graph_backend="compiled", decode_graph_sizes=(4,))
        for size in (4, 3):
            arrivals = [random_prompts(LENGTHS[:size], vocab_size=100)]
            assert generate(runner, arrivals) == generate(plain, arrivals)
        assert any(inductor.rglob("*.so")), "kept on disk"
