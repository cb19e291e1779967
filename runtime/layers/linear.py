"""Linear layers, alone or several on the same input as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Linear:
    """`x @ weight.T + bias`, and a residual on top where one is given.

    Attributes:
        weight: [out, in].
        bias: [out], or None.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight = torch.empty(out_features, in_features, dtype=dtype, device=device)
        self.bias = torch.empty(out_features, dtype=dtype, device=device) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in] to [T, out]."""
        return F.linear(x, self.weight, self.bias)

    def forward_add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, in] to [T, out], with the [T, out] `residual` added inside the matrix product."""
        if self.bias is not None:
            residual = residual + self.bias
        return torch.addmm(residual, x, self.weight.t())

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Weight and bias, by the names that a checkpoint gives a layer called `name`."""
        tensors = {f"{name}.weight": self.weight}
        if self.bias is not None:
            tensors[f"{name}.bias"] = self.bias
        return tensors


class MergedLinear(Linear):
    """Several linear layers on the same input as one matrix product; their outputs are concatenated.

    Attributes:
        out_features: width of each layer's output, in order.
    """

    def __init__(
        self,
        in_features: int,
        out_features: list[int],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(in_features, sum(out_features), bias=bias, dtype=dtype, device=device)
        self.out_features = out_features

    def split_weight(self) -> tuple[torch.Tensor, ...]:
        """Each layer's [out_i, in] weight, as views."""
        return self.weight.split_with_sizes(self.out_features)

    def split_bias(self) -> tuple[torch.Tensor, ...]:
        """Each layer's [out_i] bias, as views; empty without bias."""
        return self.bias.split_with_sizes(self.out_features) if self.bias is not None else ()

    def merged_tensors(self, *names: str) -> dict[str, torch.Tensor]:
        """Each layer's part of weight and bias, by the names that a checkpoint gives the layers `names`, in order."""
        tensors = {f"{name}.weight": part for name, part in zip(names, self.split_weight(), strict=True)}
        if self.bias is not None:
            tensors |= {f"{name}.bias": part for name, part in zip(names, self.split_bias(), strict=True)}
        return tensors
