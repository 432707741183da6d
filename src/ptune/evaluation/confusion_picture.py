"""Which label was taken for which, as a picture: a row for each right label, a column for each that was given.

Shapes: `C` labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptune.evaluation.evaluation_result import Breakdown
from ptune.evaluation.picture import Theme, themed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DRAWN = 20
"""Labels that such a picture has room for."""
_LONGEST = 18


def draw_confusion(found: Breakdown, theme: Theme) -> Figure:
    """Shares of each row in colour, counts as numbers."""
    count = len(found.labels)
    figure, axes = themed(theme, width=2.6 + 0.42 * count, height=2.0 + 0.36 * count)
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(found.counts / found.support[:, None])
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for at, row in enumerate(found.counts):
        for column, number in enumerate(row):
            ink = "#ffffff" if shares[at, column] > 0.5 else "#1f2328"
            axes.text(column, at, f"{number:,.0f}", ha="center", va="center", fontsize=8, color=ink)
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in found.labels]
    # A label is text: what would be a formula to matplotlib is shown as it is.
    names = [name.replace("$", r"\$") for name in names]
    axes.set_xticks(range(count), names, rotation=45, ha="right")
    axes.set_yticks(range(count), names)
    axes.grid(visible=False)
    axes.set(xlabel="given", ylabel="right")
    return figure
