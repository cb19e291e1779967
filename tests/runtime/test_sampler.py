"""The sampler keeps what transformers keeps, and no row depends on another."""

from __future__ import annotations

import pytest
import torch
from pytest_mock import MockerFixture
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import runtime.sampling.logits_processor as logits_processor
import runtime.sampling.sampler as sampler
from runtime import platforms
from runtime.core.forward_batch import ForwardBatch, ForwardMode
from runtime.core.request import Request
from runtime.core.sampling_params import SamplingParams

VOCAB = 211


def logits_of(rows: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def request(**params: object) -> Request:
    return Request("r", [1], SamplingParams(**params))  # type: ignore[arg-type]


def draw_sequence(requests: list[Request], watched: Request, steps: int = 30) -> list[int]:
    """Tokens of `watched` over some steps whose logits do not depend on the batch."""
    row = requests.index(watched)
    tokens = []
    for i in range(steps):
        logits = logits_of(len(requests), seed=100 + i)
        logits[row] = logits_of(1, seed=i)[0]
        batch = sampler.SamplingBatch.from_requests(requests)
        tokens.append(int(sampler.sample(logits, batch)[row]))
    return tokens


def transformers_probabilities(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    ids = torch.zeros(1, 1, dtype=torch.int64)
    scores = TemperatureLogitsWarper(temperature)(ids, logits.unsqueeze(0))
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return scores.softmax(dim=-1)[0]


SETTINGS = [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (1.3, 5, 1.0),
    (0.5, 1, 1.0),
    (1.0, VOCAB, 1.0),
    (1.0, VOCAB + 50, 0.3),
    (1.0, 0, 0.9),
    (2.5, 0, 0.5),
    (1.0, 0, 1e-6),
    (0.8, 40, 0.95),
    (1.7, 3, 0.2),
]


def test_kept_sets_and_probabilities_are_those_of_transformers() -> None:
    # All settings as rows of one batch, against transformers one by one.
    logits = logits_of(len(SETTINGS))
    temperature, top_k, top_p = ([setting[i] for setting in SETTINGS] for i in range(3))
    probs = sampler.probabilities(logits, temperature, top_k, top_p)  # type: ignore[arg-type]
    for row, (setting, row_logits) in enumerate(zip(SETTINGS, logits, strict=True)):
        expected = transformers_probabilities(row_logits, *setting)
        assert torch.equal(probs[row] > 0, expected > 0), setting
        torch.testing.assert_close(probs[row], expected, atol=1e-6, rtol=1e-5)


def test_ties_at_the_top_k_threshold_stay_as_in_transformers() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 10:14] = 2.0
    probs = sampler.probabilities(logits, [1.0], [2], [1.0])
    assert (probs[0] > 0).sum() == 4
    assert torch.equal(probs[0] > 0, transformers_probabilities(logits[0], 1.0, 2, 1.0) > 0)


def test_top_p_keeps_no_more_than_reaches_it_as_in_transformers() -> None:
    logits = torch.zeros(4)
    probs = sampler.probabilities(logits.unsqueeze(0), [1.0], [0], [0.5])
    assert (probs[0] > 0).sum() == 2
    assert torch.equal(probs[0] > 0, transformers_probabilities(logits, 1.0, 0, 0.5) > 0)


def test_greedy_rows_take_the_best_token_whatever_the_filters() -> None:
    logits = logits_of(3)
    requests = [request(), request(top_k=3, top_p=0.1), request(temperature=1.0, seed=1)]
    tokens = sampler.sample(logits, sampler.SamplingBatch.from_requests(requests))
    assert tokens.dtype is torch.int64
    assert tokens[:2].tolist() == logits.argmax(-1)[:2].tolist()
    assert requests[0].generator is None


def test_sampling_leaves_the_logits_alone() -> None:
    logits = logits_of(2)
    before = logits.clone()
    requests = [request(temperature=0.9, top_k=5, top_p=0.5), request()]
    sampler.sample(logits, sampler.SamplingBatch.from_requests(requests))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("params", [{}, {"top_k": 20}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.8}])
