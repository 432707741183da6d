"""The Markdown report of a run."""

from __future__ import annotations

from pathlib import Path

from ptune.evaluation.run_report import Figure, Sample, write_report


def test_figures_samples_and_awkward_text(tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "report.md",
        title="A run",
        facts=["400 rows"],
        figures=[Figure("loss", "3.20", "0.40")],
        samples=[Sample("two\nlines `tick`", "{}", "", "软 answer")],
        plot="loss.png",
    )
    text = path.read_text(encoding="utf-8")
    for part in ("# A run", "- 400 rows", "| loss | 3.20 | 0.40 |", "![loss](loss.png)", "**two lines 'tick'**"):
        assert part in text
    assert "- with the prompt: `软 answer`\n- frozen model alone: `(nothing)`" in text
