"""The scores of every column as bars, with their intervals; and beside them how the prompt learned.

What is drawn is on a scale from 0 to 100: shares in %, and the points of BLEU and chrF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptune.evaluation.columns import ALL_TITLES, ALONE, COMMONEST, NO_ANSWER, PROMPT, WRITTEN
from ptune.evaluation.evaluation_result import Cost, MetricScores
from ptune.evaluation.metrics import POINTS, SHARE
from ptune.evaluation.picture import LIGHT, Theme, paint, save_figure, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {ALONE: "#7f7f7f", COMMONEST: "#7f7f7f", NO_ANSWER: "#7f7f7f", WRITTEN: "#e69f00", PROMPT: "#009e73"}
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
    path: Path,
    *,
    title: str,
    losses: Sequence[tuple[int, float]],
    metrics: Sequence[MetricScores],
    costs: Mapping[str, Cost] | None = None,
) -> Path:
    """Write a PNG: the training loss, (optimizer step, nats a token), beside what each column reaches and costs.

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
    _bars(right, drawn(metrics), LIGHT, costs)
    figure.suptitle(title)
    return save_figure(figure, path)


def _bars(axes: Axes, metrics: Sequence[MetricScores], theme: Theme, costs: Mapping[str, Cost] | None = None) -> None:
    """Bars with their values; with `costs` the legend tells what an answer of each column takes."""
    columns = list(metrics[0].scores)
    for number, column in enumerate(columns):
        shift = (number - (len(columns) - 1) / 2) * _BAR
        scores = [one.scores[column] for one in metrics]
        scales = [_TO_100[one.metric.unit] for one in metrics]
        places = [place + shift for place in range(len(metrics))]
        values = [score.value * scale for score, scale in zip(scores, scales, strict=True)]
        label = ALL_TITLES[column] if costs is None else f"{ALL_TITLES[column]}\n{_cost(costs[column])}"
        axes.barh(places, values, _BAR * 0.92, color=COLORS[column], label=label)
        lows = [max(value - one.low * scale, 0) for value, one, scale in zip(values, scores, scales, strict=True)]
        highs = [max(one.high * scale - value, 0) for value, one, scale in zip(values, scores, scales, strict=True)]
        axes.errorbar(values, places, xerr=[lows, highs], fmt="none", ecolor=theme.ink, elinewidth=1, capsize=2)
        for value, more, place, one in zip(values, highs, places, metrics, strict=True):
            axes.annotate(
                f"{value:.0f}{'%' if one.metric.unit == SHARE else ''}",
                (value + more, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=theme.ink,
            )
    axes.set_yticks(range(len(metrics)), [one.metric.title for one in metrics])
    axes.invert_yaxis()
    axes.set_xlim(0, 114)
    axes.grid(visible=False, axis="y")
    points = " (BLEU and chrF: points)" if any(one.metric.unit == POINTS for one in metrics) else ""
    axes.set_xlabel(f"%{points}, with 95% intervals")
    axes.legend(
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(columns),
        labelcolor=theme.ink,
        fontsize=9,
    )


def _cost(cost: Cost) -> str:
    return f"{cost.prompt_tokens:,} tokens of prompt\n{cost.seconds_a_question:.2f} s an answer"
