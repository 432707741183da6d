"""`loss.png`, `held_out.png` and `memory.png`, and the same for the report, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptune.comparison.summary import Comparison, MethodSummary
from ptune.evaluation.picture import LIGHT, Theme, save_figure, themed
from ptune.methods.names import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's palette, told apart by readers who do not see all colours; one colour a method, whatever is compared.
_PALETTE = (
    *("#7f7f7f", "#e69f00", "#0072b2", "#009e73", "#cc79a7"),
    *("#8c564b", "#5e3c99"),  # not theirs: of keys and values of every layer
    *("#d55e00", "#56b4e9", "#b8a800"),
)
_COLORS = dict(zip(METHODS, _PALETTE, strict=True))


def pictures(comparison: Comparison, theme: Theme) -> dict[str, Figure]:
    """Every picture by name; one of the held-out loss where there are held-out rows."""
    drawn = {"loss": draw_losses(comparison, theme)}
    if any(one.held_out_loss is not None for one in comparison.methods):
        drawn["held_out"] = draw_held_out(comparison, theme)
    drawn["memory"] = draw_memory(comparison, theme)
    return drawn


def save_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every picture as PNG.

    Raises:
        OutputError: They cannot be written.
    """
    return [save_figure(figure, folder / f"{name}.png") for name, figure in pictures(comparison, LIGHT).items()]


def draw_losses(comparison: Comparison, theme: Theme) -> Figure:
    """Training loss by step, smoothed: rows differ more than methods do."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = themed(theme)
    for one in comparison.methods:
        if one.ok:
            _curve(axes, one)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="optimizer step", ylabel=f"nats per {comparison.unit}, running mean")
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=theme.ink)
    return figure


def _curve(axes: Axes, one: MethodSummary) -> None:
    """A method's loss, each point the mean over its neighbours; the band is from the least to the greatest seed."""
    steps = [point[0] for point in one.losses]
    mean, low, high = (smoothed([point[part] for point in one.losses]) for part in (1, 2, 3))
    axes.plot(steps, mean, color=_COLORS[one.method], linewidth=1.8, label=one.title)
    if one.runs > 1:
        axes.fill_between(steps, low, high, color=_COLORS[one.method], alpha=0.15, linewidth=0)


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred running means over a fifth of the curve, narrower at its ends."""
    reach = len(values) // 10
    means = []
    for place in range(len(values)):
        half = min(reach, place, len(values) - 1 - place)
        part = values[place - half : place + half + 1]
        means.append(sum(part) / len(part))
    return means


def draw_held_out(comparison: Comparison, theme: Theme) -> Figure:
    """Held-out loss of each method, from the least to the greatest seed, and of the model alone."""
    figure, axes = themed(theme)
    shown = [one for one in comparison.methods if one.held_out_loss is not None]
    base = comparison.base.held_out_loss
    places = range(len(shown))
    for place, one in zip(places, shown, strict=True):
        found = one.held_out_loss
        assert found is not None
        axes.plot([found.low, found.high], [place, place], color=_COLORS[one.method], linewidth=4, alpha=0.4)
        axes.plot(found.mean, place, "o", color=_COLORS[one.method], markersize=8)
        axes.annotate(
            f"{found.mean:.3f}", (found.mean, place), (0, 8), textcoords="offset points", ha="center", color=theme.ink
        )
    if base is not None:
        axes.axvline(base, color=theme.faint, linestyle="--")
        axes.annotate(
            f"the model alone {base:.3f}",
            (base, 1),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=theme.faint,
            fontsize=9,
        )
    axes.set_yticks(places, [one.title for one in shown])
    axes.set_ylim(len(shown) - 0.5, -0.7)
    axes.margins(x=0.12)
    axes.set_xlabel(f"nats per {comparison.unit}")
    return figure


def draw_memory(comparison: Comparison, theme: Theme) -> Figure:
    """Memory with the model loaded and at peak in training."""
    figure, axes = themed(theme)
    shown = list(comparison.methods)
    height, places = 0.38, list(range(len(shown)))
    for shift, name, label, alpha in ((-1, "loaded_gib", "model loaded", 0.45), (1, "peak_gib", "in training", 1.0)):
        values = [getattr(one, name).mean if getattr(one, name) else 0.0 for one in shown]
        bars = axes.barh(
            [place + shift * height / 2 for place in places],
            values,
            height,
            color=[_COLORS[one.method] for one in shown],
            alpha=alpha,
            label=label,
        )
        texts = [f"{value:.2f}" if one.ok else "" for one, value in zip(shown, values, strict=True)]
        axes.bar_label(bars, labels=texts, padding=3, fontsize=9, color=theme.ink)
    for place, one in zip(places, shown, strict=True):
        if not one.ok:
            axes.text(0, place, f"  {one.status.partition(':')[0]}", va="center", color=theme.faint)
    axes.set_yticks(places, [one.title for one in shown])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    what = "in tensors on the GPU" if comparison.on_cuda else "resident above the start"
    axes.set_xlabel(f"GiB {what}; pale: model loaded, full: at peak")
    return figure
