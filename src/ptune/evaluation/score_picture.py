"""The scores of every column as bars, with their intervals; and beside them how the prompt learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptune.evaluation.columns import ALONE, PROMPT, TITLES, WRITTEN
from ptune.evaluation.evaluation_result import MetricScores
from ptune.evaluation.metrics import POINTS, SHARE
from ptune.evaluation.picture import LIGHT, Theme, paint, save_figure, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {ALONE: "#7f7f7f", WRITTEN: "#e69f00", PROMPT: "#009e73"}
_TO_100 = {SHARE: 100.0, POINTS: 1.0}
_BAR = 0.27


def drawn(metrics: Sequence[MetricScores]) -> list[MetricScores]:
    """The metrics that go from 0 to 100, and so have a place in the picture."""
    return [one for one in metrics if one.metric.unit in _TO_100]


def draw_scores(metrics: Sequence[MetricScores], theme: Theme) -> Figure:
    """Bars for the metrics that go from 0 to 100; at least one of them."""
    shown = drawn(metrics)
    figure, axes = themed(theme, width=7.6, height=1.4 + 0.62 * len(shown))
    _bars(axes, shown, theme)
    return figure


def plot_learning_and_scores(
    path: Path, *, title: str, losses: Sequence[tuple[int, float]], metrics: Sequence[MetricScores]
) -> Path:
    """Write a PNG: the training loss, (optimizer step, nats a token), beside the bars of the scores.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained", facecolor=LIGHT.ground)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    paint(left, LIGHT)
    paint(right, LIGHT)
    left.plot(*zip(*losses, strict=True), color="#1f6feb", linewidth=2, marker=".")
    left.set(xlabel="optimizer step", ylabel="training loss (nats a token)")
    left.set_ylim(bottom=0)
    _bars(right, drawn(metrics), LIGHT)
    figure.suptitle(title)
    return save_figure(figure, path)


def _bars(axes: Axes, metrics: Sequence[MetricScores], theme: Theme) -> None:
    columns = list(metrics[0].scores)
    for number, column in enumerate(columns):
        shift = (number - (len(columns) - 1) / 2) * _BAR
        scores = [one.scores[column] for one in metrics]
        scales = [_TO_100[one.metric.unit] for one in metrics]
        places = [place + shift for place in range(len(metrics))]
        values = [score.value * scale for score, scale in zip(scores, scales, strict=True)]
        axes.barh(places, values, _BAR * 0.92, color=COLORS[column], label=TITLES[column])
        lows = [max(value - one.low * scale, 0) for value, one, scale in zip(values, scores, scales, strict=True)]
        highs = [max(one.high * scale - value, 0) for value, one, scale in zip(values, scores, scales, strict=True)]
        axes.errorbar(values, places, xerr=[lows, highs], fmt="none", ecolor=theme.ink, elinewidth=1, capsize=2)
        for value, more, place in zip(values, highs, places, strict=True):
            axes.annotate(
                f"{value:.0f}", (value + more, place), (4, 0), textcoords="offset points", va="center", fontsize=8,
                color=theme.ink,
            )  # fmt: skip
    axes.set_yticks(range(len(metrics)), [one.metric.title for one in metrics])
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("% (BLEU and chrF: points), with 95% intervals")
    axes.legend(
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(columns),
        labelcolor=theme.ink,
        fontsize=9,
    )
