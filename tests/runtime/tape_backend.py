"""A device that records, in software: every torch operation between `begin` and `end`, done again on the same tensors.

As with a real one, nothing of Python happens at a replay, what was a number then is a number now, a step that asks for
a result while it is recorded cannot be, and what a recording has made holds nothing that anybody may read before it is
replayed: when it ends, it is made garbage.
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
        self.made: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASKING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs)) + self.made}
        self.made += [t for t in _tensors(result) if t.untyped_storage().data_ptr() not in known]
        self.entries.append((func, args, kwargs or {}, result))
        return result

    def spoil(self) -> None:
        """Put garbage into everything that was made."""
        for tensor in self.made:
            tensor.fill_(torch.nan if tensor.is_floating_point() else tensor.dtype.itemsize > 1 and -(2**30))

    def play(self) -> None:
        """Do it all again; results go where they were."""
        for func, args, kwargs, result in self.entries:
            again = func(*args, **kwargs)
            for new, old in zip(_tensors(again), _tensors(result), strict=True):
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
        tape.spoil()
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


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
