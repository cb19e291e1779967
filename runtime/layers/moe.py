"""Mixtures of experts: routers, and experts whose weights lie stacked in one tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from runtime.layers import recording
from runtime.layers.activation import SiluAndMul
from runtime.platforms.multi_platform import MultiPlatformOp

GATHER_LIMIT = 64
"""Up to so many pairs of token and expert, weights are gathered for each pair; see `Experts`."""


class SoftmaxRouter:
    """Every token goes to its `top_k` likeliest experts (Jiang et al. 2024, arXiv:2401.04088).

    Attributes:
        weight: [experts, hidden].
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        *,
        renormalize: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.weight = torch.empty(num_experts, hidden_size, dtype=dtype, device=device)
        self.top_k = top_k
        self.renormalize = renormalize

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, hidden] to the experts of each token ([T, top_k] int64) and their weights ([T, top_k] float32)."""
        probabilities = F.linear(hidden_states, self.weight).softmax(-1, dtype=torch.float32)
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        if self.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return experts, weights

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        return {prefix + "weight": self.weight}


class GroupLimitedRouter:
    """Every token goes to its best experts within its best groups of experts; computed in float32.

    Two rules: DeepSeek-V2's (DeepSeek-AI 2024, arXiv:2405.04434) takes softmax scores and judges a group by its best
    expert; DeepSeek-V3's (arXiv:2412.19437) takes sigmoid scores, adds a correction bias to choose but not to weigh,
    and judges a group by its two best.

    Attributes:
        weight: [experts, hidden] in the model's dtype.
        correction_bias: [experts] float32; None for the rule of DeepSeek-V2.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        *,
        num_groups: int,
        top_groups: int,
        corrected: bool,
        renormalize: bool,
        scale: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.weight = torch.empty(num_experts, hidden_size, dtype=dtype, device=device)
        self.correction_bias = torch.empty(num_experts, dtype=torch.float32, device=device) if corrected else None
        self.top_k = top_k
        self.num_groups = num_groups
        self.top_groups = top_groups
        self.renormalize = renormalize
        self.scale = scale

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, hidden] to the experts of each token ([T, top_k] int64) and their weights ([T, top_k] float32)."""
        logits = F.linear(hidden_states.float(), self.weight.float())
        scores = logits.softmax(-1) if self.correction_bias is None else logits.sigmoid()
        experts = self._choose(scores).topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, experts)
        if self.renormalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * self.scale

    def _choose(self, scores: torch.Tensor) -> torch.Tensor:
        """[T, experts] scores to what the experts are chosen by."""
        if self.correction_bias is not None:
            scores = scores + self.correction_bias
        if self.top_groups == self.num_groups:
            return scores
        groups = scores.unflatten(-1, (self.num_groups, -1))
        worth = groups.amax(-1) if self.correction_bias is None else groups.topk(2, dim=-1).values.sum(-1)
        chosen = torch.zeros_like(worth, dtype=torch.bool)
        chosen.scatter_(1, worth.topk(self.top_groups, dim=-1, sorted=False).indices, True)
        return groups.masked_fill(~chosen.unsqueeze(-1), -torch.inf).flatten(1)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        tensors = {prefix + "weight": self.weight}
        if self.correction_bias is not None:
            tensors[prefix + "e_score_correction_bias"] = self.correction_bias
        return tensors


class Experts(MultiPlatformOp):
    """SwiGLU experts; each token's are applied to it, weighted and summed.

    Two ways, neither of which looks at a token by itself or touches an expert that no token goes to. A few pairs of
    token and expert gather their weights, which copies them but asks the device for nothing, so that it can be
    recorded. Many are sorted by expert, each expert then being one matrix product; how many go to each, the host has to
    know. On the CPU that costs no waiting, and copying weights would be the dearest part.

    A recording cannot ask: for many pairs it is left for that long. Where it cannot be left, every expert is applied to
    every token; a decode of that many rows reads all weights anyway.

    Attributes:
        gate_up_proj: [experts, 2 * width, hidden].
        down_proj: [experts, hidden, width].
    """

    def __init__(
        self, num_experts: int, hidden_size: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.width = width
        self.act = SiluAndMul()
        self.gate_up_proj = torch.empty(num_experts, 2 * width, hidden_size, dtype=dtype, device=device)
        self.down_proj = torch.empty(num_experts, hidden_size, width, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`forward_native`, as the platform does it."""
        result: torch.Tensor = getattr(self, self._forward_name or self.resolve_forward())(x, experts, weights)
        return result

    def forward_native(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[T, hidden], the experts of each token ([T, K] int64) and their weights ([T, K] float32) to [T, hidden]."""
        if experts.numel() <= GATHER_LIMIT:
            return self.gathered(x, experts, weights)
        return self._many(x, experts, weights)

    def forward_cpu(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """See `forward_native`."""
        return self._many(x, experts, weights)

    def _many(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        recorder = recording.current()
        if recorder is None:
            return self.sorted(x, experts, weights)
        if recorder.breaks:
            return recorder.run_eagerly(self.sorted, x, experts, weights)
        return self.dense(x, experts, weights)

    def gathered(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`forward_native` for few pairs: gathers the weights that each needs."""
        chosen = experts.flatten()
        inputs = x.repeat_interleave(experts.shape[1], dim=0).unsqueeze(-1)
        gate_up = torch.bmm(self.gate_up_proj.index_select(0, chosen), inputs).squeeze(-1)
        hidden = self.act.forward(gate_up).unsqueeze(-1)
        return self._sum(torch.bmm(self.down_proj.index_select(0, chosen), hidden), weights)

    def sorted(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`forward_native` for many pairs: sorts them by expert and takes one expert after the other."""
        chosen = experts.flatten()
        order = chosen.argsort()
        sizes = torch.bincount(chosen, minlength=self.down_proj.shape[0]).tolist()
        inputs = x.index_select(0, order // experts.shape[1]).split_with_sizes(sizes)
        outputs = []
        for expert, of_expert in enumerate(inputs):
            if sizes[expert]:
                hidden = self.act.forward(F.linear(of_expert, self.gate_up_proj[expert]))
                outputs.append(F.linear(hidden, self.down_proj[expert]))
        in_order = torch.cat(outputs)
        return self._sum(torch.empty_like(in_order).index_copy_(0, order, in_order), weights)

    def dense(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`forward_native` without asking for anything: applies every expert to every token."""
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(self.down_proj.shape[0]):
            hidden = self.act.forward(F.linear(x, self.gate_up_proj[expert]))
            outputs = F.linear(hidden, self.down_proj[expert]).float()
            chosen = experts == expert
            # Not a product with zero: what an expert makes of a token that is not its own need not be finite.
            weighted = outputs * (weights * chosen).sum(-1, keepdim=True)
            total += torch.where(chosen.any(-1, keepdim=True), weighted, 0.0)
        return total.to(x.dtype)

    @staticmethod
    def _sum(outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[T * K, hidden] outputs and [T, K] float32 weights to the weighted sums, added up in float32."""
        pairs = outputs.view(*weights.shape, -1)
        return torch.bmm(weights.unsqueeze(1), pairs.float()).squeeze(1).to(outputs.dtype)

    def tensors(self, name: str, gate: str, up: str, down: str) -> dict[str, torch.Tensor]:
        """Each expert's part of the weights, by its name in a checkpoint: `name` with the expert's number put in, then
        one of the other three."""
        tensors = {}
        for expert in range(self.down_proj.shape[0]):
            prefix = name.format(expert)
            gate_part, up_part = self.gate_up_proj[expert].split_with_sizes((self.width, self.width))
            tensors[f"{prefix}.{gate}.weight"] = gate_part
            tensors[f"{prefix}.{up}.weight"] = up_part
            tensors[f"{prefix}.{down}.weight"] = self.down_proj[expert]
        return tensors


class SparseMLP:
    """A mixture of experts, routed by softmax.

    Attributes:
        names: what checkpoints call an expert's gate, up and down.
    """

    def __init__(self, router: SoftmaxRouter, experts: Experts, names: tuple[str, str, str]) -> None:
        self.gate = router
        self.experts = experts
        self.names = names

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to [T, hidden], `residual` ([T, hidden]) added."""
        out = self.experts.forward(hidden_states, *self.gate.forward(hidden_states))
        return out.add_(residual)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights, by their names in a checkpoint."""
        return self.gate.tensors(prefix + "gate.") | self.experts.tensors(prefix + "experts.{}", *self.names)
