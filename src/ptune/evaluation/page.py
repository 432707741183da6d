"""Tables of text and the pages that they stand in: on a terminal, as Markdown, and as one HTML file.

The page holds everything it shows: no script, no request to anywhere; light or dark as the reader's system is.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ptune.evaluation.picture import as_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TextTable:
    """A table whose first column is text and whose others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of a page, for light and for dark."""

    name: str
    light: Figure
    dark: Figure
    alt: str
    """What it shows, for those who do not see it."""


@dataclass(frozen=True)
class Sample:
    """A text, and what was made of it."""

    text: str
    answers: tuple[tuple[str, str], ...]
    """(who, what)."""


def markdown(table: TextTable) -> list[str]:
    """A table as Markdown lines."""
    lines = ["| " + " | ".join(map(_cell, table.columns)) + " |", "| --- |" + " ---: |" * (len(table.columns) - 1)]
    return [*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in table.rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def show_tables(tables: Sequence[TextTable], console: Console) -> None:
    """Print tables; in a pipe they are as wide as they need be.

    On a terminal that is too narrow an interval stands below its score, and is not broken in its middle.
    """
    wide = console if console.is_terminal else Console(file=console.file, width=200)
    anywhere = wide.options.update(max_width=1000)
    for table in tables:
        drawn = _drawn(table)
        narrow = wide.measure(drawn, options=anywhere).maximum > wide.width
        wide.print(_drawn(table, before_interval="\n") if narrow else drawn)


def _drawn(table: TextTable, before_interval: str = " ") -> Table:
    drawn = Table(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
    for number, name in enumerate(table.columns):
        drawn.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for name, *cells in table.rows:
        drawn.add_row(Text(name), *(Text(cell.replace(" [", f"{before_interval}[")) for cell in cells))
    return drawn


def html_page(
    *,
    title: str,
    tables: Sequence[TextTable],
    pictures: Sequence[Picture],
    facts: Sequence[str],
    samples: Sequence[Sample] = (),
) -> str:
    """One page: tables, pictures, samples, and sentences on how it was measured."""
    source = files("ptune.evaluation").joinpath("page.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    drawn = [
        {"name": one.name, "alt": one.alt, "light": _data_url(one.light), "dark": _data_url(one.dark)}
        for one in pictures
    ]
    return page.render(title=title, tables=tables, pictures=drawn, samples=samples, facts=facts)


def _data_url(figure: Figure) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(as_svg(figure)).decode()}"
