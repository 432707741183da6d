"""`loss.png` and `memory.png`, and the same as SVG for the report, light and dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.comparison.summary import Comparison, MethodSummary
from ptune.evaluation.picture import save_figure
from ptune.methods.names import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of a picture."""

    ground: str
    ink: str
    faint: str


LIGHT, DARK = Theme("#ffffff", "#1f2328", "#8b949e"), Theme("#0d1117", "#e6edf3", "#6e7681")
# Okabe and Ito's palette, told apart by readers who do not see all colours; one colour a method, whatever is compared.
_PALETTE = ("#7f7f7f", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800")
_COLORS = dict(zip(METHODS, _PALETTE, strict=True))


def save_plots(comparison: Comparison, folder: Path) -> None:
    """Write both PNGs.

    Raises:
        OutputError: They cannot be written.
    """
    save_figure(draw_losses(comparison, LIGHT), folder / "loss.png")
    save_figure(draw_memory(comparison, LIGHT), folder / "memory.png")


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    pipe = io.BytesIO()
    with rc_context({"svg.hashsalt": "ptune"}):
        figure.savefig(pipe, format="svg", metadata={"Date": None})
    return pipe.getvalue()


def draw_losses(comparison: Comparison, theme: Theme) -> Figure:
    """Training loss by step, smoothed, beside the held-out loss of each method."""
    from matplotlib.ticker import MaxNLocator

    shown = [one for one in comparison.methods if one.ok]
    held_out = [one for one in shown if one.held_out_loss is not None]
    figure, axes = _figure(theme, 2 if held_out else 1)
    left = axes[0]
    for one in shown:
        _curve(left, one)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="optimizer step", ylabel="training loss (nats per answer token)")
    left.legend(frameon=False, fontsize=9, labelcolor=theme.ink)
    if held_out:
        _held_out(axes[1], held_out, comparison.base.held_out_loss, theme)
    return figure


def _curve(axes: Axes, one: MethodSummary) -> None:
    """A method's loss, each point the mean over its neighbours; the band is from the least to the greatest seed."""
    steps = [point[0] for point in one.losses]
    mean, low, high = (smoothed([point[part] for point in one.losses]) for part in (1, 2, 3))
    axes.plot(steps, mean, color=_COLORS[one.method], linewidth=1.8, label=one.title)
    if one.runs > 1:
        axes.fill_between(steps, low, high, color=_COLORS[one.method], alpha=0.15, linewidth=0)


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred running means over a twelfth of the curve, narrower at its ends."""
    reach = len(values) // 24
    means = []
    for place in range(len(values)):
        half = min(reach, place, len(values) - 1 - place)
        part = values[place - half : place + half + 1]
        means.append(sum(part) / len(part))
    return means


def _held_out(axes: Axes, shown: Sequence[MethodSummary], base: float | None, theme: Theme) -> None:
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
    axes.set_xlabel("held-out loss (nats per answer token)")


def draw_memory(comparison: Comparison, theme: Theme) -> Figure:
    """Memory with the model loaded and at peak in training."""
    figure, (axes,) = _figure(theme, 1)
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
    what = "GPU memory in tensors (GiB)" if comparison.on_cuda else "resident memory above the start (GiB)"
    axes.set_xlabel(f"{what}; pale: model loaded, full: peak in training")
    return figure


def _figure(theme: Theme, panels: int) -> tuple[Figure, list[Axes]]:
    """An empty figure in a theme's colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12 if panels > 1 else 8, 4.6), layout="constrained", facecolor=theme.ground)
    made: Any = figure.subplots(1, panels, squeeze=False)
    axes: list[Axes] = list(made[0])
    for one in axes:
        one.set_facecolor(theme.ground)
        one.spines[["top", "right"]].set_visible(False)
        for side in ("left", "bottom"):
            one.spines[side].set_color(theme.faint)
        one.tick_params(colors=theme.ink)
        one.xaxis.label.set_color(theme.ink)
        one.yaxis.label.set_color(theme.ink)
        one.grid(alpha=0.2)
    return figure, axes
