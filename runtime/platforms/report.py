"""What the runtime knows of the platform it would run on, and whether the device does what it says.

For whoever brings up a device: `python -m runtime platform --check` goes through every operation of `DeviceMixin`.
"""

from __future__ import annotations

from typing import Any

import torch

from runtime import platforms
from runtime.core.errors import PlatformError
from runtime.platforms import answers, graph_backend, probe

CHECK_SIZE = 512
"""Rows and columns of the matrices that are multiplied."""

CHECK_TOLERANCE = 1e-5
"""Largest difference from the host's product in double precision, relative to it. Products in float32 differ by about
1e-6, in TF32 by 6e-5, in bfloat16 by 5e-4."""


def describe() -> dict[str, Any]:
    """The current platform in plain data; sizes in bytes.

    Raises:
        PlatformError: no platform can be chosen, or its device cannot be asked.
        ConfigError: a method of the platform returned something else than it has to.
    """
    platform = platforms.current_platform
    device = answers.get_device(0)
    platform.set_device(device)
    answers.check_all()
    capability = platform.get_device_capability()
    free, total = answers.get_available_memory()
    backend = platform.get_default_attention_backend()
    compile_backend = platform.get_compile_backend()
    return {
        "platform": platform.device_name,
        "class": f"{type(platform).__module__}.{type(platform).__qualname__}",
        "out_of_tree": platform.is_out_of_tree(),
        "device": str(device),
        "name": platform.get_device_name(),
        "uuid": platform.get_device_uuid(),
        "capability": None if capability is None else capability.as_version_str(),
        "cpu_architecture": platform.get_cpu_architecture().value,
        "total_memory": total,
        "free_memory": free,
        "used_memory": platform.get_current_memory_usage(),
        "pinned_memory": platform.is_pin_memory_available(),
        "dtypes": list(platform.capabilities.dtypes),
        "float64": platform.capabilities.float64,
        "graph_capture": platform.capabilities.graph_capture,
        "dispatch_key": answers.get_dispatch_key(),
        "attention_backend": backend if isinstance(backend, str) else f"{backend.__module__}.{backend.__qualname__}",
        "compile_backend": compile_backend if isinstance(compile_backend, str) else repr(compile_backend),
        "distributed_backend": platform.get_torch_distributed_backend_str(),
        "profiler_activity": platform.get_profiler_activity().name,
    }


def check() -> dict[str, Any]:
    """Let the device do what its platform declares, and multiply two float32 matrices as the host does.

    Returns:
        `max_relative_error` of the device's product, `milliseconds` from the copy to the device to the product,
        measured by two events on a stream of their own where the device has streams, and `capabilities`: what was
        declared and tried.

    Raises:
        PlatformError: the products differ, or the device cannot do one of the operations or what is declared.
        ConfigError: what the platform brings to record steps with is of no use, or it returned no device.
    """
    platform = platforms.current_platform
    platform.init_backend()
    device = answers.get_device(0)
    platform.set_device(device)
    platform.seed_everything(0)
    with platform.inference_mode():
        host = torch.rand(CHECK_SIZE, CHECK_SIZE)
        expected = host.double() @ host.double()
        if platform.is_pin_memory_available():
            host = host.pin_memory()
        (host.to(device) @ host.to(device)).sum().item()  # the first use of a device loads its libraries
        product, milliseconds = _timed_product(host, device)
    platform.synchronize()
    platform.empty_cache()
    error = float(((product.double() - expected) / expected).abs().max())
    if not error <= CHECK_TOLERANCE:
        raise PlatformError(
            f"a product of float32 matrices on {device} differs from the host's by {error:.1e}, relative to it: at most"
            f" {CHECK_TOLERANCE:.0e} is float32; does the device compute in less?"
        )
    return {"max_relative_error": error, "milliseconds": milliseconds, "capabilities": _tried_capabilities(device)}


def _tried_capabilities(device: torch.device) -> list[str]:
    platform = platforms.current_platform
    capabilities = platform.capabilities
    for dtype in probe.declared_dtypes():
        probe.check_dtype(dtype, device)
    tried = list(capabilities.dtypes)
    if capabilities.float64:
        probe.check_float64(device)
        tried.append("float64")
    # A graph runner of the platform's own may record in a way that only it knows.
    if capabilities.graph_capture and platform.get_graph_runner_cls() is None:
        probe.check_graph_capture(graph_backend.resolve_graph_backend_cls(None), device)
        tried.append("graph capture")
    return tried


def _timed_product(host: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, float]:
    platform = platforms.current_platform
    start, end = platform.create_event(enable_timing=True), platform.create_event(enable_timing=True)
    try:
        stream = platform.create_stream()
    except PlatformError:
        product = _product(host, device, start, end)
    else:
        stream.wait_stream(platform.current_stream())
        with platform.use_stream(stream):
            product = _product(host, device, start, end)
        stream.synchronize()
    end.synchronize()
    return product.to("cpu"), float(start.elapsed_time(end))


def _product(host: torch.Tensor, device: torch.device, start: Any, end: Any) -> torch.Tensor:
    start.record()
    on_device = host.to(device, non_blocking=True)
    product = on_device @ on_device
    end.record()
    return product
