"""Intervals are those of another library, cover what they should, and know that columns share their rows."""

from __future__ import annotations

import numpy as np
import pytest

from ptune.evaluation.bootstrap import difference, interval, resampled
from ptune.evaluation.metrics import Counts, ratio


def mean(values: np.ndarray) -> Counts:
    return ratio(values, np.ones(len(values)))


def test_an_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).exponential(size=200)
    counts = mean(values)
    found = interval(counts.whole, resampled({"a": counts}, 4000, 1)["a"])
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, random_state=2)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (theirs.confidence_interval.low, theirs.confidence_interval.high), rel=0.03
    )


def test_ninety_five_of_a_hundred_intervals_hold_the_truth():
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(200):
        counts = mean((rng.random(80) < 0.3).astype(float))
        found = interval(counts.whole, resampled({"a": counts}, 300, seed)["a"])
        held += found.low <= 0.3 <= found.high
    assert 176 <= held <= 199


def test_the_same_seed_gives_the_same_and_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    from ptune.evaluation import bootstrap

    counts = {"a": mean(np.arange(30.0)), "b": mean(np.arange(30.0) ** 2)}
    whole = resampled(counts, 100, 3)
    monkeypatch.setattr(bootstrap, "_MOST_DRAWN", 64)
    parts = resampled(counts, 100, 3)
    for name in counts:
        assert np.array_equal(whole[name], parts[name])
    assert not np.array_equal(whole["a"], resampled(counts, 100, 4)["a"])


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=300) * 5
    counts = {"ours": mean(hard + 0.5 + rng.normal(size=300) * 0.1), "theirs": mean(hard)}
    samples = resampled(counts, 1000, 0)
    ours, theirs = (interval(counts[name].whole, samples[name]) for name in counts)
    found = difference(ours, theirs, (samples["ours"], samples["theirs"]))
    assert found.value == pytest.approx(0.5, abs=0.02)
    assert found.low > 0.45
    assert found.high < 0.55
    assert ours.high - ours.low > 10 * (found.high - found.low)


def test_resamples_without_anything_to_score_are_left_out():
    counts = ratio([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    found = interval(counts.whole, resampled({"a": counts}, 200, 0)["a"])
    assert (found.value, found.low, found.high) == (1, 1, 1)
    nothing = ratio([0.0], [0.0])
    assert np.isnan(interval(nothing.whole, resampled({"a": nothing}, 10, 0)["a"]).low)
