"""The runtime on a device that is not the CPU, brought by a platform of a few lines.

The device is compiled from `toy_device.cpp`: it computes what the CPU does and refuses, as a GPU does, an operation on
tensors of which one was left on the host.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("toy_device.cpp")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the device is compiled, and there is no g++"),
]

PROGRAM = """
import json, sys, types
import torch

torch.ops.load_library(sys.argv[1])
torch.utils.rename_privateuse1_backend("toy")
accelerator = torch.accelerator
torch._register_device_module("toy", types.SimpleNamespace(
    is_available=lambda: True,
    is_initialized=lambda: True,
    _is_in_bad_fork=lambda: False,
    device_count=lambda: 2,
    current_device=lambda: accelerator.current_device_index(),
    set_device=lambda device: accelerator.set_device_index(device),
    mem_get_info=lambda index: (2**30, 2**31),
    memory_reserved=lambda index: 0,
    get_device_name=lambda index: f"Toy {index}",
    get_device_properties=lambda index: types.SimpleNamespace(total_memory=2**31),
    manual_seed_all=lambda seed: None,
    empty_cache=lambda: None,
    synchronize=lambda: None,
))

from runtime import platforms
from runtime.config import ServerArgs
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams
from runtime.model_executor.model_runner import ModelRunner
from runtime.platforms import PlatformCapabilities, PlatformEnum, SRTPlatform
from runtime.platforms.accelerator import AcceleratorDeviceMixin
from runtime.platforms.cpu import CpuSRTPlatform
from runtime.sampling.sampler import SamplingBatch


class ToyPlatform(AcceleratorDeviceMixin, SRTPlatform):
    _enum = PlatformEnum.OOT
    device_name = device_type = "toy"

    @property
    def capabilities(self):
        return PlatformCapabilities(dtypes=("float32", "bfloat16"), float64=sys.argv[3] == "float64")

    def get_torch_distributed_backend_str(self):
        return "gloo"


def generate(platform, dtype, **params):
    platforms.current_platform = platform
    runner = ModelRunner(ServerArgs(sys.argv[2], dtype=dtype, max_running_requests=4, random_seed=3))
    rows = [
        Request(str(i), list(range(5, 8 + 3 * i)), SamplingParams(max_new_tokens=20, ignore_eos=True, **params))
        for i in range(4)
    ]

    def step(extends, decodes):
        logits = runner.forward(runner.prepare_forward_batch(extends, decodes))
        assert logits.device.type == platform.device_type
        tokens = runner.sample(logits, SamplingBatch.from_requests(extends + decodes))
        for request, token in zip(extends + decodes, tokens, strict=True):
            request.append_token(token, frozenset(), runner.context_length)

    step(rows[:2], [])
    step(rows[2:], rows[:2])
    for _ in range(10):
        step([], rows)
    for request in rows:
        runner.release(request)
    none_held = torch.empty(0, dtype=torch.int64, device=runner.device)
    runner.token_to_kv_pool_allocator.check_integrity(none_held)
    return [request.output_ids for request in rows]


def refused():
    try:
        torch.ones(2, 2, device="toy").index_select(0, torch.tensor([1]))
    except RuntimeError as error:
        return str(error).splitlines()[0]


results = {"refused": refused()}
for name, params in {
    "greedy": {"dtype": "float32"},
    "seeded": {"dtype": "float32", "temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 4},
    "unseeded": {"dtype": "float32", "temperature": 0.7},
    "bfloat16": {"dtype": "bfloat16"},
}.items():
    results[name] = [generate(platform, **params) for platform in (CpuSRTPlatform(), ToyPlatform())]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled device."""
    library = tmp_path_factory.mktemp("device") / "toy_device.so"
    libraries = cpp_extension.library_paths()
    done = subprocess.run(
        [
            *("g++", "-std=c++20", "-O0", "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(library)),
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            *(f"-isystem{path}" for path in cpp_extension.include_paths()),
            *(f"-L{path}" for path in libraries),
            *(f"-Wl,-rpath,{path}" for path in libraries),
            *("-ltorch_cpu", "-lc10"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return library


@pytest.mark.parametrize("capability", ["float64", "no float64"])
def test_prompts_decodes_and_draws_stay_on_the_device_and_equal_the_cpus(
    device: Path, llama_checkpoint: Path, capability: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(device), str(llama_checkpoint), capability],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.pop("refused").startswith("aten::index_select was given a tensor on cpu and one on the device")
    assert set(results) == {"greedy", "seeded", "unseeded", "bfloat16"}
    for on_cpu, on_toy in results.values():
        assert on_toy == on_cpu
