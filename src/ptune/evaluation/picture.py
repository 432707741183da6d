"""`result.png`: what a prompt changed, as one picture: the loss while it learned, and scores before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptune.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEFORE, _AFTER, _LINE = "#8b949e", "#2da44e", "#1f6feb"


def plot_before_after(
    path: Path,
    *,
    title: str,
    losses: Sequence[tuple[int, float]],
    scores: Mapping[str, tuple[float, float]],
) -> Path:
    """Draw the training loss beside bars of the scores.

    Args:
        path: The PNG to write.
        title: Stands above both panels.
        losses: (optimizer step, loss in nats a token).
        scores: For each score its share in [0, 1] before and after.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    left.plot(*zip(*losses, strict=True), color=_LINE, linewidth=2, marker=".")
    left.set(xlabel="optimizer step", ylabel="training loss (nats a token)")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.25)
    names = list(scores)
    height = 0.38
    for shift, part, color, label in ((-1, 0, _BEFORE, "frozen model alone"), (1, 1, _AFTER, "with the prompt")):
        places = [row + shift * height / 2 for row in range(len(names))]
        values = [100 * scores[name][part] for name in names]
        bars = right.barh(places, values, height, color=color, label=label)
        right.bar_label(bars, labels=[f"{value:.0f}%" for value in values], padding=3, fontsize=9)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set_xlim(0, 112)
    right.set_xlabel("share of held-out messages (%)")
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, without a screen.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}.", hint="Free some space or choose another place."
        ) from error
    return path
