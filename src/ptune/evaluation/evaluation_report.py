"""`report.md` and `report.html` of an evaluation, and its tables on a terminal."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from ptune.choices import QA
from ptune.errors import printable
from ptune.evaluation.bootstrap import Score
from ptune.evaluation.columns import ALL_TITLES, ALONE, COMMONEST, CONSTANT_TITLES, NO_ANSWER, PROMPT, TITLES
from ptune.evaluation.confusion_picture import MOST_DRAWN, draw_confusion
from ptune.evaluation.evaluation_result import COMPARED, LM, Breakdown, Evaluation, MetricScores
from ptune.evaluation.metrics import LOWER_IS_BETTER, NATS, NUMBER, POINTS, SHARE
from ptune.evaluation.page import Picture, Sample, TextTable, html_page, markdown, show_tables
from ptune.evaluation.picture import DARK, LIGHT, save_figure
from ptune.evaluation.score_picture import draw_scores, drawn
from ptune.saved.files import write_atomic

MARKDOWN, PAGE, PLOT, CONFUSION = "report.md", "report.html", "scores.png", "confusion.png"
SAMPLES = 5
_LONGEST = 600
_DIGITS = {NATS: 3, NUMBER: 2, POINTS: 1}
_LARGE = 10_000
_NONE = "–"


def write_reports(evaluation: Evaluation, folder: Path) -> None:
    """Write both reports and the picture.

    Raises:
        OutputError: They cannot be written.
    """
    if drawn(evaluation.metrics):
        save_figure(draw_scores(evaluation.metrics, LIGHT), folder / PLOT)
    if (found := _confusion(evaluation)) is not None:
        save_figure(draw_confusion(found, LIGHT), folder / CONFUSION)
    write_atomic(folder / MARKDOWN, markdown_report(evaluation).encode("utf-8", "replace"))
    write_atomic(folder / PAGE, html_report(evaluation).encode("utf-8", "replace"))


def tables(evaluation: Evaluation) -> list[TextTable]:
    """All tables of an evaluation."""
    found = [scores_table(evaluation), costs_table(evaluation)]
    if evaluation.by_label is not None:
        found.insert(1, labels_table(evaluation.by_label))
    return found if evaluation.unrelated is None else [*found, unrelated_table(evaluation)]


def _confusion(evaluation: Evaluation) -> Breakdown | None:
    """What a picture of which label was taken for which shows; None where there is nothing to show, or too much."""
    found = evaluation.by_label
    return found if found is not None and 2 <= len(found.labels) <= MOST_DRAWN else None


def labels_table(found: Breakdown) -> TextTable:
    """Precision, recall and F1 of each label, with the prompt."""
    rows = [
        (_cut(label), *(_NONE if math.isnan(one) else f"{100 * one:.1f}%" for one in scores), f"{count:,.0f}")
        for label, scores, count in zip(found.labels, found.scores().tolist(), found.support.tolist(), strict=True)
    ]
    note = "Precision: of those given the label, the share that has it; recall: of those that have it, the share found."
    return TextTable(f"Labels, {TITLES[PROMPT]}", ("", "precision", "recall", "F1", "there"), tuple(rows), note)


def scores_table(evaluation: Evaluation) -> TextTable:
    """Every metric in every column, and the differences."""
    others = [other for _, other in COMPARED if other in evaluation.columns]
    columns = ("", *(ALL_TITLES[name] for name in evaluation.columns), *(f"prompt − {_SHORT[one]}" for one in others))
    rows = [
        (
            one.metric.title,
            *(shown(one.scores[name], one.metric.unit) for name in evaluation.columns),
            *(shown(one.differences[name], one.metric.unit, signed=True) for name in others),
        )
        for one in evaluation.metrics
    ]
    lower = [one.metric.title.partition(" (")[0] for one in evaluation.metrics if one.metric.name in LOWER_IS_BETTER]
    note = "In brackets: 95% intervals over resamples of the rows."
    note += f" Lower is better for {' and '.join(lower)}." if lower else ""
    what = "questions" if evaluation.task in (LM, QA) else "rows"
    return TextTable(f"{len(evaluation.items):,} {what}", columns, tuple(rows), note)


_SHORT = {ALONE: "alone", "written": "words", PROMPT: "prompt", COMMONEST: "commonest", NO_ANSWER: "none"}


def costs_table(evaluation: Evaluation) -> TextTable:
    """What each column costs."""
    names = [name for name in evaluation.columns if name not in CONSTANT_TITLES]
    costs = [evaluation.costs[name] for name in names]
    answered = any(one.answer is not None for one in evaluation.outcomes[names[0]])
    what = "an answer" if answered else "a question" if evaluation.task == LM else "a row"
    digits = 2 if evaluation.task == LM else 4
    rows = (
        ("tokens of prompt", *(f"{one.prompt_tokens:,}" for one in costs)),
        (f"seconds {what}", *(f"{one.seconds_a_question:.{digits}f}" for one in costs)),
    )
    return TextTable("Cost", ("", *(TITLES[name] for name in names)), rows)


def scores_and_costs_table(evaluation: Evaluation) -> TextTable:
    """What each column reaches and what it costs, without the differences: three columns go on any terminal."""
    scores, costs = scores_table(evaluation), costs_table(evaluation)
    shown_rows = (row[: len(costs.columns)] for row in scores.rows)
    return TextTable(scores.title, costs.columns, (*shown_rows, *costs.rows), scores.note)


def unrelated_table(evaluation: Evaluation) -> TextTable:
    """What the prompt changes that it should not, beside what it gains."""
    found = evaluation.unrelated
    assert found is not None
    gains = [one for one in evaluation.metrics if one.metric.name == "loss"]
    rows = [_loss_row("loss on the data: the gain", one) for one in gains]
    rows.append(_loss_row("loss on unrelated rows", found.loss))
    rows.append(("the same token as the frozen model", _NONE, shown(found.agreement, SHARE), _NONE))
    note = (
        "Nats a token, over the answers; the same token: where greedy decoding would write alike with and without it."
    )
    return TextTable(
        f"{found.rows:,} unrelated rows", ("", TITLES[ALONE], TITLES[PROMPT], "prompt − alone"), tuple(rows), note
    )


def _loss_row(title: str, one: MetricScores) -> tuple[str, ...]:
    found = (shown(one.scores[name], NATS) for name in (ALONE, PROMPT))
    return (title, *found, shown(one.differences[ALONE], NATS, signed=True))


def shown(score: Score, unit: str, *, signed: bool = False) -> str:
    """`88.0% [81.0, 94.0]`; a difference of shares is in percentage points, without a sign of its own."""
    if math.isnan(score.value):
        return _NONE
    scale, digits = (100, 1) if unit == SHARE else (1, _DIGITS[unit])
    plus = "+" if signed else ""
    value, low, high = (_number(one * scale, digits, plus) for one in (score.value, score.low, score.high))
    return f"{value}{'%' if unit == SHARE and not signed else ''} [{low}, {high}]"


def _number(value: float, digits: int, plus: str) -> str:
    return f"{value:{plus}.1e}" if abs(value) >= _LARGE else f"{value:{plus},.{digits}f}"


def samples(evaluation: Evaluation, count: int = SAMPLES) -> list[Sample]:
    """The first questions with what each column answered or chose; none where there is nothing to read."""
    first = next(iter(evaluation.outcomes.values()))[0]
    if first.answer is None and first.labels is None and first.tags is None:
        return []
    found = []
    for number, item in enumerate(evaluation.items[:count]):
        answers = [("expected", " | ".join(item.references[:3]) or "(nothing)")]
        for name in evaluation.columns:
            one = evaluation.outcomes[name][number]
            said = one.answer if one.tags is None else " ".join(tag or _NONE for tag in one.tags)
            if said is None and one.labels is not None:
                said = evaluation.labels[one.labels.index(max(one.labels))]
            answers.append((ALL_TITLES[name], said or "(nothing)"))
        found.append(Sample(_cut(item.question), tuple((who, _cut(what)) for who, what in answers)))
    return found


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def markdown_report(evaluation: Evaluation) -> str:
    """The report as Markdown, with the picture saved beside it."""
    lines = [f"# {_inline(evaluation.title)}", ""]
    for table in tables(evaluation):
        lines += [f"## {table.title}", "", *markdown(table), ""]
        lines += [table.note, ""] if table.note else []
    if drawn(evaluation.metrics):
        lines += [f"![Scores of each column]({PLOT})", ""]
    if _confusion(evaluation) is not None:
        lines += [f"![Which label was taken for which]({CONFUSION})", ""]
    if shown_rows := samples(evaluation):
        lines += ["## Examples", ""]
        for sample in shown_rows:
            lines += [f"**{_inline(sample.text)}**", ""]
            lines += [f"- {who}: `{_inline(what)}`" for who, what in sample.answers]
            lines.append("")
    return "\n".join([*lines, "## How it was measured", "", *(f"- {_inline(fact)}" for fact in evaluation.facts), ""])


def _inline(text: str) -> str:
    return printable(" ".join(text.replace("`", "'").split()))


def html_report(evaluation: Evaluation) -> str:
    """The report as one page."""
    pictures = []
    if drawn(evaluation.metrics):
        light, dark = (draw_scores(evaluation.metrics, theme) for theme in (LIGHT, DARK))
        pictures.append(Picture("Scores", light, dark, "Scores of each column"))
    if (found := _confusion(evaluation)) is not None:
        light, dark = (draw_confusion(found, theme) for theme in (LIGHT, DARK))
        pictures.append(Picture("Labels", light, dark, "Which label was taken for which"))
    return html_page(
        title=evaluation.title,
        tables=tables(evaluation),
        pictures=pictures,
        samples=samples(evaluation),
        facts=evaluation.facts,
    )


def show_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the tables."""
    show_tables(tables(evaluation), console)
