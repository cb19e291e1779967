"""The gated feed-forward layer."""

from __future__ import annotations

import torch

from runtime.layers.activation import SiluAndMul
from runtime.layers.linear import Linear, MergedLinear


class GatedMLP:
    """SwiGLU feed-forward (Shazeer 2020, arXiv:2002.05202); gate and up come out of one matrix product."""

    def __init__(
        self, hidden_size: int, width: int, *, bias: bool = False, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.gate_up_proj = MergedLinear(hidden_size, [width, width], bias=bias, dtype=dtype, device=device)
        self.act = SiluAndMul()
        self.down_proj = Linear(width, hidden_size, bias=bias, dtype=dtype, device=device)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""
        gate_up = self.gate_up_proj.forward(hidden_states)
        return self.down_proj.forward_add(self.act.forward(gate_up), residual)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        gate_up = self.gate_up_proj.merged_tensors(prefix + "gate_proj", prefix + "up_proj")
        return gate_up | self.down_proj.tensors(prefix + "down_proj")
