"""The loss of each of many rows, through the packed way: rows are put together up to a number of tokens.

Shapes: `T` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ptune.batch.token_queries import TokenQueries
from ptune.data.labels import IGNORE_INDEX
from ptune.model.wrapper import PTunedModel

MOST_TOKENS = 4096
"""Text tokens that go through the model together."""


@dataclass(frozen=True)
class LearnedRow:
    """A row as training has it."""

    ids: Sequence[int]
    """`(T,)`."""
    labels: Sequence[int]
    """`(T,)`, `IGNORE_INDEX` where not supervised."""
    prompt: str | None
    """The prompt in front of it."""
    besides: Sequence[tuple[int, int]] = ()
    """(place, token) of whatever else is asked about it."""


@dataclass(frozen=True)
class RowLoss:
    """What a model makes of a row's supervised tokens."""

    total: float
    """Cross-entropy in nats, summed."""
    tokens: int
    right: int
    """Tokens that are the likeliest at their place."""
    likeliest: tuple[int, ...]
    """What would be written at each of those places."""
    besides: tuple[float, ...] = ()
    """Log-probabilities of what else was asked."""


def row_losses(model: PTunedModel, rows: Sequence[LearnedRow], *, most_tokens: int = MOST_TOKENS) -> list[RowLoss]:
    """The losses of rows, in their order. Nothing predicts the first token of a row with no prompt: it is left out.

    Args:
        model: In eval mode.
        rows: Some at least.
        most_tokens: Of a batch.
    """
    found: list[RowLoss] = []
    for batch in by_tokens([len(row.ids) for row in rows], most_tokens):
        found += _losses_together(model, [rows[at] for at in batch])
    return found


def by_tokens(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of neighbouring rows with at most so many tokens together; a longer row stays by itself."""
    batch: list[int] = []
    total = 0
    for number, length in enumerate(lengths):
        if batch and total + length > most:
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += length
    if batch:
        yield batch


def _losses_together(model: PTunedModel, rows: Sequence[LearnedRow]) -> list[RowLoss]:
    learned = [[(place, label) for place, label in enumerate(row.labels) if label != IGNORE_INDEX] for row in rows]
    queries = TokenQueries.of(
        [
            (number, place, token)
            for number, (row, own) in enumerate(zip(rows, learned, strict=True))
            for place, token in (*own, *row.besides)
        ]
    )
    answers = model.token_answers([row.ids for row in rows], queries, prompt_names=[row.prompt for row in rows])
    ends = [len(own) + len(row.besides) for row, own in zip(rows, learned, strict=True)]
    parts = (torch.split(one, ends) for one in (answers.log_probs.double(), answers.likeliest, queries.tokens))
    made = []
    for own, log_probs, likeliest, tokens in zip(learned, *parts, strict=True):
        known = (~log_probs[: len(own)].isnan()).nonzero().squeeze(1)
        best = likeliest[known]
        made.append(
            RowLoss(
                total=-float(log_probs[known].sum()),
                tokens=len(known),
                right=int((best == tokens[known]).sum()),
                likeliest=tuple(best.tolist()),
                besides=tuple(log_probs[len(own) :].tolist()),
            )
        )
    return made
