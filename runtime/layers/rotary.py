"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-rotated layout of Llama checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from runtime.platforms.multi_platform import MultiPlatformOp


@dataclass(frozen=True)
class RopeConfig:
    """Parameters of the rotary embedding.

    Attributes:
        rope_type: `"default"`, `"linear"` or `"llama3"`.
        rope_theta: base of the wavelengths.
        factor: by how much the context is stretched (linear, llama3).
        low_freq_factor: llama3: wavelengths above `original / low_freq_factor` are stretched in full.
        high_freq_factor: llama3: wavelengths below `original / high_freq_factor` are left alone.
        original_max_position_embeddings: llama3: context length before stretching, in tokens.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


ROPE_TYPES = ("default", "linear", "llama3")


def inverse_frequencies(config: RopeConfig, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] float32 radians per position, on the CPU.

    The llama3 formula is that of the Llama 3.1 reference code, as transformers has it.

    Raises:
        ValueError: `rope_type` is none of `ROPE_TYPES`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    inv_freq = 1.0 / (config.rope_theta**exponents)
    if config.rope_type == "default":
        return inv_freq
    if config.rope_type == "linear":
        return inv_freq / config.factor
    if config.rope_type != "llama3":
        raise ValueError(f"rope_type {config.rope_type!r} is not one of {', '.join(ROPE_TYPES)}")
    original = config.original_max_position_embeddings
    low_freq_wavelen = original / config.low_freq_factor
    high_freq_wavelen = original / config.high_freq_factor
    wavelen = 2 * math.pi / inv_freq
    stretched = inv_freq / config.factor
    smooth = (original / wavelen - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    between = (1 - smooth) * stretched + smooth * inv_freq
    out = torch.where(wavelen > low_freq_wavelen, stretched, between)
    return torch.where(wavelen < high_freq_wavelen, inv_freq, out)


class RotaryEmbedding(MultiPlatformOp):
    """Rotates queries and keys by their position; one table serves all layers of a model.

    Attributes:
        cos_sin: [max_position, 2, head_dim]: cosines, and sines with the sign the first half of a head needs.
    """

    def __init__(
        self, config: RopeConfig, head_dim: int, max_position: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.half_dim = head_dim // 2
        positions = torch.arange(max_position, dtype=torch.float32, device="cpu")
        angles = positions.unsqueeze(-1) * inverse_frequencies(config, head_dim)
        cos, sin = angles.cos(), angles.sin()
        table = torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=1)
        self.cos_sin = table.to(device=device, dtype=dtype)

    def gather(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines at `positions` ([T] int64), both [T, 1, head_dim]; once per forward pass."""
        cos, sin = self.cos_sin.index_select(0, positions).split_with_sizes((1, 1), dim=1)
        return cos, sin

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """`forward_native`, as the platform does it."""
        result: torch.Tensor = getattr(self, self._forward_name or self.resolve_forward())(x, cos, sin)
        return result

    def forward_native(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate [T, heads, head_dim] by what `gather` returned; queries and keys go in one call, side by side."""
        # Rolling by half a head swaps its halves; the sign that the swap lacks is in the table.
        return torch.addcmul(x * cos, x.roll(self.half_dim, -1), sin)
