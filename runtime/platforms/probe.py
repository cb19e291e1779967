"""Whether a device can do what its platform declares: a few small operations, before anything relies on it.

What a platform declares and its device lacks would otherwise be found by the first request that needs it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from runtime import platforms
from runtime.core.errors import PlatformError
from runtime.platforms.graph_backend import GraphBackend

# Small enough to be exact in every dtype, products and sums included.
_MATRIX = ((1.0, 2.0), (3.0, 4.0))
_PRODUCT = ((7.0, 10.0), (15.0, 22.0))


def declared_dtypes() -> list[torch.dtype]:
    """What the current platform's `capabilities` have as `dtypes`, as torch has them.

    Raises:
        PlatformError: torch has no dtype of one of the names. Second names that it has, such as "half", are none.
    """
    platform = platforms.current_platform
    names = platform.capabilities.dtypes
    found = {name: getattr(torch, name, None) for name in names}
    for name, dtype in found.items():
        if not isinstance(dtype, torch.dtype) or str(dtype) != f"torch.{name}":
            raise PlatformError(
                f"platform {platform.device_name} declares {name!r} in its dtypes, which is no dtype of torch: use the"
                " names that torch prints, such as float32, float16 or bfloat16"
            )
    return [dtype for dtype in found.values() if isinstance(dtype, torch.dtype)]


def check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Multiply two matrices in `dtype` on `device`.

    Raises:
        PlatformError: that fails, or gives something else than on the host.
    """
    name = str(dtype).removeprefix("torch.")

    def multiply() -> torch.Tensor:
        matrix = torch.tensor(_MATRIX, dtype=dtype).to(device)
        return (matrix @ matrix).to("cpu").float()

    _expect(multiply, torch.tensor(_PRODUCT), f"declares {name} in its dtypes", f"{device} cannot compute in it")


def check_float64(device: torch.device) -> None:
    """Convert to double precision on `device` and add up, as drawing tokens does.

    Raises:
        PlatformError: that fails, or gives something else than on the host.
    """
    terms = torch.tensor((1.0, 2.0**-40))  # float32 loses the second one

    def add_up() -> torch.Tensor:
        return terms.to(device).double().cumsum_(dim=-1).to("cpu")

    _expect(
        add_up,
        torch.tensor((1.0, 1.0 + 2.0**-40), dtype=torch.float64),
        "declares float64",
        f"{device} cannot compute in it",
    )


def check_graph_capture(backend_cls: type[GraphBackend], device: torch.device) -> None:
    """Record a step of two operations with a backend that records, and replay it on another input.

    Raises:
        PlatformError: that fails, or the replay gives something else than the step.
    """

    def record_and_replay() -> torch.Tensor:
        with platforms.current_platform.inference_mode():
            backend = backend_cls(device)
            source, output = torch.zeros(2, device=device), torch.zeros(2, device=device)
            with backend.capture_session():
                output.copy_(source * 2 + 1)
                backend.begin()
                try:
                    output.copy_(source * 2 + 1)
                except BaseException:
                    backend.abort()
                    raise
                replay = backend.end()
            source.fill_(3.0)
            replay()
            return output.to("cpu")

    failed = f"{backend_cls.__qualname__} cannot record on {device}"
    _expect(
        record_and_replay,
        torch.full((2,), 7.0),
        "declares graph_capture",
        failed,
        "correct its capabilities, or let get_graph_backends return one that can",
    )


def check_compiler(device: torch.device) -> None:
    """Compile a step of two operations with the platform's `get_compile_backend`.

    Raises:
        PlatformError: that fails, or gives something else than the step.
    """
    platform = platforms.current_platform
    backend = platform.get_compile_backend()
    if not isinstance(backend, str) and not callable(backend):
        raise PlatformError(
            f"platform {platform.device_name} has no compiler: get_compile_backend returned {backend!r}, which is no"
            " name and no function; choose a graph runner and a graph_backend that do without one"
        )

    def compile_and_run() -> torch.Tensor:
        with platform.inference_mode():
            compiled = torch.compile(lambda tensor: tensor * 2 + 1, backend=backend, dynamic=False)
            return compiled(torch.full((2,), 3.0, device=device)).to("cpu")

    claim = f"has {backend!r} as its get_compile_backend"
    remedy = "return another one, or choose a graph runner and a graph_backend that do without"
    _expect(compile_and_run, torch.full((2,), 7.0), claim, f"that cannot compile for {device}", remedy)


def _expect(
    attempt: Callable[[], torch.Tensor],
    expected: torch.Tensor,
    claim: str,
    failed: str,
    remedy: str = "correct its capabilities",
) -> None:
    name = platforms.current_platform.device_name
    try:
        result = attempt()
    except PlatformError:  # it says already what to do
        raise
    except Exception as error:  # whatever a device or a compiler raises for what it cannot do
        said = next(iter(str(error).strip().splitlines()), repr(error))
        raise PlatformError(f"platform {name} {claim}, but {failed}: {said}; {remedy}") from error
    if result.tolist() != expected.tolist():
        raise PlatformError(
            f"platform {name} {claim}, but {failed}: it gave {result.tolist()} for {expected.tolist()}; {remedy}"
        )
