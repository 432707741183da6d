"""`report.md` and `report.html` of a comparison, and its tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ptune.comparison.plots import pictures, save_plots
from ptune.comparison.result_tables import facts, tables
from ptune.comparison.summary import Comparison
from ptune.evaluation.page import Picture, html_page, markdown, show_tables
from ptune.evaluation.picture import DARK, LIGHT
from ptune.saved.files import write_atomic

MARKDOWN, PAGE = "report.md", "report.html"
TITLE = "ptune compare"
_PICTURES = {"loss": "Training loss", "held_out": "Held-out loss", "memory": "Memory"}


def write_reports(comparison: Comparison, folder: Path) -> None:
    """Write both reports and the pictures.

    Raises:
        OutputError: They cannot be written.
    """
    saved = save_plots(comparison, folder)
    write_atomic(folder / MARKDOWN, markdown_report(comparison, [path.name for path in saved]).encode())
    write_atomic(folder / PAGE, html_report(comparison).encode())


def markdown_report(comparison: Comparison, saved: Sequence[str]) -> str:
    """The report as Markdown, with the pictures saved beside it."""
    lines = [f"# {TITLE}: {comparison.settings['recipe']['model']}", ""]
    for table in tables(comparison):
        lines += [f"## {table.title}", "", *markdown(table), "", table.note, ""]
    for name in saved:
        lines += [f"![{_PICTURES[Path(name).stem]}]({name})", ""]
    lines += ["## How it was measured", ""]
    return "\n".join([*lines, *(f"- {fact}" for fact in facts(comparison)), ""])


def html_report(comparison: Comparison) -> str:
    """The report as one page."""
    light, dark = pictures(comparison, LIGHT), pictures(comparison, DARK)
    names = [(name, _PICTURES[name]) for name in light]
    return html_page(
        title=f"{TITLE}: {comparison.settings['recipe']['model']}",
        tables=tables(comparison),
        pictures=[Picture(title, light[name], dark[name], f"{title} of each method") for name, title in names],
        facts=facts(comparison),
    )


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables; in a pipe they are as wide as they need be."""
    show_tables(tables(comparison), console)
