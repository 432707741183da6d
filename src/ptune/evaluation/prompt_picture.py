"""A prompt as a picture: how long its virtual tokens are beside the vocabulary's, what they are near to, and how alike.

Text that no installed font has a sign for is written as escapes, not as boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ptune.evaluation.picture import save_figure
from ptune.evaluation.prompt_geometry import Geometry, percentiles

_LINE, _BAND = "#1f6feb", "#8b949e"
_LABELLED = 40
"""Most virtual tokens that get a line of text each."""
_LONGEST_LABEL, _LONGEST_TITLE = 40, 160
_FONT = "DejaVu Sans"
_OTHERS = (
    "CJK",
    "Noto Sans SC",
    "WenQuanYi",
    "SimHei",
    "SimSun",
    "YaHei",
    "PingFang",
    "Hiragino",
    "Droid Sans Fallback",
)


def plot_prompt(
    path: Path,
    shown: Geometry,
    *,
    title: str,
    nearest: Sequence[str] | None = None,
    vocabulary_norms: torch.Tensor | None = None,
) -> Path:
    """Draw lengths as bars and cosines as a map, a row for every virtual token.

    Args:
        path: The PNG to write.
        shown: Of the prompt, `P` virtual tokens.
        title: Stands above both.
        nearest: `P` texts, the nearest token of each; left out where there are too many to read.
        vocabulary_norms: `(V,)` lengths of the vocabulary's embeddings; drawn as a band from 5% to 95%.

    Raises:
        OutputError: The file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    count = len(shown.norms)
    height = min(max(3.6, 0.9 + 0.24 * count), 11.0)
    families, known = _fonts()
    with mpl.rc_context({"font.family": families}):
        figure = Figure(figsize=(5.6 + height, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(5.2, height))
        left.barh(range(count), shown.norms.tolist(), color=_LINE, height=0.75)
        if vocabulary_norms is not None:
            low, middle, high = percentiles(vocabulary_norms)
            left.axvspan(low, high, color=_BAND, alpha=0.3, linewidth=0, label="vocabulary, 5% to 95%")
            left.axvline(middle, color=_BAND, label="its median")
            left.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        if nearest is not None and count <= _LABELLED:
            labels = [f"{_drawable(text[:_LONGEST_LABEL], known)}  {at}" for at, text in enumerate(nearest)]
            left.set_yticks(range(count), labels, fontsize=8)
            left.set_ylabel("nearest token and number of the virtual token")
        else:
            left.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
            left.set_ylabel("virtual token")
        left.set_ylim(count - 0.5, -0.5)
        left.set_xlabel("length (Euclidean norm)")
        left.spines[["top", "right"]].set_visible(False)
        image = right.imshow(shown.similarity.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        for axis in (right.xaxis, right.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        right.set_xlabel("virtual token")
        figure.colorbar(image, ax=right, label="cosine", shrink=0.8)
        figure.suptitle(_drawable(title[:_LONGEST_TITLE], known))
        return save_figure(figure, path)


def _fonts() -> tuple[list[str], set[int]]:
    """Families to draw with, and the characters they have."""
    from matplotlib import font_manager
    from matplotlib.font_manager import FontProperties

    found = {font.name for font in font_manager.fontManager.ttflist if any(word in font.name for word in _OTHERS)}
    families = [_FONT, *sorted(found)]
    known: set[int] = set()
    for family in families:
        file = font_manager.findfont(FontProperties(family=family))
        known |= set(font_manager.get_font(file).get_charmap())
    return families, known


def _drawable(text: str, known: set[int]) -> str:
    """`text` with escapes for what cannot be drawn; `$` would begin a formula."""
    return "".join(
        ("\\$" if sign == "$" else sign) if ord(sign) in known else sign.encode("unicode_escape").decode()
        for sign in text
    )
