"""Pictures in the colours of a theme, as PNG and as SVG, without a screen."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptune.errors import OutputError

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


def themed(theme: Theme, *, width: float = 6.8, height: float = 4.6) -> tuple[Figure, Axes]:
    """An empty figure in a theme's colours, so many inches wide and high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.ground)
    axes = figure.add_subplot()
    paint(axes, theme)
    return figure, axes


def paint(axes: Axes, theme: Theme) -> None:
    """Give axes a theme's colours, and a grid."""
    axes.set_facecolor(theme.ground)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)
    axes.tick_params(colors=theme.ink)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.grid(alpha=0.2)


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    pipe = io.BytesIO()
    with rc_context({"svg.hashsalt": "ptune"}):
        figure.savefig(pipe, format="svg", metadata={"Date": None})
    return pipe.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG.

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
