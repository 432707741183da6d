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

import torch
from rich.console import Console

from ptune.answering import Answerer
from ptune.compression.excerpts import StudiedText
from ptune.compression.reading import Reading, reading
from ptune.compression.study_progress import progress
from ptune.compression.timing import Timing, time_columns
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.data.example import Example
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import TEACHER_IDS, TEACHER_LOG_PROBS, SoftLabels
from ptune.evaluation.answers import generate_answers
from ptune.evaluation.columns import ItemTexts, Row, encoded
from ptune.evaluation.items import make_items
from ptune.evaluation.metrics import METRICS
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.page import TextTable, markdown
from ptune.evaluation.row_losses import LearnedRow, RowLoss, by_tokens, row_losses
from ptune.model.taught import divergence, likeliest_tokens, soft_labels
from ptune.prefix.deep_prompts import encode_tokens
from ptune.saved.files import write_atomic, write_json

REPORT, MARKDOWN = "compression.json", "compression.md"
NOTHING, TEXT, COMPRESSED = "nothing in front", "the whole text", "the compressed prompt"
SCORES = ("exact_match", "f1")
_BATCH = 16
_MOST_TOKENS = 2048


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
    model = answerer.model
    name = model.active_prompt
    windows = [text.window_of(row.question) for row in rows]
    order = sorted(range(len(rows)), key=windows.__getitem__)
    rows = [rows[at] for at in order]
    answers: dict[str, list[str]] = {NOTHING: [], TEXT: [], COMPRESSED: []}
    sums = {column: [0.0, 0.0] for column in answers}
    losses: dict[str, list[RowLoss]] = {column: [] for column in answers}
    timing: dict[str, Timing] = {}
    total = tokens = 0
    with progress("report", len(rows), 0, say) as advance:
        for window in sorted(set(windows)):
            mine = [row for row, at in zip(rows, order, strict=True) if windows[at] == window]
            with reading(answerer, text.windows[window], mine, new_tokens=new_tokens) as read:
                answers[TEXT] += _answers(answerer, [one.question for one in read.texts], read.name, new_tokens)
                losses[TEXT] += _losses(answerer, [one.rows[0] for one in read.texts], read.name) if scored else []
            for start in range(0, len(mine), _BATCH):
                asked = mine[start : start + _BATCH]
                own = [_encoded(answerer, row) for row in asked]
                for column, prompt in ((NOTHING, None), (COMPRESSED, name)):
                    answers[column] += _answers(answerer, [one.question for one in own], prompt, new_tokens)
                    losses[column] += _losses(answerer, [one.rows[0] for one in own], prompt) if scored else []
                advance(len(asked))
            said = answers[TEXT][-len(mine) :]
            taught = [
                Example(instruction=row.instruction, input=row.input, output=one)
                for row, one in zip(mine, said, strict=True)
            ]
            with reading(answerer, text.windows[window], taught) as read:
                labels = _labels(answerer, read, top_k)
                tokens = max(tokens, read.tokens)
                untold = [_encoded(answerer, row).rows[0] for row in taught]
                behind = [one.rows[0] for one in read.texts]
                for column, prompt, own_rows in (
                    (NOTHING, None, untold),
                    (TEXT, read.name, behind),
                    (COMPRESSED, name, untold),
                ):
                    for at, value in enumerate(_compared(answerer, own_rows, labels, prompt)):
                        sums[column][at] += value
                total += sum(len(one.ids) for one in labels)
                if not timing:
                    timing = time_columns(answerer, read, untold[0], name, names=(NOTHING, TEXT, COMPRESSED))
    width = 0 if name is None else model.prompt_configs[name].num_virtual_tokens
    sizes = {NOTHING: 0, TEXT: tokens, COMPRESSED: width}
    each = _bytes_a_token(answerer)
    columns = tuple(
        ColumnReport(
            name=column,
            tokens=sizes[column],
            bytes=sizes[column] * each,
            divergence=max(sums[column][0] / max(total, 1), 0.0),  # below it by rounding alone
            token_agreement=sums[column][1] / max(total, 1),
            answer_agreement=_share_equal(answers[column], answers[TEXT]),
            scores=_scores(rows, answers[column]) if scored else {},
            loss=sum(one.total for one in losses[column]) / sum(one.tokens for one in losses[column])
            if scored
            else None,
            timing=timing[column],
        )
        for column in answers
    )
    samples = tuple(
        {"question": row.question, **({"expected": row.output} if scored else {}), **said}
        for row, said in zip(rows, _by_row(answers), strict=True)
    )
    return CompressionReport(columns, len(rows), total, len(text.windows), samples)


