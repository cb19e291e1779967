"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), for both layouts that checkpoints have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from runtime.platforms.multi_platform import MultiPlatformOp


@dataclass(frozen=True)
class RopeConfig:
    """Parameters of the rotary embedding.

    Attributes:
        rope_type: one of `ROPE_TYPES`.
        rope_theta: base of the wavelengths.
        factor: by how much the context is stretched (all but default).
        low_freq_factor: llama3: wavelengths above `original / low_freq_factor` are stretched in full.
        high_freq_factor: llama3: wavelengths below `original / high_freq_factor` are left alone.
        original_max_position_embeddings: llama3, yarn, dynamic: context length before stretching, in tokens.
        beta_fast: yarn: what turns more often than this over the original context is left alone.
        beta_slow: yarn: what turns less often than this over the original context is stretched in full.
        truncate: yarn: whether the two bounds between which it blends are rounded to whole dimensions.
        attention_factor: yarn: factor on cosines and sines.
        mscale_all_dim: latent attention: see `softmax_scale_factor`.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    mscale_all_dim: float = 0.0

    @property
    def softmax_scale_factor(self) -> float:
        """What DeepSeek models multiply the scale of their attention with, to make up for the stretching."""
        if self.rope_type == "default" or not self.mscale_all_dim:
            return 1.0
        return yarn_mscale(self.factor, self.mscale_all_dim) ** 2


ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """How much sharper attention over a stretched context has to be (Peng et al. 2023, arXiv:2309.00071)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def inverse_frequencies(config: RopeConfig, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] float32 radians per position, on the CPU; of the dynamic type, within the original context.

    The llama3 formula is that of the Llama 3.1 reference code, the yarn one that of its paper (arXiv:2309.00071).

    Raises:
        ValueError: `rope_type` is none of `ROPE_TYPES`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    inv_freq = 1.0 / (config.rope_theta**exponents)
    if config.rope_type in ("default", "dynamic"):
        return inv_freq
    if config.rope_type == "linear":
        return inv_freq / config.factor
    if config.rope_type == "llama3":
        return _llama3(config, inv_freq)
    if config.rope_type == "yarn":
        return _yarn(config, inv_freq, head_dim)
    raise ValueError(f"rope_type {config.rope_type!r} is not one of {', '.join(ROPE_TYPES)}")


def _llama3(config: RopeConfig, inv_freq: torch.Tensor) -> torch.Tensor:
    original = config.original_max_position_embeddings
    low_freq_wavelen = original / config.low_freq_factor
    high_freq_wavelen = original / config.high_freq_factor
    wavelen = 2 * math.pi / inv_freq
    stretched = inv_freq / config.factor
    smooth = (original / wavelen - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    between = (1 - smooth) * stretched + smooth * inv_freq
    out = torch.where(wavelen > low_freq_wavelen, stretched, between)
    return torch.where(wavelen < high_freq_wavelen, inv_freq, out)


def _yarn(config: RopeConfig, inv_freq: torch.Tensor, head_dim: int) -> torch.Tensor:
    def dimension(turns: float) -> float:
        """The dimension that turns so often over the original context."""
        wavelen = config.original_max_position_embeddings / turns
        return head_dim * math.log(wavelen / (2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low
    stretching = (ramp / ((high - low) or 0.001)).clamp(0, 1)
    return inv_freq / config.factor * stretching + inv_freq * (1 - stretching)


def rotary_angles(config: RopeConfig, head_dim: int, max_position: int) -> torch.Tensor:
    """[max_position, head_dim / 2] float32 angles in radians, on the CPU.

    Of the dynamic type, the frequencies of a position beyond the original context are those that transformers has for
    a sequence that ends there: a token generated there is rotated as transformers does. The angle of a position must
    not depend on the request, or cached keys and pieces of prompts would fit one request only; transformers rotates a
    *prompt* that is longer than the original context by its length instead.
    """
    positions = torch.arange(max_position, dtype=torch.float32, device="cpu").unsqueeze(-1)
    angles = positions * inverse_frequencies(config, head_dim)
    original = config.original_max_position_embeddings
    if config.rope_type == "dynamic" and max_position > original:
        beyond = positions[original:].double()
        growth = config.factor * (beyond + 1) / original - (config.factor - 1)
        theta = (config.rope_theta * growth ** (head_dim / (head_dim - 2))).float()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        angles[original:] = positions[original:] * (1.0 / theta**exponents)
    return angles


class RotaryEmbedding(MultiPlatformOp):
    """Rotates queries and keys by their position; one table serves all layers of a model.

    Attributes:
        interleaved: False for dimension pairs (i, i + head_dim / 2), as Llama checkpoints have them, True for pairs of
            neighbours, as DeepSeek checkpoints do.
        cos_sin: [max_position, 2, head_dim]: cosines, and sines with the sign the first of a pair needs.
    """

    def __init__(
        self,
        config: RopeConfig,
        head_dim: int,
        max_position: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        interleaved: bool = False,
    ) -> None:
        self.half_dim = head_dim // 2
        self.interleaved = interleaved
        angles = rotary_angles(config, head_dim, max_position)
        cos, sin = angles.cos() * config.attention_factor, angles.sin() * config.attention_factor
        pairs = torch.stack((torch.stack((cos, cos), dim=-1), torch.stack((-sin, sin), dim=-1)), dim=1)
        table = pairs if interleaved else pairs.transpose(-1, -2)
        self.cos_sin = table.reshape(max_position, 2, head_dim).to(device=device, dtype=dtype)

    def gather(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines at `positions` ([T] int64), both [T, 1, head_dim]; once per forward pass."""
        cos, sin = self.cos_sin.index_select(0, positions).split_with_sizes((1, 1), dim=1)
        return cos, sin

    def at(self, positions: torch.Tensor) -> Rotation:
        """What all layers of one forward pass over `positions` ([T] int64) share."""
        return Rotation(self, *self.gather(positions))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """`forward_native`, as the platform does it."""
        result: torch.Tensor = getattr(self, self._forward_name or self.resolve_forward())(x, cos, sin)
        return result

    def forward_native(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate [T, heads, head_dim] by what `gather` returned; queries and keys go in one call, side by side."""
        # Swapping the dimensions of each pair; the sign that the swap lacks is in the table.
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if self.interleaved else x.roll(self.half_dim, -1)
        return torch.addcmul(x * cos, swapped, sin)


class Rotation:
    """The rotary embedding at the positions of one forward pass.

    Attributes:
        rotary: the embedding.
        cos, sin: [T, 1, head_dim], see `RotaryEmbedding.gather`.
    """

    def __init__(self, rotary: RotaryEmbedding, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self.rotary = rotary
        self.cos = cos
        self.sin = sin
        self._half_tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate [T, heads, head_dim]."""
        return self.rotary.forward(x, self.cos, self.sin)

    @property
    def half_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The cosines and signed sines of an interleaved embedding for dimension pairs (i, i + head_dim / 2)."""
        # No cached_property: up to Python 3.11 it takes a lock, which a compiled step cannot.
        if self._half_tables is None:
            cos, sin = (t.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for t in (self.cos, self.sin))
            self._half_tables = (cos, sin)
        return self._half_tables

    def apply_halves(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate [T, heads, head_dim] by the angles of an interleaved embedding, pairing (i, i + head_dim / 2)."""
        cos, sin = self.half_tables
        return torch.addcmul(x * cos, x.roll(self.rotary.half_dim, -1), sin)
