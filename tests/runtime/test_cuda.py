"""On an NVIDIA GPU: the platform is found, its operations work, and the output is the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime.config import GRAPH_CHECK_ENV
from runtime.layers.layernorm import RMSNorm
from runtime.platforms import DeviceCapability
from runtime.platforms.cuda import CudaSRTPlatform
from tests.runtime.checkpoints import VARIANTS
from tests.runtime.families import make_checkpoint

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CudaSRTPlatform.is_available(), reason="torch sees no NVIDIA GPU on this host"),
]


def run(*arguments: str, platform: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNTIME_")}
    if platform is not None:
        environment["RUNTIME_PLATFORM"] = platform
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**environment, "PYTHONPATH": str(ROOT), "HOOKERY_PLUGINS": ""},
    )


def tokens(model: Path, *flags: str, platform: str | None) -> list[list[int]]:
    prompts = ["x", "some longer text", "and one that is longer than the others by far"]
    done = run("generate", *prompts, "--model", str(model), "--dtype", "float32", "--json", *flags, platform=platform)
    assert done.returncode == 0, done.stderr
    return [output["token_ids"] for output in json.loads(done.stdout)["outputs"]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_generation_in_float32_is_that_of_the_cpu(checkpoint: Callable[[str], Path], variant: str) -> None:
    model = checkpoint(variant)
    flags = ["--max-new-tokens", "24"]
    assert tokens(model, *flags, platform="cuda") == tokens(model, *flags, platform="cpu")


@pytest.mark.parametrize(
    "graphs",
    [
        ["--decode-graph", "on"],
        ["--decode-graph", "on", "--graph-backend", "accelerator"],
        ["--decode-graph", "on", "--graph-backend", "plain"],
        ["--prefill-graph", "breakable", "--prefill-graph-sizes", "16", "64", "128"],
        ["--prefill-graph", "piecewise", "--prefill-graph-sizes", "64", "128"],
        ["--decode-graph", "on", "--prefill-graph", "breakable", "--prefill-graph-sizes", "64", "128"],
    ],
    ids=" ".join,
)
def test_recorded_steps_say_what_the_cpu_says(llama_checkpoint: Path, graphs: list[str]) -> None:
    flags = ["--max-new-tokens", "24"]
    assert tokens(llama_checkpoint, *flags, *graphs, platform="cuda") == tokens(
        llama_checkpoint, *flags, platform="cpu"
    )


@pytest.mark.parametrize("family", ["deepseek-v2", "deepseek-v32"])
def test_recorded_steps_of_other_kinds_of_attention_say_what_they_say_as_written(tmp_path: Path, family: str) -> None:
    model = str(make_checkpoint(tmp_path, family))
    code = f"""
import os
os.environ["{GRAPH_CHECK_ENV}"] = "1"
from tests.runtime.graph_runs import generate, make_runner
from tests.runtime.checkpoints import random_prompts

arrivals = [random_prompts((5, 6), vocab_size=100), [], random_prompts((12,), vocab_size=100)]
expected = generate(make_runner({model!r}), arrivals)
runner = make_runner({model!r}, decode_graph="on", prefill_graph="breakable", graph_backend="device")
assert generate(runner, arrivals) == expected
"""
    environment = os.environ | {"RUNTIME_PLATFORM": "cuda", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=240)


def test_seeded_sampling_draws_the_same_numbers_as_on_the_cpu(llama_checkpoint: Path) -> None:
    # The random weights' distributions are flat: a draw falls on the border between two tokens once in a million.
    flags = ["--max-new-tokens", "12", "--temperature", "1", "--top-p", "0.9", "--top-k", "40", "--seed", "5"]
    assert tokens(llama_checkpoint, *flags, platform="cuda") == tokens(llama_checkpoint, *flags, platform="cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_other_dtypes_run(llama_checkpoint: Path, dtype: str) -> None:
    flags = ["--model", str(llama_checkpoint), "--dtype", dtype, "--max-new-tokens", "8", "--json"]
    done = run("generate", "x", *flags, platform="cuda")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"][0]["token_ids"]


def test_the_gpu_is_found_without_being_named_and_passes_the_check() -> None:
    done = run("platform", "--check", "--json", platform=None)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["platform"], report["device"]) == ("cuda", "cuda:0")
    assert report["check"]["max_relative_error"] < 1e-5
    assert report["uuid"]
    assert report["capability"]


def test_device_operations() -> None:
    platform = CudaSRTPlatform()
    device = platform.get_device(0)
    platform.set_device(device)
    assert platform.get_device_name()
    assert platform.get_device_uuid() == platform.get_device_uuid(0)
    assert platform.get_device_capability() >= DeviceCapability(3, 5)
    ballast = torch.ones(64 * 2**20, dtype=torch.uint8, device=device)
    free, total = platform.get_available_memory()
    assert 0 < free < total
    assert abs(total - platform.get_device_total_memory()) < 2**30
    held = platform.get_current_memory_usage()
    assert held >= ballast.nbytes
    del ballast
    platform.synchronize()
    platform.empty_cache()
    assert platform.get_current_memory_usage() < held
    platform.seed_everything(3)
    first = torch.rand(4, device=device)
    platform.seed_everything(3)
    assert torch.equal(torch.rand(4, device=device), first)
    stream, start, end = platform.create_stream(), platform.create_event(True), platform.create_event(True)
    with platform.use_stream(stream):
        assert platform.current_stream() == stream
        start.record()
        torch.ones(1000, 1000, device=device) @ torch.ones(1000, 1000, device=device)
        end.record()
    stream.synchronize()
    assert start.elapsed_time(end) > 0
    assert torch.ones(3).pin_memory().is_pinned()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_cuda_is_the_native_one(dtype: torch.dtype) -> None:
    norm = RMSNorm(512, 1e-5, dtype, torch.device("cuda"))
    norm.weight.copy_(torch.randn(512))
    x = torch.randn(7, 512, device="cuda", dtype=dtype)
    torch.testing.assert_close(norm.forward_cuda(x.clone()), norm.forward_native(x.clone()))
