"""`report.md` of a run with answers before and after: figures, examples, and how to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptune.saved.files import write_atomic


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Sample:
    """One text with the answers to it."""

    text: str
    expected: str
    before: str
    after: str


def write_report(
    path: Path, *, title: str, facts: Sequence[str], figures: Sequence[Figure], samples: Sequence[Sample], plot: str
) -> Path:
    """Write a Markdown report.

    Args:
        path: The file.
        title: Its heading.
        facts: Sentences about the run, one a line.
        figures: The table of measures before and after.
        samples: Texts with both answers.
        plot: File name of the plot, beside the report.

    Raises:
        OutputError: It cannot be written.
    """
    lines = [f"# {title}", "", *[f"- {fact}" for fact in facts], ""]
    lines += ["| | frozen model alone | with the prompt |", "| --- | ---: | ---: |"]
    lines += [f"| {item.name} | {item.before} | {item.after} |" for item in figures]
    lines += ["", f"![loss]({plot})", "", "## Held-out examples", ""]
    for sample in samples:
        lines += [f"**{_inline(sample.text)}**", ""]
        lines += [f"- expected: `{_inline(sample.expected)}`", f"- with the prompt: `{_inline(sample.after)}`"]
        lines += [f"- frozen model alone: `{_inline(sample.before)}`", ""]
    write_atomic(path, "\n".join(lines).encode())
    return path


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split()) or "(nothing)"
