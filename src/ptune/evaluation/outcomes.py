"""What a model made of an item: its loss, its answer, and how likely it holds each label.

The smallest parts that every metric is made of, as they stand in `predictions.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """Of one item in one column; None or 0 where it was not asked for."""

    loss: float = 0.0
    """Cross-entropy in nats, summed over the tokens of all right answers."""
    tokens: int = 0
    """Those tokens."""
    right: int = 0
    """Those of them that are the likeliest at their place."""
    answer: str | None = None
    """Greedy."""
    seconds: float = 0.0
    """Wall time that the answer took, or without one loss and choice: its share of a batch."""
    labels: tuple[float, ...] | None = None
    """Log-likelihood of each label."""
    tags: tuple[str, ...] | None = None
    """Of each word; empty for a word that was cut off."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = asdict(self)
        if self.tags is None:
            found.pop("tags")
        return found

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Outcome:
        """From `to_dict`, by way of JSON; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        labels, tags = values["labels"], values.get("tags")
        return cls(
            loss=float(values["loss"]),
            tokens=int(values["tokens"]),
            right=int(values["right"]),
            answer=None if values["answer"] is None else str(values["answer"]),
            seconds=float(values["seconds"]),
            labels=None if labels is None else tuple(map(float, labels)),
            tags=None if tags is None else tuple(map(str, tags)),
        )


@dataclass(frozen=True)
class Needs:
    """What must be computed for some metrics."""

    tokens: bool
    answers: bool
    labels: tuple[str, ...] = ()
    """The labels whose likelihood is wanted; none otherwise."""


def chosen_label(outcome: Outcome, labels: Sequence[str], *, normalized: bool) -> int:
    """The number of the likeliest label.

    Args:
        outcome: Holds their likelihoods.
        labels: The labels.
        normalized: Divide a label's log-likelihood by its letters, so that long ones are not put back (`acc_norm` of
            lm-evaluation-harness).
    """
    assert outcome.labels is not None
    lengths = [len(label) if normalized else 1 for label in labels]
    scores = [score / length for score, length in zip(outcome.labels, lengths, strict=True)]
    return scores.index(max(scores))
