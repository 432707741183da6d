"""How likely each of several labels is behind a text, without running the text once for each of them.

All but the last token of a label must be read to know how likely the whole of it is. Labels of one token need no more
than the text itself; labels that begin alike share what they begin with. Where several must be read, either the text
is repeated before each of them, behind one soft prompt for the whole batch, or text and soft prompt run once together
and the labels go on from there; whichever has fewer tokens is taken.

A label's likelihood is that of its tokens, without an end token, as lm-evaluation-harness has it.

Shapes: `L` labels, `T` tokens of a text, `P` virtual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptune.batch.token_queries import TokenQueries
from ptune.evaluation.row_losses import MOST_TOKENS, by_tokens
from ptune.model.wrapper import PTunedModel

Ids = tuple[int, ...]


@dataclass(frozen=True)
class LabelSet:
    """Token ids of the labels, and what of them must be read."""

    labels: tuple[Ids, ...]
    """Of each of the `L` labels, at least one token."""
    beginnings: tuple[Ids, ...]
    """What labels begin with before their last token, without what is part of a longer one; `((),)` at the least."""
    under: tuple[int, ...]
    """For each label the number of the beginning that it follows."""

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]]) -> LabelSet:
        """From the labels' token ids."""
        whole = tuple(map(tuple, labels))
        read = sorted({label[:-1] for label in whole}, key=lambda one: (-len(one), one))
        longest = [one for at, one in enumerate(read) if not any(other[: len(one)] == one for other in read[:at])]
        under = [next(at for at, one in enumerate(longest) if one[: len(label) - 1] == label[:-1]) for label in whole]
        return cls(whole, tuple(longest), tuple(under))

    @property
    def next_tokens(self) -> tuple[int, ...]:
        """The labels as tokens that follow a text, where each is one token; none otherwise."""
        return tuple(label[0] for label in self.labels) if self.beginnings == ((),) else ()

    def queries(self, row_of: Sequence[int], offset: int) -> list[tuple[int, int, int]]:
        """(row, place, token) for every token of every label.

        Args:
            row_of: The row of each beginning.
            offset: Tokens of the text before it in that row.
        """
        return [
            (row_of[under], offset + at, token)
            for label, under in zip(self.labels, self.under, strict=True)
            for at, token in enumerate(label)
        ]


@dataclass(frozen=True)
class AskedText:
    """A text that labels are to follow."""

    ids: Sequence[int]
    """`(T,)`, some at least."""
    prompt: str | None
    """The prompt in front of it."""
    labels: LabelSet
    """What may follow it."""


@dataclass(frozen=True)
class Likelihood:
    """Of one label behind one text."""

    log_prob: float
    """Summed over its tokens, in nats."""
    greedy: bool
    """Whether greedy decoding would write it."""


def label_likelihoods(
    model: PTunedModel, texts: Sequence[AskedText], *, most_tokens: int = MOST_TOKENS
) -> list[tuple[Likelihood, ...]]:
    """How likely each label is behind its text.

    Args:
        model: In eval mode.
        texts: In any number.
        most_tokens: Text tokens of a batch.
    """
    found: list[tuple[Likelihood, ...]] = []
    lengths = [len(text.labels.beginnings) * len(text.ids) + sum(map(len, text.labels.beginnings)) for text in texts]
    for batch in by_tokens(lengths, most_tokens):
        found += _together(model, [texts[at] for at in batch])
    return found


def _together(model: PTunedModel, texts: Sequence[AskedText]) -> list[tuple[Likelihood, ...]]:
    """Those of one batch."""
    share = model.shares_texts and _sharing_pays(model, texts)
    rows: list[tuple[int, Ids]] = []
    asked: list[tuple[int, int, int]] = []
    for number, text in enumerate(texts):
        before = () if share else tuple(text.ids)
        row_of = []
        for beginning in text.labels.beginnings:
            row_of.append(len(rows))
            rows.append((number, before + beginning))
        asked += text.labels.queries(row_of, len(before))
    queries = TokenQueries.of(asked)
    names = [text.prompt for text in texts]
    if share:
        answers = model.token_answers_behind([text.ids for text in texts], rows, queries, prompt_names=names)
    else:
        of_row = [names[number] for number, _ in rows]
        answers = model.token_answers([ids for _, ids in rows], queries, prompt_names=of_row)
    log_probs, greedy = answers.log_probs.double(), answers.likeliest == queries.tokens
    lengths = [len(label) for text in texts for label in text.labels.labels]
    each = zip(torch.split(log_probs, lengths), torch.split(greedy, lengths), strict=True)
    likelihoods = (Likelihood(float(sums.sum()), bool(alike.all())) for sums, alike in each)
    return [tuple(next(likelihoods) for _ in text.labels.labels) for text in texts]


def _sharing_pays(model: PTunedModel, texts: Sequence[AskedText]) -> bool:
    """Whether a run of each text behind its own copy of its prompt has fewer tokens than repeating the texts has.

    Nothing can stand behind a text alone, so that every label must have something to read.
    """
    if any(text.labels.beginnings == ((),) for text in texts):
        return False
    widths = [0 if text.prompt is None else model.prompt_configs[text.prompt].leading_tokens for text in texts]
    repeated = sum((len(text.labels.beginnings) - 1) * len(text.ids) for text in texts)
    return sum(widths) < repeated + max(widths)