def test_a_seeded_request_draws_the_same_alone_and_in_any_company(params: dict[str, object]) -> None:
    def watched() -> Request:
        return request(temperature=1.2, seed=42, **params)

    alone = watched()
    expected = draw_sequence([alone], alone)
    assert len(set(expected)) > 5
    for company in (
        [request(), request(temperature=0.3, seed=42)],
        [request(temperature=2.0, top_k=3), request(temperature=1.0, top_p=0.2), request()],
    ):
        for place in range(len(company) + 1):
            again = watched()
            assert draw_sequence([*company[:place], again, *company[place:]], again) == expected
    other_seed = request(temperature=1.2, seed=43, **params)
    assert draw_sequence([other_seed], other_seed) != expected


def test_requests_without_a_seed_differ_but_follow_the_process_seed() -> None:
    def two() -> list[list[int]]:
        requests = [request(temperature=1.0), request(temperature=1.0)]
        return [draw_sequence([r], r) for r in requests]

    torch.manual_seed(5)
    first = two()
    assert first[0] != first[1]
    torch.manual_seed(5)
    assert two() == first


def test_a_tiny_temperature_is_greedy_and_not_a_nan() -> None:
    logits = logits_of(1)
    probs = sampler.probabilities(logits, [1e-30], [0], [1.0])
    assert probs[0].argmax() == logits[0].argmax()
    assert probs[0].sum() == 1.0


def test_only_tokens_of_the_kept_set_are_drawn_even_at_its_ends() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    drawn = []
    for uniform in (0.0, 0.2499, 0.25, 0.9999, 1.0 - 2**-53, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, u=uniform, **__: torch.tensor([u], dtype=torch.float64))
            drawn.append(int(sampler.draw(probs, [torch.Generator()])))
    assert drawn == [1, 1, 3, 3, 3, 3]


def test_half_precision_logits_are_sampled_in_float32() -> None:
    logits = logits_of(2).to(torch.bfloat16)
    probs = sampler.probabilities(logits, [1.0, 1.0], [0, 5], [0.9, 1.0])
    assert probs.dtype is torch.float32


def test_a_batch_of_another_size_is_refused() -> None:
    batch = sampler.SamplingBatch.from_requests([request()])
    with pytest.raises(ValueError, match="2 rows of logits for 1"):
        sampler.sample(logits_of(2), batch)


def test_only_the_last_hidden_state_of_each_row_becomes_logits() -> None:
    hidden = torch.arange(8.0).unsqueeze(-1)
    tokens = torch.zeros(8, dtype=torch.int64)
    mixed = ForwardBatch(
        ForwardMode.MIXED, tokens, tokens, tokens, tokens[:4], tokens[:4], [3, 9, 4, 6], [3, 3, 1, 1], 2
    )
    assert logits_processor.last_hidden_states(hidden, mixed).flatten().tolist() == [2.0, 5.0, 6.0, 7.0]
    decode = ForwardBatch(ForwardMode.DECODE, tokens, tokens, tokens, tokens, tokens, [4] * 8, [1] * 8, 0)
    assert logits_processor.last_hidden_states(hidden, decode) is hidden


class WithoutDouble(torch.Tensor):
    """A tensor on a device that does not compute in double precision; copied to the host it is a plain one."""

    def double(self, *args: object, **kwargs: object) -> torch.Tensor:
        raise TypeError("no double precision here")

    def to(self, *args: object, **kwargs: object) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).to(*args, **kwargs)  # type: ignore[call-overload,no-any-return]


def test_without_double_precision_on_the_device_draws_are_made_on_the_host_and_are_the_same(
    mocker: MockerFixture,
) -> None:
    probs = logits_of(6).softmax(dim=-1)

    def drawn(probs: torch.Tensor) -> list[int]:
        return sampler.draw(probs, [torch.Generator().manual_seed(row) for row in range(6)]).tolist()

    expected = drawn(probs)
    with pytest.raises(TypeError, match="no double precision here"):
        drawn(probs.as_subclass(WithoutDouble))
    capabilities = platforms.PlatformCapabilities(dtypes=("float32",), float64=False)
    mocker.patch.object(type(platforms.current_platform), "capabilities", capabilities)
    assert drawn(probs.as_subclass(WithoutDouble)) == expected


def test_a_requests_generator_lives_on_the_host() -> None:
    assert sampler.request_generator(request(seed=3)).device == torch.device("cpu")
