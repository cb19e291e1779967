"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) and the index of its sparse form (DeepSeek-V3.2,
arXiv:2512.02556): what a layer hands to an attention backend, and the arithmetic on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


class LatentProjection:
    """Makes the keys and values of all heads from latents, or moves queries to latents and results back from them.

    Attributes:
        weight: [heads * (nope + v_dim), rank].
        to_key: [heads, nope, rank] part of it, a view.
        to_value: [heads, v_dim, rank] part of it, a view.
    """

    def __init__(
        self, num_heads: int, nope_dim: int, v_dim: int, rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight = torch.empty(num_heads * (nope_dim + v_dim), rank, dtype=dtype, device=device)
        self.num_heads = num_heads
        self.sizes = (nope_dim, v_dim)
        self.to_key, self.to_value = self.weight.view(num_heads, -1, rank).split_with_sizes(self.sizes, dim=1)

    def expand(self, latent: torch.Tensor, k_rope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[L, rank] latents and [L, rope] rotated keys to keys [L, heads, nope + rope] and values [L, heads, v_dim]."""
        kv = F.linear(latent, self.weight).view(latent.shape[0], self.num_heads, -1)
        k_nope, v = kv.split_with_sizes(self.sizes, dim=-1)
        return torch.cat((k_nope, k_rope.unsqueeze(1).expand(-1, self.num_heads, -1)), dim=-1), v

    def absorb(self, q_nope: torch.Tensor, q_rope: torch.Tensor) -> torch.Tensor:
        """Queries [D, heads, nope] and [D, heads, rope] to those for rows of the cache, [D, heads, rank + rope]."""
        q_latent = torch.bmm(q_nope.transpose(0, 1), self.to_key).transpose(0, 1)
        return torch.cat((q_latent, q_rope), dim=-1)

    def value_of(self, attended: torch.Tensor) -> torch.Tensor:
        """[D, heads, rank] attended latents to [D, heads * v_dim] attended values."""
        values = torch.bmm(attended.transpose(0, 1), self.to_value.transpose(1, 2))
        return values.transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class IndexInputs:
    """What one layer's index brings of T new tokens; all rotated.

    Attributes:
        q: [T, index_heads, index_dim].
        k: [T, index_dim].
        weights: [T, index_heads] float32 weight of each head, the scale of the products included.
    """

    q: torch.Tensor
    k: torch.Tensor
    weights: torch.Tensor


def index_scores(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """How much each token is worth attending to.

    Args:
        q: [..., index_heads, index_dim] index queries.
        k: [..., L, index_dim] index keys.
        weights: [..., index_heads] float32, none of the scales left out.

    Returns:
        [..., L] float32.
    """
    products = torch.matmul(q.float(), k.float().transpose(-1, -2)).relu_()
    return torch.matmul(weights.unsqueeze(-2), products).squeeze(-2)
