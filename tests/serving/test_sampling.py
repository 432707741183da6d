"""The choice of tokens, against the formulas written out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from ptune.errors import ModelError
from ptune.serving.engine.requested import Sampling
from ptune.serving.engine.sampling import Sampler, log_likelihoods, next_tokens

VOCABULARY = 40
LOGITS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def sampler(text: tuple[int, ...] = (), written: tuple[int, ...] = (), choice: int = 0, **values: Any) -> Sampler:
    made = Sampler(Sampling(**values), text, choice)
    for token in written:
        made.note(token)
    return made


def test_the_likeliest_token_is_taken_without_temperature() -> None:
    assert next_tokens([sampler(), sampler(logit_bias={7: 100.0})], torch.stack([LOGITS, LOGITS])) == [
        int(LOGITS.argmax()),
        7,
    ]


def test_presence_and_frequency_penalties_are_openais() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, counted over the answer alone."""
    written = (3, 5, 3, 3, 9)
    made = sampler((1, 2), written, presence_penalty=0.7, frequency_penalty=0.4)
    wanted = LOGITS.clone()
    for token, count in Counter(written).items():
        wanted[token] -= 0.4 * count + 0.7
    assert torch.allclose(made._penalised(LOGITS), wanted)


def test_the_repetition_penalty_is_transformers() -> None:
    made = sampler((1, 2, -3), (5, 5), repetition_penalty=1.7)
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[1, 2, 5, 5]]), LOGITS[None].clone())[0]
    assert torch.equal(made._penalised(LOGITS), wanted)


@pytest.mark.parametrize(
    ("values", "allowed"),
    [({"top_k": 3}, 3), ({"top_p": 0.0}, 1), ({"top_k": 5, "top_p": 1.0}, 5), ({"top_k": 1000}, VOCABULARY)],
)
def test_only_likely_tokens_are_drawn(values: dict[str, Any], allowed: int) -> None:
    best = set(LOGITS.topk(allowed).indices.tolist())
    made = sampler(temperature=5.0, seed=1, **values)
    assert {made.choose(LOGITS) for _ in range(200)} <= best


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    made = sampler(temperature=1.5, seed=3)
    counts = Counter(made.choose(LOGITS) for _ in range(4000))
    found = torch.tensor([counts[token] / 4000 for token in range(VOCABULARY)])
    assert (found - (LOGITS / 1.5).softmax(0)).abs().max() < 0.03


def test_a_seed_repeats_and_each_choice_has_its_own_draws() -> None:
    draws = [
        tuple(made.choose(LOGITS) for _ in range(12))
        for made in (
            sampler(temperature=2.0, seed=seed, choice=choice) for seed, choice in ((5, 0), (5, 0), (5, 1), (6, 0))
        )
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    free = {tuple(made.choose(LOGITS) for _ in range(12)) for made in (sampler(temperature=2.0) for _ in range(3))}
    assert len(free) == 3


def test_a_row_of_nan_is_an_error_of_its_own() -> None:
    broken = LOGITS.clone()
    broken[4] = float("nan")
    first, second = next_tokens([sampler(), sampler()], torch.stack([broken, LOGITS]))
    assert isinstance(first, ModelError)
    assert second == int(LOGITS.argmax())


def test_log_likelihoods_are_of_the_logits_as_they_are() -> None:
    own, best = log_likelihoods(LOGITS, 6, 4)
    wanted = LOGITS - LOGITS.exp().sum().log()
    assert own == pytest.approx(float(wanted[6]), abs=1e-5)
    assert [token for token, _ in best] == LOGITS.topk(4).indices.tolist()
    assert [value for _, value in best] == pytest.approx(wanted.topk(4).values.tolist(), abs=1e-5)
    assert log_likelihoods(LOGITS, 6, 0)[1] == []


def test_processors_of_transformers_are_called_as_generate_calls_them() -> None:
    """A warper that looked at the ids would get none."""
    made = sampler(temperature=0.7, top_k=9, top_p=0.8)
    scores = LOGITS[None].clone()
    wanted = LogitsProcessorList(made._warpers)(torch.randint(0, 9, (1, 5)), scores.clone())
    for warper in made._warpers:
        scores = warper(torch.empty(1, 0, dtype=torch.long), scores)
    assert torch.equal(scores, wanted)
