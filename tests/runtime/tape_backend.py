"""A device that records, in software: every torch operation between `begin` and `end`, done again on the same tensors.

As with a real one, nothing of Python happens at a replay, what was a number then is a number now, and a step that asks
for a result while it is recorded cannot be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runtime.platforms.graph_backend import GraphBackend

ASKING = (
    torch.ops.aten.item.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
)
"""Operations whose result the host waits for."""


class Tape(TorchDispatchMode):
    """Notes every operation with its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASKING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        self.entries.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        """Do it all again; results go where they were."""
        for func, args, kwargs, result in self.entries:
            again = func(*args, **kwargs)
            for new, old in zip(tree_leaves(again), tree_leaves(result), strict=True):
                if not isinstance(old, torch.Tensor):
                    continue
                if new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr():
                    old.copy_(new)


class TapeGraphBackend(GraphBackend):
    """Records on a tape. `log` says what was done, over all backends, until a test clears it."""

    records = True
    log: list[str] = []  # noqa: RUF012  (one for all)

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.tape: Tape | None = None

    def begin(self) -> None:
        self.log.append("begin")
        assert self.tape is None, "one recording at a time"
        self.tape = Tape()
        self.tape.__enter__()

    def end(self) -> Callable[[], None]:
        self.log.append("end")
        tape = self._stop()
        return tape.play

    def abort(self) -> None:
        self.log.append("abort")
        if self.tape is not None:
            self._stop()

    def _stop(self) -> Tape:
        assert self.tape is not None
        tape, self.tape = self.tape, None
        tape.__exit__(None, None, None)
        return tape
