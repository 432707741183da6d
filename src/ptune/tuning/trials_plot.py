"""`trials.png`: the held-out loss of each trial in its order, and against its learning rate, encoder by encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptune.choices import ENCODER_NAMES
from ptune.evaluation.picture import save_figure
from ptune.tuning.tune_result import COMPLETE, TrialResult, TuneResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by readers who do not see all colours.
_PALETTE = ("#0072b2", "#009e73", "#d55e00", "#e69f00", "#cc79a7", "#56b4e9")
_COLORS = dict(zip(ENCODER_NAMES, _PALETTE, strict=False))
_FAINT = "#8b949e"
_ROOM = 0.15
"""Above and below the complete trials, as a share of their range."""


def plot_trials(result: TuneResult, path: Path) -> Path:
    """Draw both panels: a full mark for a complete trial, a hollow one for one that was given up, where it stood then.

    What lies far above the complete trials is a triangle at the upper edge: the best ones are to be told apart.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    shown = [trial for trial in result.trials if trial.held_out_loss is not None]
    complete = [trial.held_out_loss or 0.0 for trial in shown if trial.state == COMPLETE]
    low, high = min(complete), max(complete)
    room = (high - low or 0.1 * high) * _ROOM
    for encoder in dict.fromkeys(trial.encoder for trial in shown):
        own = [trial for trial in shown if trial.encoder == encoder]
        _marks(left, own, [float(trial.trial) for trial in own], top=high + room)
        _marks(right, own, [trial.learning_rate for trial in own], top=high + room)
    _best_so_far(left, shown)
    left.set(xlabel="trial", ylabel="held-out loss (nats per answer token)", ylim=(low - room, high + 1.4 * room))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="learning rate", xscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(
        f"frozen model alone: {result.frozen_loss:.3f}; hollow: given up there, triangle: further up", fontsize=10
    )
    return save_figure(figure, path)


def _marks(axes: Axes, trials: list[TrialResult], places: list[float], *, top: float) -> None:
    """The trials of one encoder at these places, none above `top`."""
    color = _COLORS[trials[0].encoder]
    axes.plot([], [], linestyle="", marker="o", markersize=7, color=color, label=trials[0].encoder)
    for place, trial in zip(places, trials, strict=True):
        loss = trial.held_out_loss or 0.0
        axes.plot(
            [place],
            [min(loss, top)],
            marker="o" if loss <= top else "^",
            markersize=7,
            color=color,
            markerfacecolor=color if trial.state == COMPLETE else "none",
        )


def _best_so_far(axes: Axes, trials: list[TrialResult]) -> None:
    """A line at the lowest loss of the complete trials up to each."""
    complete = [(trial.trial, trial.held_out_loss) for trial in trials if trial.state == COMPLETE]
    lowest = [min(loss for _, loss in complete[: number + 1] if loss is not None) for number in range(len(complete))]
    axes.step([place for place, _ in complete], lowest, where="post", color=_FAINT, linewidth=1.2, label="best so far")
