"""The metrics by name: what each counts in a row, and the score of a sum of such counts.

Every metric is split this way, so that a resample of the rows is scored by adding up (see `bootstrap`).

Shapes: `N` items, `C` labels, `k` counts of a metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ptune.choices import METRIC_GROUPS
from ptune.evaluation.items import Asked
from ptune.evaluation.json_metrics import JsonMatch, match_json
from ptune.evaluation.outcomes import Needs, Outcome, chosen_label
from ptune.evaluation.text_metrics import corpus_metric, exact_match, rouge, token_f1

NATS, NUMBER, SHARE, POINTS = "nats", "number", "share", "points"
"""Units: nats a token, a plain number, a share in [0, 1], points from 0 to 100."""
LOWER_IS_BETTER = ("loss", "perplexity")


@dataclass(frozen=True)
class Counts:
    """What a metric counts in `N` items, and the score of counts added up."""

    rows: np.ndarray
    """`(N, k)`."""
    score: Callable[[np.ndarray], float]
    """`(k,)` → the score; NaN where there is nothing to score."""

    @property
    def whole(self) -> float:
        """The score of all items."""
        return self.score(self.rows.sum(axis=0))


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    title: str
    unit: str
    count: Callable[[Sequence[Asked], Sequence[Outcome], Sequence[str]], Counts]
    """Items, what a column made of them, labels → counts."""


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Counts:
    """A share of a whole, both added up over the items."""
    return Counts(np.stack([np.asarray(parts, float), np.asarray(wholes, float)], axis=1), _quotient)


def _quotient(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def _mean(values: Sequence[float] | np.ndarray) -> Counts:
    return ratio(list(values), [1.0] * len(values))


def _exp(sums: np.ndarray) -> float:
    return float(np.exp(_quotient(sums)))


def _loss(_items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    return ratio([one.loss for one in outcomes], [one.tokens for one in outcomes])


def _perplexity(items: Sequence[Asked], outcomes: Sequence[Outcome], labels: Sequence[str]) -> Counts:
    return Counts(_loss(items, outcomes, labels).rows, _exp)


def _token_accuracy(_items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    return ratio([one.right for one in outcomes], [one.tokens for one in outcomes])


def _pairs(items: Sequence[Asked], outcomes: Sequence[Outcome]) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.answer or "", item.references) for item, one in zip(items, outcomes, strict=True)]


def _row_by_row(
    function: Callable[[str, Sequence[str]], float],
    items: Sequence[Asked],
    outcomes: Sequence[Outcome],
    _labels: Sequence[str],
) -> Counts:
    return _mean([function(*pair) for pair in _pairs(items, outcomes)])


def _rouge(kind: str, items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    return _mean(rouge(_pairs(items, outcomes), kind))


def _corpus(name: str, items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    return Counts(*corpus_metric(name, _pairs(items, outcomes)))


def _matches(items: Sequence[Asked], outcomes: Sequence[Outcome]) -> list[JsonMatch]:
    return [match_json(*pair) for pair in _pairs(items, outcomes)]


def _json_valid(items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    return _mean([one.valid for one in _matches(items, outcomes)])


def _json_exact(items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    return _mean([one.exact for one in _matches(items, outcomes)])


def _json_keys(items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    keys = [one.keys for one in _matches(items, outcomes)]
    return ratio([sum(one.values()) for one in keys], [len(one) for one in keys])


def _json_key(key: str, items: Sequence[Asked], outcomes: Sequence[Outcome], _labels: Sequence[str]) -> Counts:
    keys = [one.keys for one in _matches(items, outcomes)]
    return ratio([one.get(key, False) for one in keys], [key in one for one in keys])


def _choices(outcomes: Sequence[Outcome], labels: Sequence[str], normalized: bool) -> list[str]:
    return [labels[chosen_label(one, labels, normalized=normalized)] for one in outcomes]


def _accuracy(normalized: bool, items: Sequence[Asked], outcomes: Sequence[Outcome], labels: Sequence[str]) -> Counts:
    chosen = _choices(outcomes, labels, normalized)
    return _mean([one in item.references for one, item in zip(chosen, items, strict=True)])


def _macro_f1(normalized: bool, items: Sequence[Asked], outcomes: Sequence[Outcome], labels: Sequence[str]) -> Counts:
    """Counts `(N, 2C)`: for each label whether it was chosen rightly, and how often it was chosen or was right."""
    rows = np.zeros((len(items), 2, len(labels)))
    for at, (item, chosen) in enumerate(zip(items, _choices(outcomes, labels, normalized), strict=True)):
        # Of several right labels the chosen one, where it is among them.
        wanted = chosen if chosen in item.references else next(one for one in item.references if one in labels)
        rows[at, 0, labels.index(chosen)] += chosen == wanted
        for one in (chosen, wanted):
            rows[at, 1, labels.index(one)] += 1
    return Counts(rows.reshape(len(items), -1), _mean_f1)


def _mean_f1(sums: np.ndarray) -> float:
    """The mean of 2·TP / (2·TP + FP + FN) over the labels that occur among choices or right answers."""
    right, occurring = sums.reshape(2, -1)
    there = occurring > 0
    return float((2 * right[there] / occurring[there]).mean()) if there.any() else math.nan


METRICS = {
    one.name: one
    for one in (
        Metric("loss", "loss (nats a token)", NATS, _loss),
        Metric("perplexity", "perplexity", NUMBER, _perplexity),
        Metric("token_accuracy", "token accuracy", SHARE, _token_accuracy),
        Metric("exact_match", "exact match", SHARE, partial(_row_by_row, exact_match)),
        Metric("f1", "token F1", SHARE, partial(_row_by_row, token_f1)),
        Metric("rouge1", "ROUGE-1", SHARE, partial(_rouge, "rouge1")),
        Metric("rouge2", "ROUGE-2", SHARE, partial(_rouge, "rouge2")),
        Metric("rougeL", "ROUGE-L", SHARE, partial(_rouge, "rougeL")),
        Metric("bleu", "BLEU", POINTS, partial(_corpus, "bleu")),
        Metric("chrf", "chrF", POINTS, partial(_corpus, "chrf")),
        Metric("json_valid", "valid JSON", SHARE, _json_valid),
        Metric("json_exact", "exact match as JSON", SHARE, _json_exact),
        Metric("json_keys", "values right", SHARE, _json_keys),
        Metric("accuracy", "accuracy", SHARE, partial(_accuracy, False)),
        Metric("accuracy_norm", "accuracy, by length", SHARE, partial(_accuracy, True)),
        Metric("macro_f1", "macro F1", SHARE, partial(_macro_f1, False)),
        Metric("macro_f1_norm", "macro F1, by length", SHARE, partial(_macro_f1, True)),
    )
}


def with_keys(names: Sequence[str], items: Sequence[Asked]) -> list[Metric]:
    """The metrics of these names, with one more for each key of the expected objects behind `json_keys`."""
    found = []
    for name in names:
        found.append(METRICS[name])
        if name == "json_keys":
            keys = dict.fromkeys(key for item in items for key in match_json("", item.references).keys)
            found += [Metric(f"json_key.{key}", f"{key} right", SHARE, partial(_json_key, key)) for key in keys]
    return found


def needs_of(names: Sequence[str], labels: Sequence[str] = ()) -> Needs:
    """What must be computed for metrics of these names."""
    asked = set(names)
    return Needs(
        tokens=bool(asked & set(METRIC_GROUPS["tokens"])),
        answers=bool(asked & {*METRIC_GROUPS["texts"], *METRIC_GROUPS["json"]}),
        labels=tuple(labels) if asked & set(METRIC_GROUPS["labels"]) else (),
    )
