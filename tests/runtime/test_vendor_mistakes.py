"""What a vendor gets wrong when he brings up a device: one line that says what, before anything expensive is made.

Each mistake is a distribution of its own; the command is run as a user runs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.plugin_distributions import Environment

ROOT = Path(__file__).resolve().parents[2]

ON_THE_HOST = """
from runtime.platforms import PlatformCapabilities, PlatformEnum, SRTPlatform
from runtime.platforms.cpu import CpuDeviceMixin


class VendorPlatform(CpuDeviceMixin, SRTPlatform):
    _enum = PlatformEnum.OOT
    device_name = "vendor"
"""
ON_THE_DEVICE = """
from acme_accelerator.platform import AcmePlatform
from runtime.platforms import PlatformCapabilities


class VendorPlatform(AcmePlatform):
    device_name = "vendor"
"""
ACTIVATE = """

def activate():
    return VendorPlatform
"""
LOADED = """
    def post_load_model(self, model):
        open("a model was loaded", "w").close()
"""


def distribute(folder: Path, code: str, distribution: str = "vendor-platform") -> None:
    """Put a distribution into `folder` as pip would leave it there; its entry point is called `vendor`."""
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    (metadata := folder / f"{module}-1.0.dist-info").mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[runtime.platforms]\nvendor = {module}:activate\n")


def the_error(python: Path | str, folder: Path, *flags: str, **variables: str) -> str:
    """The one line that `python -m runtime generate` ends with; asserts that there is nothing else."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTIME_", "ACME_"))}
    done = subprocess.run(
        [python, "-m", "runtime", "generate", "x", "--dtype", "float32", "--max-new-tokens", "1", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**inherited, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert not (folder / "a model was loaded").exists()
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


@dataclass(frozen=True)
class Mistake:
    """A platform that is wrong.

    Attributes:
        body: what its class has beyond the names.
        error: the whole line.
        flags: of the command, where the mistake matters only then.
    """

    body: str
    error: str
    flags: tuple[str, ...] = ()


HOST_MISTAKES = {
    "a pool that is no subclass": Mistake(
        "    def get_mha_kv_pool_cls(self):\n        return 'collections:OrderedDict'\n",
        "KV pool from get_mha_kv_pool_cls: collections.OrderedDict must be a subclass of"
        " runtime.mem_cache.memory_pool.MHATokenToKVPool",
    ),
    "a pool that is made otherwise": Mistake(
        "    def get_mha_kv_pool_cls(self):\n"
        "        return 'vendor_platform:Pool'\n\n\n"
        "from runtime.mem_cache.memory_pool import MHATokenToKVPool\n\n\n"
        "class Pool(MHATokenToKVPool):\n"
        "    def __init__(self, size):\n"
        "        pass\n",
        "KV pool from get_mha_kv_pool_cls: vendor_platform.Pool(size) does not take what the runtime passes, (size=...,"
        " page_size=..., dtype=..., device=..., head_num=..., head_dim=..., layer_num=...): got an unexpected keyword"
        " argument 'page_size'",
    ),
    "an operation with a wrong signature": Mistake(
        "    def init_backend(self):\n"
        "        from runtime.layers.layernorm import RMSNorm\n\n"
        "        RMSNorm.register_oot_forward(rms_norm, 'vendor')\n\n\n"
        "def rms_norm(norm, x, weight):\n    return x\n",
        "runtime.layers.layernorm.RMSNorm.register_oot_forward(..., 'vendor'):"
        " vendor_platform.rms_norm(norm, x, weight) does not take the calls that"
        " runtime.layers.layernorm.RMSNorm.forward_native(self, x: 'torch.Tensor') ->"
        " 'torch.Tensor' takes: missing a required argument: 'weight'",
    ),
}
DEVICE_MISTAKES = {
    "float64": Mistake(
        "",
        "platform vendor declares float64, but acme:0 cannot compute in it: acme: copy: this revision of the device has"
        " no float64; correct its capabilities",
    ),
    "graphs": Mistake(
        "",
        "platform vendor declares graph_capture, but AcceleratorGraphBackend cannot record on acme:0: acme: this"
        " revision of the device cannot record graphs; correct its capabilities, or let get_graph_backends return one"
        " that can",
        ("--decode-graph", "on"),
    ),
    # The runtime's own pool stores 8-bit floats with operations that this device lacks.
    "float8": Mistake(
        "    def get_mha_kv_pool_cls(self):\n        return None\n",
        "get_mha_kv_pool_cls of platform vendor returned None, and MHATokenToKVPool, which is used then, cannot store"
        " torch.float8_e4m3fn on acme:0: acme: copy: this revision of the device has no float8; return a pool that can,"
        " or choose another kv_cache_dtype",
        ("--kv-cache-dtype", "fp8_e4m3"),
    ),
}


@pytest.mark.parametrize("mistake", HOST_MISTAKES)
def test_a_platform_that_brings_what_does_not_fit(tmp_path: Path, mistake: str) -> None:
    made = HOST_MISTAKES[mistake]
    distribute(tmp_path, ON_THE_HOST + LOADED + "\n" + made.body + ACTIVATE)
    assert the_error(sys.executable, tmp_path, *made.flags, RUNTIME_PLATFORM="vendor") == made.error


@pytest.mark.parametrize("lacked", DEVICE_MISTAKES)
def test_a_device_that_cannot_do_what_its_platform_declares_or_leaves_to_the_runtime(
    acme: Environment, tmp_path: Path, lacked: str
) -> None:
    made = DEVICE_MISTAKES[lacked]
    distribute(tmp_path, ON_THE_DEVICE + LOADED + "\n" + made.body + ACTIVATE)
    assert the_error(acme.python, tmp_path, *made.flags, RUNTIME_PLATFORM="vendor", ACME_LACKS=lacked) == made.error


def test_a_platform_that_is_no_platform(tmp_path: Path) -> None:
    distribute(tmp_path, "def activate():\n    return dict\n")
    assert the_error(sys.executable, tmp_path, RUNTIME_PLATFORM="vendor") == (
        "platform plugin 'vendor' of vendor-platform: builtins.dict must be a subclass of"
        " runtime.platforms.interface.SRTPlatform"
    )


def test_two_platforms_at_once(tmp_path: Path) -> None:
    for name in ("first-vendor", "second-vendor"):
        distribute(tmp_path, ON_THE_HOST + ACTIVATE, name)
    both = "platform plugin 'vendor' of first-vendor, platform plugin 'vendor' of second-vendor"
    assert the_error(sys.executable, tmp_path) == (
        f"several platform plugins are active: {both}; choose one with RUNTIME_PLATFORM"
    )
    assert the_error(sys.executable, tmp_path, RUNTIME_PLATFORM="vendor") == (
        f"RUNTIME_PLATFORM='vendor' is the name of several plugins: {both}; uninstall all but one"
    )