def _encoded(answerer: Answerer, row: Example) -> ItemTexts:
    return encoded([answerer.template.segments(row)], answerer.tokenizer, row.source)


def _answers(answerer: Answerer, questions: Sequence[Sequence[int]], prompt: str | None, new_tokens: int) -> list[str]:
    return generate_answers(
        answerer.model,
        answerer.tokenizer,
        questions,
        prompt_names=[prompt] * len(questions),
        batch_size=_BATCH,
        max_new_tokens=new_tokens,
    )


def _collate(answerer: Answerer) -> PackingCollator | PaddingCollator:
    if answerer.model.packs:
        return PackingCollator()
    return PaddingCollator(int(answerer.tokenizer.pad_token_id))


def _labels(answerer: Answerer, read: Reading, top_k: int) -> list[SoftLabels]:
    """What the teacher holds likely along its answers, row by row."""
    rows, found = [one.rows[0] for one in read.texts], []
    for batch in by_tokens([len(ids) for ids, _ in rows], _MOST_TOKENS):
        features = [{"input_ids": rows[at][0], "labels": rows[at][1]} for at in batch]
        labels = soft_labels(answerer.model, _collate(answerer)(features), top_k, prompt_names=[read.name] * len(batch))
        sizes = [sum(label != IGNORE_INDEX for label in rows[at][1]) for at in batch]
        found += [
            SoftLabels(*one)
            for one in zip(torch.split(labels.ids, sizes), torch.split(labels.log_probs, sizes), strict=True)
        ]
    return found


def _compared(
    answerer: Answerer, rows: Sequence[Row], labels: Sequence[SoftLabels], prompt: str | None
) -> tuple[float, float]:
    """The summed divergence of a column from the teacher, and the tokens at which both would write the same."""
    apart, same = 0.0, 0
    for batch in by_tokens([len(ids) for ids, _ in rows], _MOST_TOKENS):
        features = [
            {
                "input_ids": rows[at][0],
                "labels": rows[at][1],
                TEACHER_IDS: labels[at].ids,
                TEACHER_LOG_PROBS: labels[at].log_probs,
            }
            for at in batch
        ]
        inputs = _collate(answerer)(features)
        names = [prompt] * len(batch)
        with torch.no_grad():
            apart += float(divergence(answerer.model, inputs, prompt_names=names, num_items=1))
        teacher = torch.cat([labels[at].ids[:, 0] for at in batch])
        same += int((likeliest_tokens(answerer.model, inputs, prompt_names=names) == teacher).sum())
    return apart, float(same)


def _bytes_a_token(answerer: Answerer) -> int:
    """Of keys and values in all layers; 0 where a model keeps none."""
    if not answerer.model.capability.prefix:
        return 0
    base = answerer.model.base
    return sum(part.nbytes for layer in encode_tokens(base, [0]).layers for part in layer)


def _losses(answerer: Answerer, rows: Sequence[Row], prompt: str | None) -> list[RowLoss]:
    return row_losses(answerer.model, [LearnedRow(ids, labels, prompt) for ids, labels in rows])


def _share_equal(answers: Sequence[str], others: Sequence[str]) -> float:
    return sum(one.strip() == other.strip() for one, other in zip(answers, others, strict=True)) / max(len(answers), 1)


def _scores(rows: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    items = make_items(rows, group=False)
    outcomes = [Outcome(answer=answer.strip()) for answer in answers]
    return {name: METRICS[name].count(items, outcomes, ()).whole for name in SCORES}


def _by_row(answers: dict[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(answers, one, strict=True)) for one in zip(*answers.values(), strict=True)]


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
