"""How far a score could be off for the rows that happen to be there: intervals from resamples of the items.

The percentile bootstrap (Efron 1979) with 95% intervals. All columns are scored on the same resamples, so that a
difference has an interval of its own, which is the narrower the more alike two columns are row by row (Koehn, EMNLP
2004).

Shapes: `N` items, `k` counts of a metric, `R` resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ptune.evaluation.metrics import Counts

_SHARES = (2.5, 97.5)
_MOST_DRAWN = 2**22
"""Numbers that are drawn at a time."""


@dataclass(frozen=True)
class Score:
    """A score, or a difference of two, with its 95% interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


def resampled(counts: Mapping[str, Counts], times: int, seed: int) -> dict[str, np.ndarray]:
    """The score of each resample, `(R,)`, by the names of the counts; all are scored on the same resamples.

    Args:
        counts: By any names, all of the same `N` items.
        times: `R`.
        seed: Draws the resamples.
    """
    matrix = np.concatenate([one.rows for one in counts.values()], axis=1)
    ends = np.cumsum([one.rows.shape[1] for one in counts.values()])[:-1]
    rows, rng = len(matrix), np.random.default_rng(seed)
    scores: dict[str, list[float]] = {name: [] for name in counts}
    at_once = max(_MOST_DRAWN // max(rows, 1), 1)
    for start in range(0, times, at_once):
        drawn = rng.integers(rows, size=(min(at_once, times - start), rows))
        often = np.stack([np.bincount(one, minlength=rows) for one in drawn])
        sums = np.split(often @ matrix, ends, axis=1)
        for (name, one), part in zip(counts.items(), sums, strict=True):
            scores[name] += [one.score(row) for row in part]
    return {name: np.array(values) for name, values in scores.items()}


def interval(value: float, samples: np.ndarray) -> Score:
    """A value with the interval that 95% of the resamples lie in."""
    known = samples[~np.isnan(samples)]
    low, high = np.percentile(known, _SHARES) if len(known) else (np.nan, np.nan)
    return Score(value, float(low), float(high))


def difference(ours: Score, theirs: Score, samples: Sequence[np.ndarray]) -> Score:
    """A score less another one, with the interval of the difference on the same resamples."""
    return interval(ours.value - theirs.value, samples[0] - samples[1])
