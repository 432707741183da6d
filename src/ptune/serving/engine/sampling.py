"""The next token of each row, from the logits of its own and by its own wishes; and how likely it was.

Temperature, top-k, top-p and the repetition penalty are transformers' own; presence and frequency penalties and biases
are as OpenAI's reference defines them. Each row draws from a generator of its own, so an answer with a seed does not
depend on which rows ran beside it.

Shapes: `N` rows, `V` vocabulary.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ptune.errors import ModelError
from ptune.serving.engine.requested import Sampling

_NO_IDS: Any = torch.empty(1, 0, dtype=torch.long)
"""What warpers take beside the scores, and do not look at."""


class Sampler:
    """Chooses the tokens of one choice.

    Args:
        sampling: How.
        text_ids: Tokens of the text, which the repetition penalty counts.
        choice: The number of the choice.
    """

    def __init__(self, sampling: Sampling, text_ids: Sequence[int], choice: int = 0) -> None:
        self._sampling = sampling
        self.plain = sampling.plain
        self._given = [token for token in text_ids if token >= 0]
        self._written: list[int] = []
        self._generator = torch.Generator()
        if sampling.temperature > 0:
            self._generator.manual_seed(
                secrets.randbits(63) if sampling.seed is None else _mixed(sampling.seed, choice)
            )
        self._warpers = _warpers(sampling)

    def note(self, token: int) -> None:
        """A token has been written."""
        if not self.plain:
            self._written.append(token)

    def choose(self, logits: torch.Tensor) -> int:
        """A token from `(V,)` logits."""
        scores = self._penalised(logits.float())[None]
        if self._sampling.temperature == 0:
            return int(scores.argmax())
        for warper in self._warpers:
            scores = warper(_NO_IDS, scores)
        # Drawn on the CPU: a generator belongs to a device, and a seed means the same on each.
        return int(torch.multinomial(scores.softmax(-1)[0].cpu(), 1, generator=self._generator))

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        own = self._sampling
        if own.repetition_penalty != 1.0 and (seen := [*self._given, *self._written]):
            ids = torch.tensor([seen], device=scores.device)
            scores = RepetitionPenaltyLogitsProcessor(own.repetition_penalty)(ids, scores[None])[0]
        if self._written and (own.presence_penalty or own.frequency_penalty):
            tokens, counts = torch.unique(torch.tensor(self._written, device=scores.device), return_counts=True)
            scores = scores.index_add(0, tokens, -(own.presence_penalty + own.frequency_penalty * counts.float()))
        if own.logit_bias:
            tokens = torch.tensor(list(own.logit_bias), device=scores.device)
            scores = scores.index_add(0, tokens, scores.new_tensor(list(own.logit_bias.values())))
        return scores


def _mixed(seed: int, choice: int) -> int:
    """A seed of its own for each choice, which no other seed of a user's has for another choice."""
    return int.from_bytes(hashlib.sha256(f"{seed} {choice}".encode()).digest()[:7])


def _warpers(sampling: Sampling) -> list[Any]:
    """Those of transformers, in the order in which `generate` has them."""
    made: list[Any] = []
    if sampling.temperature > 0:
        made.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            made.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            made.append(TopPLogitsWarper(float(sampling.top_p)))
    return made


def next_tokens(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[int | ModelError]:
    """A token for each row of `(N, V)` logits; an error for a row whose logits are not numbers."""
    most, likeliest = logits.max(dim=-1)
    tokens: list[int | ModelError] = likeliest.tolist()
    for row, (sampler, broken) in enumerate(zip(samplers, most.isnan().tolist(), strict=True)):
        if broken:
            tokens[row] = ModelError(
                "what the model predicts is not a number (NaN).",
                hint="Serve it with --dtype float32, or mend the prompt.",
            )
        elif not sampler.plain:
            tokens[row] = sampler.choose(logits[row])
    return tokens


def log_likelihoods(logits: torch.Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """How likely a token was, and the likeliest ones: natural logarithms, from `(V,)` logits as the model gave them."""
    logs = logits.float().log_softmax(-1)
    best = logs.topk(min(count, len(logs)))
    return float(logs[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
