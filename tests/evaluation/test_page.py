"""Tables on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ptune.evaluation.page import TextTable, show_tables

TABLE = TextTable(
    "100 questions",
    ("", "frozen model alone", "told in words", "with the prompt"),
    (("loss (nats a token)", "14.649 [14.475, 14.829]", "3.661 [3.609, 3.717]", "0.256 [0.224, 0.295]"),),
)


@pytest.mark.parametrize(("width", "terminal", "together"), [(80, True, False), (120, True, True), (80, False, True)])
def test_an_interval_is_not_broken_in_its_middle(width: int, terminal: bool, together: bool) -> None:
    """On a narrow terminal it stands on a line of its own; a pipe is as wide as the table."""
    out = io.StringIO()
    show_tables([TABLE], Console(file=out, width=width, force_terminal=terminal, color_system=None))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines if terminal)
    for score in TABLE.rows[0][1:]:
        value, _, interval = score.partition(" ")
        (line,) = [line for line in lines if interval in line]
        assert (score in line) == together
        assert sum(value in line for line in lines) == 1
