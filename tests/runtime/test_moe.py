"""Mixtures of experts: both ways to run them, and what routers choose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pytest_mock import MockerFixture

from runtime import platforms
from runtime.layers import moe
from runtime.layers.moe import Experts, GroupLimitedRouter, SoftmaxRouter

CPU = torch.device("cpu")
EXPERTS, HIDDEN, WIDTH = 6, 16, 10


@pytest.fixture
def experts() -> Experts:
    layer = Experts(EXPERTS, HIDDEN, WIDTH, torch.float32, CPU)
    layer.gate_up_proj.normal_()
    layer.down_proj.normal_()
    return layer


def one_by_one(layer: Experts, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for expert, weight in zip(chosen[token].tolist(), weights[token].tolist(), strict=True):
            gate, up = (layer.gate_up_proj[expert] @ x[token]).chunk(2)
            out[token] += weight * (layer.down_proj[expert] @ (F.silu(gate) * up))
    return out


def routed(tokens: int, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chosen = torch.rand(tokens, EXPERTS).topk(top_k, dim=-1).indices
    return torch.randn(tokens, HIDDEN), chosen, torch.rand(tokens, top_k)


@pytest.mark.parametrize("way", ["gathered", "sorted", "forward", "forward_native"])
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (1, 3), (5, 2), (40, 6)])
def test_all_ways_are_the_sum_over_each_tokens_experts(experts: Experts, way: str, tokens: int, top_k: int) -> None:
    x, chosen, weights = routed(tokens, top_k)
    expected = one_by_one(experts, x, chosen, weights)
    torch.testing.assert_close(getattr(experts, way)(x, chosen, weights), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("way", ["gathered", "sorted"])
def test_experts_that_nobody_goes_to_are_not_touched(experts: Experts, way: str) -> None:
    x, weights = torch.randn(3, HIDDEN), torch.rand(3, 2)
    chosen, unused = torch.tensor([[0, 2], [5, 2], [2, 0]]), [1, 3, 4]
    experts.gate_up_proj[unused] = torch.nan
    experts.down_proj[unused] = torch.nan
    assert getattr(experts, way)(x, chosen, weights).isfinite().all()


def test_few_pairs_are_gathered_and_many_are_sorted_where_that_pays(experts: Experts, mocker: MockerFixture) -> None:
    gathered, in_order = mocker.spy(Experts, "gathered"), mocker.spy(Experts, "sorted")
    experts.forward_native(*routed(moe.GATHER_LIMIT // 2, 2))
    assert (gathered.call_count, in_order.call_count) == (1, 0)
    experts.forward_native(*routed(moe.GATHER_LIMIT // 2 + 1, 2))
    assert (gathered.call_count, in_order.call_count) == (1, 1)
    if platforms.current_platform.device_name == "cpu":
        experts.forward(*routed(1, 2))
        assert (gathered.call_count, in_order.call_count) == (1, 2)


def test_bfloat16_experts_are_summed_in_float32(experts: Experts) -> None:
    x, chosen, weights = routed(4, 3)
    expected = one_by_one(experts, x, chosen, weights)
    low = Experts(EXPERTS, HIDDEN, WIDTH, torch.bfloat16, CPU)
    low.gate_up_proj.copy_(experts.gate_up_proj)
    low.down_proj.copy_(experts.down_proj)
    got = low.forward(x.bfloat16(), chosen, weights)
    assert got.dtype is torch.bfloat16
    assert (got.float() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("renormalize", [True, False])
def test_softmax_routing_takes_the_likeliest(renormalize: bool) -> None:
    router = SoftmaxRouter(HIDDEN, EXPERTS, 2, renormalize=renormalize, dtype=torch.float32, device=CPU)
    router.weight.normal_()
    x = torch.randn(7, HIDDEN)
    chosen, weights = router.forward(x)
    probabilities = (x @ router.weight.t()).softmax(-1)
    expected, indices = probabilities.sort(dim=-1, descending=True)
    assert chosen.tolist() == indices[:, :2].tolist()
    expected = expected[:, :2]
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True) if renormalize else expected)


def group_router(corrected: bool, **options: object) -> GroupLimitedRouter:
    settings: dict[str, object] = {"num_groups": 3, "top_groups": 1, "renormalize": False, "scale": 1.0}
    return GroupLimitedRouter(
        EXPERTS,
        EXPERTS,
        2,
        corrected=corrected,
        dtype=torch.float32,
        device=CPU,
        **(settings | options),  # type: ignore[arg-type]
    )


def test_a_group_is_judged_by_its_best_expert_or_its_two_best() -> None:
    # Groups of two: the first has the best expert, the last the best two.
    logits = torch.tensor([[3.0, -9.0, 0.0, 0.0, 2.5, 2.5]])
    for corrected, chosen in ((False, {0, 1}), (True, {4, 5})):
        router = group_router(corrected)
        router.weight.copy_(torch.eye(EXPERTS))
        if router.correction_bias is not None:
            router.correction_bias.zero_()
        experts, _ = router.forward(logits)
        assert set(experts[0].tolist()) == chosen


def test_the_correction_bias_chooses_but_does_not_weigh() -> None:
    router = group_router(True, num_groups=1, renormalize=True, scale=2.5)
    router.weight.copy_(torch.eye(EXPERTS))
    assert router.correction_bias is not None
    router.correction_bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0, 8.0, 0.0]))
    logits = torch.tensor([[5.0, 5.0, 1.0, 5.0, 2.0, 5.0]])
    experts, weights = router.forward(logits)
    by_expert = dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True))
    scores = logits.sigmoid()[0]
    assert by_expert.keys() == {2, 4}
    for expert, weight in by_expert.items():
        assert weight == pytest.approx(float(2.5 * scores[expert] / (scores[2] + scores[4])))
