"""Normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from runtime.platforms.multi_platform import MultiPlatformOp


class RMSNorm(MultiPlatformOp):
    """Root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Attributes:
        weight: [hidden].
    """

    def __init__(self, hidden_size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(hidden_size, dtype=dtype, device=device)
        self.shape = (hidden_size,)
        self.inverse_size = 1.0 / hidden_size
        self.epsilon = eps
        self.eps = torch.tensor(eps, dtype=torch.float32, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], as the platform does it."""
        result: torch.Tensor = getattr(self, self._forward_name or self.resolve_forward())(x)
        return result

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden]."""
        if x.dtype is torch.float32:
            return self._normalize(x).mul_(self.weight)
        # As checkpoints are trained: normalised in float32, rounded, and only then scaled by the weight.
        return self._normalize(x.float()).to(x.dtype).mul_(self.weight)

    def forward_cuda(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden]; torch has one kernel for it there."""
        if x.dtype is torch.float32:
            return F.rms_norm(x, self.shape, self.weight, self.epsilon)
        return F.rms_norm(x.float(), self.shape, None, self.epsilon).to(x.dtype).mul_(self.weight)

    def _normalize(self, x: torch.Tensor) -> torch.Tensor:
        # torch.nn.functional.rms_norm runs as ten operations where it has no kernel, as on the CPU; these are four.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.eps, norm, norm, value=self.inverse_size).rsqrt_()


class HeadNorm(RMSNorm):
    """`RMSNorm` of each head of queries and keys, which lie side by side; one weight for all queries, one for all keys.

    Attributes:
        weight: [2, head_dim], that of the queries first.
    """

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(head_dim, eps, dtype, device)
        self.weight = torch.empty(2, head_dim, dtype=dtype, device=device)
        self.rows = torch.tensor([0] * num_heads + [1] * num_kv_heads, device=device)

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        """[T, heads + kv_heads, head_dim] to the same shape."""
        weight = self.weight.index_select(0, self.rows)
        if x.dtype is torch.float32:
            return self._normalize(x).mul_(weight)
        return self._normalize(x.float()).to(x.dtype).mul_(weight)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        return {prefix + "q_norm.weight": self.weight[0], prefix + "k_norm.weight": self.weight[1]}


class LayerNorm:
    """Layer normalisation over the last dimension (Ba et al. 2016, arXiv:1607.06450).

    Attributes:
        weight, bias: [hidden].
    """

    def __init__(self, hidden_size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(hidden_size, dtype=dtype, device=device)
        self.bias = torch.empty(hidden_size, dtype=dtype, device=device)
        self.shape = (hidden_size,)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden]."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The weights, by the names that a checkpoint gives a layer called `name`."""
        return {name + ".weight": self.weight, name + ".bias": self.bias}
