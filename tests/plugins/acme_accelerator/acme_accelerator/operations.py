"""Operations that the device has a kernel of its own for."""

from __future__ import annotations

from typing import Any

import torch


def rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """`RMSNorm` of `x` ([T, hidden]), in one kernel."""
    return torch.ops.acme.rms_norm(x, norm.weight, norm.epsilon)
