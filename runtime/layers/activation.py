"""Activations of gated feed-forward layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from runtime.platforms.multi_platform import MultiPlatformOp


class SiluAndMul(MultiPlatformOp):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): [T, 2 * width] to [T, width], `silu(first half) * second half`."""

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[T, 2 * width] to [T, width], as the platform does it."""
        result: torch.Tensor = getattr(self, self._forward_name or self.resolve_forward())(gate_up)
        return result

    def forward_native(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[T, 2 * width] to [T, width]."""
        width = gate_up.shape[-1] // 2
        gate, up = gate_up.split_with_sizes((width, width), dim=-1)
        return F.silu(gate).mul_(up)
