"""What a compressed prompt is worth: beside the whole text in front, and beside nothing in front.

The teacher's greedy answers are the measure: how far each column's distributions are from the teacher's along them, how
often its likeliest token is the teacher's, how many of its own answers are the teacher's letter by letter. Where the
questions have right answers, those are compared with too: a small model may read a text poorly, and a compressed prompt
can be no better than its teacher is. Beside that stands what the text costs: tokens, keys and values, time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ptune.answering import Answerer
from ptune.compression.asked_columns import COLUMNS, COMPRESSED, NOTHING, TEXT, AskedColumns
from ptune.compression.excerpts import StudiedText
from ptune.compression.study_progress import progress
from ptune.compression.timing import Timing
from ptune.data.example import Example
from ptune.evaluation.items import make_items
from ptune.evaluation.metrics import METRICS
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.page import TextTable, markdown
from ptune.prefix.deep_prompts import encode_tokens
from ptune.saved.files import write_atomic, write_json

__all__ = ["COMPRESSED", "NOTHING", "TEXT", "CompressionReport", "make_report", "report_table", "write_report"]

REPORT, MARKDOWN = "compression.json", "compression.md"
SCORES = ("exact_match", "f1")


@dataclass(frozen=True)
class ColumnReport:
    """One way to be asked."""

    name: str
    tokens: int
    """Of prompt."""
    bytes: int
    """Of the keys and values that those tokens take for each conversation."""
    divergence: float
    """KL(teacher ‖ this), nats a token."""
    token_agreement: float
    """Share of the teacher's answer tokens at which the likeliest token is the same."""
    answer_agreement: float
    """Share of answers that are the teacher's, letter by letter."""
    scores: dict[str, float]
    """Against right answers, where there are some."""
    loss: float | None
    """Of the right answers, nats a token."""
    timing: Timing


@dataclass(frozen=True)
class CompressionReport:
    """The columns, and what each answered."""

    columns: tuple[ColumnReport, ...]
    questions: int
    answer_tokens: int
    """Of the teacher, all of them."""
    windows: int
    """Above 1 the text is longer than the context, and a part of it stood in front."""
    samples: tuple[dict[str, str], ...]
    """Questions with the answer of each column."""

    def __getitem__(self, name: str) -> ColumnReport:
        return next(one for one in self.columns if one.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # tuples become lists


def make_report(
    answerer: Answerer,
    text: StudiedText,
    rows: Sequence[Example],
    *,
    scored: bool,
    new_tokens: int,
    top_k: int,
    say: Console,
) -> CompressionReport:
    """Ask every column.

    Args:
        answerer: The model with the compressed prompt active.
        text: What was compressed.
        rows: Questions; with their right answers where `scored`.
        scored: Whether to compare with those.
        new_tokens: Of the longest answer.
        top_k: Likeliest tokens of the teacher that the divergence is taken over.
        say: Where to show progress.
    """
    windows = [text.window_of(row.question) for row in rows]
    order = sorted(range(len(rows)), key=windows.__getitem__)
    asked = AskedColumns(answerer, scored=scored, new_tokens=new_tokens, top_k=top_k)
    with progress("report", len(rows) * len(COLUMNS), 0, say) as advance:
        for window in sorted(set(windows)):
            mine = [rows[at] for at in order if windows[at] == window]
            asked.ask(text.windows[window], mine, advance)
    each = _bytes_a_token(answerer)
    columns = tuple(_column(asked, name, each) for name in COLUMNS)
    samples = tuple(
        {"question": row.question, **({"expected": row.output} if scored else {}), **said}
        for row, said in zip(asked.rows, asked.answers_by_row(), strict=True)
    )
    return CompressionReport(columns, len(rows), asked.total, len(text.windows), samples)


def _column(asked: AskedColumns, name: str, bytes_a_token: int) -> ColumnReport:
    """What was found out about one column."""
    found, teacher = asked.found[name], asked.found[TEXT]
    tokens = asked.tokens(name)
    counted = sum(one.tokens for one in found.losses)
    return ColumnReport(
        name=name,
        tokens=tokens,
        bytes=tokens * bytes_a_token,
        divergence=max(found.apart / max(asked.total, 1), 0.0),  # below it by rounding alone
        token_agreement=found.same / max(asked.total, 1),
        answer_agreement=_share_equal(found.answers, teacher.answers),
        scores=_scores(asked.rows, found.answers) if asked.scored else {},
        loss=sum(one.total for one in found.losses) / counted if counted else None,
        timing=asked.timing[name],
    )


def _bytes_a_token(answerer: Answerer) -> int:
    """Of keys and values in all layers; 0 where a model keeps none."""
    if not answerer.model.capability.prefix:
        return 0
    base = answerer.model.base
    return sum(part.nbytes for layer in encode_tokens(base, [0]).layers for part in layer)


def _share_equal(answers: Sequence[str], others: Sequence[str]) -> float:
    return sum(one.strip() == other.strip() for one, other in zip(answers, others, strict=True)) / max(len(answers), 1)


def _scores(rows: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    items = make_items(rows, group=False)
    outcomes = [Outcome(answer=answer.strip()) for answer in answers]
    return {name: METRICS[name].count(items, outcomes, ()).whole for name in SCORES}


# ---- shown -----------------------------------------------------------------------------------------------------------


def report_table(report: CompressionReport) -> TextTable:
    """The columns side by side."""
    columns = report.columns
    scored = columns[0].loss is not None
    rows = [
        ("tokens of prompt", *(f"{one.tokens:,}" for one in columns)),
        ("keys and values, MiB", *(f"{one.bytes / 2**20:.1f}" for one in columns)),
        ("divergence from the text, nats a token", *(f"{one.divergence:.3f}" for one in columns)),
        ("the same likeliest token", *(f"{one.token_agreement:.1%}" for one in columns)),
        ("the same answer", *(f"{one.answer_agreement:.1%}" for one in columns)),
        *(
            (METRICS[name].title, *(f"{one.scores[name]:.1%}" for one in columns))
            for name in SCORES
            if name in columns[0].scores
        ),
        *([("loss of the right answer, nats a token", *(f"{one.loss:.3f}" for one in columns))] if scored else []),
        ("first token, prompt computed, ms", *(f"{one.timing.first_token_cold * 1000:.0f}" for one in columns)),
        ("first token, prompt kept, ms", *(f"{one.timing.first_token * 1000:.0f}" for one in columns)),
        ("tokens a second", *(f"{one.timing.tokens_per_second:.1f}" for one in columns)),
    ]
    note = "Divergence and agreement are along the greedy answers with the text in front."
    if report.windows > 1:
        note += f" The text is longer than the context: of its {report.windows} parts the question's stood in front."
    return TextTable(f"{report.questions:,} questions", ("", *(one.name for one in columns)), tuple(rows), note)


def write_report(report: CompressionReport, folder: Path) -> None:
    """Write `compression.json` and `compression.md`.

    Raises:
        OutputError: They cannot be written.
    """
    table = report_table(report)
    lines = ["# What the compressed prompt is worth", "", *markdown(table), "", table.note, "", "## Answers", ""]
    for sample in report.samples[:5]:
        lines += [f"**{_inline(sample['question'])}**", ""]
        lines += [f"- {who}: `{_inline(what)}`" for who, what in sample.items() if who != "question"]
        lines.append("")
    write_json(folder / REPORT, report.to_dict())
    write_atomic(folder / MARKDOWN, "\n".join(lines).encode("utf-8", "replace"))


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split()) or "(nothing)"
