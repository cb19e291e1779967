"""From logits to tokens: temperature, top-k, top-p, then one draw per row.

The order and the kept sets are those of transformers' `TemperatureLogitsWarper`, `TopKLogitsWarper` and
`TopPLogitsWarper`. Each row draws one number from its request's own generator, so that what a request gets does not
depend on who shares its batch. Generators live on the host, so that it does not depend on the kind of device either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime import platforms
from runtime.core.request import Request
from runtime.core.sampling_params import MAX_SEED
from runtime.platforms.multi_platform import MultiPlatformOp


@dataclass
class SamplingBatch:
    """Sampling parameters of the B rows of a step; built anew for every step.

    Attributes:
        temperature: per row; 0 is greedy.
        top_p: per row; 1 is off.
        top_k: per row; 0 is off.
        generators: per row, None for a greedy row.
    """

    temperature: list[float]
    top_p: list[float]
    top_k: list[int]
    generators: list[torch.Generator | None]

    @classmethod
    def from_requests(cls, requests: Sequence[Request]) -> SamplingBatch:
        """The rows of `requests`, in order; a request that draws for the first time is given its generator."""
        params = [request.sampling_params for request in requests]
        return cls(
            temperature=[p.temperature for p in params],
            top_p=[p.top_p for p in params],
            top_k=[p.top_k for p in params],
            generators=[None if p.is_greedy else request_generator(r) for p, r in zip(params, requests, strict=True)],
        )

    @property
    def is_all_greedy(self) -> bool:
        """Whether no row draws."""
        return not any(self.temperature)


def request_generator(request: Request) -> torch.Generator:
    """The request's own generator, on the host: seeded with its seed or, without one, from the default generator."""
    generator: torch.Generator | None = request.generator
    if generator is None:
        seed = request.sampling_params.seed
        if seed is None:
            seed = int(torch.randint(MAX_SEED, ()))
        generator = torch.Generator(device="cpu")
        generator.manual_seed(seed)
        request.generator = generator
    return generator


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Choose one token per row.

    Args:
        logits: [B, V], any floating dtype; left as it is.
        batch: parameters of the B rows.

    Returns:
        [B] int64 token ids. A greedy row gets the first of its best tokens.

    Raises:
        ValueError: `batch` has another number of rows than `logits`.
    """
    if logits.shape[0] != len(batch.temperature):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(batch.temperature)} rows of sampling parameters")
    tokens = logits.argmax(dim=-1)
    if batch.is_all_greedy:
        return tokens
    rows = [row for row, temperature in enumerate(batch.temperature) if temperature > 0.0]
    index = torch.tensor(rows, device=logits.device)
    probs = probabilities(
        logits.index_select(0, index),
        [batch.temperature[row] for row in rows],
        [batch.top_k[row] for row in rows],
        [batch.top_p[row] for row in rows],
    )
    return tokens.index_copy_(0, index, draw(probs, [batch.generators[row] for row in rows]))


def probabilities(logits: torch.Tensor, temperature: list[float], top_k: list[int], top_p: list[float]) -> torch.Tensor:
    """[N, V] float32 probabilities to draw from, zero outside the kept set; every temperature is above 0."""
    scores = logits.float()
    # The best score is taken off first: dividing by a tiny temperature then cannot overflow to infinity.
    scores = scores - scores.amax(dim=-1, keepdim=True)
    scores = scores / _column(temperature, scores)
    if any(top_k):
        scores = keep_top_k(scores, top_k)
    if min(top_p) < 1.0:
        scores = keep_top_p.forward(scores, top_p)
    return scores.softmax(dim=-1)


def keep_top_k(scores: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """[N, V] scores with -inf below each row's `top_k`-th best (ties with it stay); a row with 0 is left alone."""
    vocab_size = scores.shape[-1]
    limits = [min(k, vocab_size) or vocab_size for k in top_k]
    # Rows that keep everything would make topk sort the whole vocabulary: leave them out of the width.
    width = max(limit for limit, k in zip(limits, top_k, strict=True) if k)
    best = scores.topk(width, dim=-1).values
    kth = torch.tensor([[min(limit, width) - 1] for limit in limits], device=scores.device)
    off = torch.tensor([[k == 0] for k in top_k], device=scores.device)
    threshold = best.gather(-1, kth).masked_fill_(off, -torch.inf)
    return scores.masked_fill(scores < threshold, -torch.inf)


class KeepTopP(MultiPlatformOp):
    """Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751): the smallest set of best tokens with a given mass."""

    def forward_native(self, scores: torch.Tensor, top_p: list[float]) -> torch.Tensor:
        """[N, V] scores with -inf outside each row's smallest set of best tokens whose probability reaches `top_p`."""
        ascending, order = scores.sort(dim=-1)
        cumulative = ascending.softmax(dim=-1).cumsum_(dim=-1)
        # Counted from the worst token up: what lies at or below 1 - p is not needed to reach p. p = 1 keeps
        # everything, tokens of probability 0 included, which the comparison alone would drop.
        drop = cumulative <= _column([1.0 - p if p < 1.0 else -1.0 for p in top_p], scores)
        drop[:, -1] = False
        return scores.masked_fill(torch.zeros_like(drop).scatter_(-1, order, drop), -torch.inf)


keep_top_p = KeepTopP()


def draw(probs: torch.Tensor, generators: Sequence[torch.Generator | None]) -> torch.Tensor:
    """[N] int64 tokens, row i drawn from `probs[i]` ([N, V]) with one number of `generators[i]`."""
    device = probs.device
    if not platforms.current_platform.capabilities.float64:
        probs = probs.to("cpu")
    # Inverse of the cumulative distribution, in double so that a large vocabulary loses no mass to rounding.
    cumulative = probs.double().cumsum_(dim=-1)
    uniforms = [torch.rand(1, generator=generator, dtype=torch.float64, device="cpu") for generator in generators]
    target = torch.stack(uniforms).to(cumulative.device) * cumulative[:, -1:]
    # The first token whose cumulative probability exceeds the target; a token of probability 0 exceeds nothing that
    # the token before it does not. Where a device's generator can yield 1, nothing exceeds the target and the last
    # possible token is meant.
    last_possible = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.searchsorted(cumulative, target, right=True).minimum(last_possible).squeeze(-1).to(device)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)
