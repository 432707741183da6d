"""`loss.png`: the loss over the steps, with the held-out loss before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptune.evaluation.picture import save_figure


def plot_loss(
    records: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str,
    before: float | None = None,
    after: float | None = None,
) -> Path:
    """Draw the training loss, and the held-out losses where there are any.

    Args:
        records: Lines of `metrics.jsonl`.
        path: The PNG to write.
        title: Stands above the plot.
        before: Held-out loss of the frozen model alone.
        after: Held-out loss with the prompt.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps = [record["step"] for record in records if "loss" in record]
    losses = [record["loss"] for record in records if "loss" in record]
    axes.plot(
        steps, losses, color="#1f6feb", linewidth=1.8, marker="." if len(steps) < 40 else "", label="training loss"
    )
    held_out = [(record["step"], record["eval_loss"]) for record in records if "eval_loss" in record]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#d29922", marker="o", linestyle="", label="held-out loss")
    if before is not None:
        axes.axhline(before, color="#8b949e", linestyle="--", label=f"held-out, frozen model alone: {before:.3f}")
    if after is not None:
        axes.axhline(after, color="#2da44e", linestyle="--", label=f"held-out, with the prompt: {after:.3f}")
    axes.set(xlabel="optimizer step", ylabel="cross-entropy per answer token (nats)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return save_figure(figure, path)
