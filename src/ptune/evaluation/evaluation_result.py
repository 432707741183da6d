"""What an evaluation gave: the scores of each column with their intervals, differences, costs, and examples.

Shapes: `C` labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptune.evaluation.bootstrap import Score, difference, interval, resampled
from ptune.evaluation.columns import ALONE, COMMONEST, NO_ANSWER, PROMPT, WRITTEN
from ptune.evaluation.items import Asked
from ptune.evaluation.metrics import Counts, Metric
from ptune.evaluation.outcomes import Outcome

LM = "lm"
COMPARED = ((PROMPT, ALONE), (PROMPT, WRITTEN), (PROMPT, COMMONEST), (PROMPT, NO_ANSWER))
"""Which columns are subtracted."""


@dataclass(frozen=True)
class MetricScores:
    """One metric in every column."""

    metric: Metric
    scores: Mapping[str, Score]
    """By column."""
    differences: Mapping[str, Score]
    """The prompt's score less that of another column, by that column."""


@dataclass(frozen=True)
class Cost:
    """What a column costs beside the frozen model alone."""

    prompt_tokens: int
    """Tokens before the question: virtual ones, or those of the words."""
    seconds_a_question: float
    """Wall time in batches as they were asked for: of the answer, or where none was wanted of loss and choice."""


@dataclass(frozen=True)
class Unrelated:
    """What changed on rows of other jobs."""

    rows: int
    loss: MetricScores
    agreement: Score
    """The share of answer tokens at which greedy decoding writes with the prompt what it writes without."""


@dataclass(frozen=True)
class Breakdown:
    """What became of each label, with the prompt."""

    labels: tuple[str, ...]
    counts: np.ndarray
    """`(C, C)`: rows that have a label (row), and were given one (column)."""

    @property
    def support(self) -> np.ndarray:
        """`(C,)`: rows that have each label."""
        rows: np.ndarray = self.counts.sum(axis=1)
        return rows

    def scores(self) -> np.ndarray:
        """`(C, 3)`: precision, recall and F1 of each label; NaN where there is nothing to divide by."""
        right, given, there = self.counts.diagonal(), self.counts.sum(axis=0), self.support
        with np.errstate(invalid="ignore"):
            found: np.ndarray = np.stack([right / given, right / there, 2 * right / (given + there)], axis=1)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values; null where there is nothing to divide by."""
        names = ("precision", "recall", "f1")
        by_label = {
            label: {
                **{name: float(one) if math.isfinite(one) else None for name, one in zip(names, row, strict=True)},
                "rows": int(count),
            }
            for label, row, count in zip(self.labels, self.scores(), self.support, strict=True)
        }
        return {"by_label": by_label, "confusion": self.counts.astype(int).tolist()}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome of `ptune evaluate`."""

    title: str
    columns: tuple[str, ...]
    items: Sequence[Asked]
    labels: tuple[str, ...]
    outcomes: Mapping[str, Sequence[Outcome]]
    """By column, one for each item."""
    metrics: tuple[MetricScores, ...]
    costs: Mapping[str, Cost]
    unrelated: Unrelated | None
    facts: tuple[str, ...]
    """Sentences on what was measured and how."""
    by_label: Breakdown | None = None
    """Of a prompt that gives rows one of some labels."""
    task: str = LM
    """What the prompt is for."""

    def score(self, metric: str, column: str = PROMPT) -> float:
        """One score, by the names of metric and column (`alone`, `written`, `prompt`); KeyError for others."""
        found = {one.metric.name: one for one in self.metrics}
        return found[metric].scores[column].value

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "title": self.title,
            "items": len(self.items),
            "labels": list(self.labels),
            "metrics": {one.metric.name: _scores_dict(one) for one in self.metrics},
            "costs": {
                name: {"prompt_tokens": one.prompt_tokens, "seconds_a_question": one.seconds_a_question}
                for name, one in self.costs.items()
            },
            "unrelated": None if self.unrelated is None else _unrelated_dict(self.unrelated),
            "facts": list(self.facts),
            **({} if self.task == LM else {"task": self.task}),
            **({} if self.by_label is None else self.by_label.to_dict()),
        }


def scored(counts: Mapping[str, Counts], metric: Metric, samples: Mapping[str, np.ndarray]) -> MetricScores:
    """The scores of a metric.

    Args:
        counts: By column.
        metric: The metric.
        samples: By column, the score of each resample; the same resamples for all.
    """
    scores = {name: interval(one.whole, samples[name]) for name, one in counts.items()}
    differences = {
        other: difference(scores[ours], scores[other], (samples[ours], samples[other]))
        for ours, other in COMPARED
        if ours in scores and other in scores
    }
    return MetricScores(metric, scores, differences)


def score_all(
    metrics: Sequence[Metric],
    items: Sequence[Asked],
    outcomes: Mapping[str, Sequence[Outcome]],
    labels: Sequence[str],
    *,
    times: int,
    seed: int,
) -> tuple[MetricScores, ...]:
    """Every metric in every column, all on the same resamples; arguments as in `Evaluation`, and `resampled`."""
    counts = {
        f"{metric.name} {name}": metric.count(items, of_column, labels)
        for metric in metrics
        for name, of_column in outcomes.items()
    }
    samples = resampled(counts, times, seed)
    return tuple(
        scored(
            {name: counts[f"{metric.name} {name}"] for name in outcomes},
            metric,
            {name: samples[f"{metric.name} {name}"] for name in outcomes},
        )
        for metric in metrics
    )


def _scores_dict(one: MetricScores) -> dict[str, Any]:
    return {
        **{name: _plain(score) for name, score in one.scores.items()},
        **{f"less_{name}": _plain(score) for name, score in one.differences.items()},
    }


def _unrelated_dict(one: Unrelated) -> dict[str, Any]:
    return {
        "rows": one.rows,
        "loss": _scores_dict(one.loss),
        "agreement": _plain(one.agreement),
    }


def _plain(score: Score) -> dict[str, float | None]:
    """With null for what JSON has no word for."""
    return {name: value if math.isfinite(value) else None for name, value in score.to_dict().items()}
