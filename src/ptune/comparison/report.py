"""`report.md` and `report.html` of a comparison, and its tables on a terminal.

The page holds everything it shows: no script, no request to anywhere; light or dark as the reader's system is.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ptune.comparison.plots import DARK, LIGHT, as_svg, pictures, save_plots
from ptune.comparison.result_tables import facts, markdown, tables
from ptune.comparison.summary import Comparison
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
    source = files("ptune.comparison").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    light, dark = pictures(comparison, LIGHT), pictures(comparison, DARK)
    drawn = [
        {"name": _PICTURES[name], "light": _data_url(as_svg(light[name])), "dark": _data_url(as_svg(dark[name]))}
        for name in light
    ]
    return page.render(
        title=f"{TITLE}: {comparison.settings['recipe']['model']}",
        tables=tables(comparison),
        pictures=drawn,
        facts=facts(comparison),
    )


def _data_url(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables; in a pipe they are as wide as they need be."""
    wide = console if console.is_terminal else Console(file=console.file, width=200)
    for table in tables(comparison):
        drawn = Table(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
        for number, name in enumerate(table.columns):
            drawn.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        wide.print(drawn)
