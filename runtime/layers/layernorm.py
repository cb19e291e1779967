"""Normalisation."""

from __future__ import annotations

import torch


class RMSNorm:
    """Root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Attributes:
        weight: [hidden].
    """

    def __init__(self, hidden_size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(hidden_size, dtype=dtype, device=device)
        self.inverse_size = 1.0 / hidden_size
        self.eps = torch.tensor(eps, dtype=torch.float32, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden]."""
        if x.dtype is torch.float32:
            return self._normalize(x).mul_(self.weight)
        # As checkpoints are trained: normalised in float32, rounded, and only then scaled by the weight.
        return self._normalize(x.float()).to(x.dtype).mul_(self.weight)

    def _normalize(self, x: torch.Tensor) -> torch.Tensor:
        # torch.nn.functional.rms_norm has no CPU kernel and runs as ten operations; these are four.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.eps, norm, norm, value=self.inverse_size).rsqrt_()
