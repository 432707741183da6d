"""What a model for a task says of a row, read off what its head gives.

Shapes: `B` rows, `T` tokens of the longest row, `C` labels, `V` vocabulary, `S` tokens of the longest text to write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional as F

from ptune.data.labels import IGNORE_INDEX
from ptune.data.tasks.span_answers import Answered, Span


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of a row. Every task has its own fields; those of others are empty."""

    label: str = ""
    """classify, fill: the likeliest label."""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """classify, fill: of each label; together 1."""
    tags: tuple[str, ...] = ()
    """tag: the likeliest tag of each word; empty for a word that was cut off, or has no token."""
    words_cut: int = 0
    """tag: the words without a tag."""
    text: str = ""
    """qa: the answer, empty for none. seq2seq: the text."""
    candidates: tuple[Span, ...] = ()
    """qa: the best spans, and no answer where there may be none."""
    null_score: float | None = None
    """qa: the score of no answer."""
    loss: float = 0.0
    """Cross-entropy in nats, summed over what the row says is right; 0 where nobody asked."""
    losses: int = 0
    """Over how many: 1 (classify, fill), words (tag), windows of the context (qa), tokens (seq2seq)."""
    right: int = 0
    """seq2seq: the tokens of the right text that are the likeliest at their place."""
    seconds: float = 0.0
    """Wall time: the row's share of its batch."""

    def to_dict(self) -> dict[str, Any]:
        """What the task has, as plain values."""
        found: dict[str, Any] = {}
        if self.label:
            found |= {"label": self.label, "probabilities": dict(self.probabilities)}
        elif self.tags:
            found |= {"tags": list(self.tags), "words_cut": self.words_cut}
        elif self.null_score is not None:
            best = [{"text": one.text, "start": one.start, "probability": one.probability} for one in self.candidates]
            found |= {"answer": self.text, "candidates": best, "null_score": self.null_score}
        else:
            found["text"] = self.text
        return found


def of_classes(logits: torch.Tensor, labels: Sequence[str], wanted: torch.Tensor | None) -> list[Prediction]:
    """The label of each row.

    Args:
        logits: `(B, C)`.
        labels: `C` names.
        wanted: `(B,)` numbers of right labels; None where nobody knows.
    """
    likely = logits.detach().float().log_softmax(-1).cpu()
    found = []
    for at, row in enumerate(likely):
        made = Prediction(
            label=labels[int(row.argmax())], probabilities=dict(zip(labels, row.exp().tolist(), strict=True))
        )
        if wanted is not None:
            made = replace(made, loss=-float(row[int(wanted[at])]), losses=1)
        found.append(made)
    return found


def of_words(
    logits: torch.Tensor, columns: Sequence[Sequence[int]], tags: Sequence[str], wanted: torch.Tensor | None
) -> list[Prediction]:
    """The tag of each word of each row.

    Args:
        logits: `(B, T, C)`.
        columns: The column of each word's first token, -1 for a word without one.
        tags: `C` names.
        wanted: `(B, T)` numbers of right tags, -100 where there is none; None where nobody knows.
    """
    likely = logits.detach().float().log_softmax(-1).cpu()
    found = []
    for at, (row, own) in enumerate(zip(likely, columns, strict=True)):
        chosen = row.argmax(-1).tolist()
        made = Prediction(
            tags=tuple("" if column < 0 else tags[chosen[column]] for column in own),
            words_cut=sum(column < 0 for column in own),
        )
        if wanted is not None:
            made = replace(made, **_summed(row, wanted[at]))
        found.append(made)
    return found


def of_gaps(
    logits: torch.Tensor, columns: Sequence[int], words: Mapping[str, int], wanted: torch.Tensor | None
) -> list[Prediction]:
    """The label whose word is the likeliest in the gap of each row.

    Args:
        logits: `(B, T, V)`.
        columns: The column of each row's gap.
        words: The token of each label.
        wanted: `(B, T)`, the token of the right word at the gap; None where nobody knows. The loss is that of
            training, over the whole vocabulary.
    """
    rows = torch.arange(len(logits), device=logits.device)
    gaps = logits.detach()[rows, torch.tensor(columns, device=logits.device)].float().cpu()
    found = of_classes(gaps[:, list(words.values())], list(words), None)
    if wanted is None:
        return found
    right = wanted.cpu()[torch.arange(len(gaps)), torch.tensor(columns)]
    losses = F.cross_entropy(gaps, right, reduction="none").tolist()
    return [replace(one, loss=loss, losses=1) for one, loss in zip(found, losses, strict=True)]


def of_spans(answered: Answered, losses: Sequence[float]) -> Prediction:
    """The answer to a question.

    Args:
        answered: What `best_spans` found.
        losses: Of its windows, where it is known what is right.
    """
    return Prediction(
        text=answered.text,
        candidates=answered.candidates,
        null_score=answered.null_score,
        loss=sum(losses),
        losses=len(losses),
    )


def span_losses(output: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> list[float]:
    """The loss of each window: the mean of its start's and its end's cross-entropy, among its own tokens."""
    padding = batch["attention_mask"].cpu() == 0
    both = [
        F.cross_entropy(
            output[logits].detach().float().cpu().masked_fill(padding, -torch.inf),
            batch[places].cpu(),
            reduction="none",
        )
        for logits, places in (("start_logits", "start_positions"), ("end_logits", "end_positions"))
    ]
    losses: list[float] = ((both[0] + both[1]) / 2).tolist()
    return losses


def text_losses(logits: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """Loss, tokens and right tokens of each text to write; logits `(B, S, V)`, labels `(B, S)`."""
    likely, labels = logits.detach().float().log_softmax(-1).cpu(), labels.cpu()
    found = []
    for row, wanted in zip(likely, labels, strict=True):
        there = wanted != IGNORE_INDEX
        right = int((row.argmax(-1)[there] == wanted[there]).sum())
        found.append({**_summed(row, wanted), "right": right})
    return found


def _summed(likely: torch.Tensor, wanted: torch.Tensor) -> dict[str, Any]:
    """The summed loss of a row's tokens; log-probabilities `(T, C)`, right numbers `(T,)` or -100."""
    wanted = wanted.cpu()
    there = wanted != IGNORE_INDEX
    picked = likely[there].gather(1, wanted[there][:, None])
    return {"loss": -float(picked.sum()), "losses": int(there.sum())}
