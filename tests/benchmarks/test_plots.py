"""The bars of the speed plot stand for the ratios of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import plots


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": median - 0.5, "max": median + 0.5}


def entry(ratio: float | None = None) -> dict[str, Any]:
    ratios = {} if ratio is None else {"peft": {"cpu_seconds": spread(ratio)}}
    return {"status": "ok", "cpu_seconds": spread(3.0), "ratios": ratios}


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figure:
    """What is drawn of two cases, in one of which a contender failed."""
    kept: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda drawn, path: kept.append(drawn) or path)
    failed = {"status": "killed by signal 9", "rounds": []}
    cases = [
        {"settings": {"encoder": "mlp", "n": 10}, "contenders": {"peft": entry(), "ptune-packed": entry(4.0)}},
        {"settings": {"encoder": "lstm", "n": 10}, "contenders": {"peft": entry(), "ptune-packed": failed}},
    ]
    plots.plot_speed({"cases": cases}, tmp_path / "speed.png")
    return kept[0]


def test_bars_are_ratios(figure: Figure):
    axes = figure.axes[0]
    widths = sorted(bar.get_width() for bar in axes.patches)
    assert widths == [1.0, 1.0, 4.0]
    assert {text.get_text() for text in axes.texts} == {"1.0×", "4.0×"}
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "MLP, 10 virtual tokens",
        "LSTM, 10 virtual tokens",
    ]
