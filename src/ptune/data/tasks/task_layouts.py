"""Column layouts of tasks: which columns of a row make a `TaskExample`.

As in `ptune.data.layouts`: a layout is recognised by the names of a row's own columns, without regard to case and to
blanks around them; the first that is there is taken, and a column mapping gives any column the name of a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.data.layouts import check_columns, mapped_columns, own_columns
from ptune.data.tasks.task_kinds import check_task
from ptune.data.values import kind
from ptune.errors import ConfigError, DataError, listed, shown, unknown


@dataclass(frozen=True)
class TaskLayout:
    """Columns that together make a row of a task."""

    name: str
    parts: Mapping[str, tuple[str, ...]]
    """Part of a row → the columns that may hold it, the likeliest first."""
    answer: str
    """The part that is learned."""
    optional: tuple[str, ...] = ()

    def needed(self, require_labels: bool) -> list[str]:
        """The parts that a row must have."""
        given = [part for part in self.parts if part != self.answer and part not in self.optional]
        return [*given, self.answer] if require_labels else given


_LABELS = (
    *("label", "labels", "gold_label", "category", "class", "intent", "sentiment", "emotion", "topic", "coarse_label"),
    *("label_text", "relation", "stance", "rating", "stars", "target", "output", "answer", "tag"),
)
PAIRS = (
    *(("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b")),
    *(("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"), ("passage", "question")),
    *(("text1", "text2"), ("text_1", "text_2"), ("text_a", "text_b"), ("text", "text_pair"), ("text", "text2")),
    *(("query", "passage"), ("query", "document"), ("claim", "evidence"), ("text", "second")),
)
"""Columns of the two texts of a pair: STS-like, NLI, Quora, QNLI, BoolQ, and others."""
_SINGLE = (
    *("text", "sentence", "content", "review", "query", "question", "utterance", "comment", "tweet", "message"),
    *("document", "review_body", "body", "input", "instruction", "headline", "title"),
)


def _classification() -> tuple[TaskLayout, ...]:
    pairs = [TaskLayout(f"{a}/{b}", {"text": (a,), "second": (b,), "label": _LABELS}, "label") for a, b in PAIRS]
    seconds = tuple(dict.fromkeys(b for _, b in PAIRS))
    return (
        *pairs,
        TaskLayout("pair", {"text": _SINGLE, "second": seconds, "label": _LABELS}, "label"),
        TaskLayout("text", {"text": _SINGLE, "label": _LABELS}, "label"),
    )


_WORDS = ("tokens", "words", "word", "text", "sentence")
_TAGS = (
    *("tags", "ner_tags", "labels", "ner", "bio", "bio_tags", "slots", "entities", "upos", "pos_tags", "pos"),
    *("chunk_tags", "xpos", "label"),
)
_SPAN = {
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph", "document"),
    "answers": ("answers", "answer", "answer_text"),
    "start": ("answer_start", "answer_starts", "start"),
    "impossible": ("is_impossible",),
    "key": ("id",),
}
TASK_LAYOUTS: dict[str, tuple[TaskLayout, ...]] = {
    CLASSIFY: _classification(),
    FILL: _classification(),
    TAG: (TaskLayout("words/tags", {"words": _WORDS, "tags": _TAGS}, "tags"),),
    QA: (TaskLayout("SQuAD", _SPAN, "answers", ("start", "impossible", "key")),),
}
"""Those of each task; seq2seq has the layouts of `load_examples`."""
_CHOICES = ("choice1", "choice2", "choices", "endings", "ending0", "ending1", "options", "sol1", "sol2")
"""Columns of multiple choice."""


def check_task_columns(columns: Mapping[str, str], task: str) -> dict[str, str]:
    """The column mapping of a task, checked.

    Args:
        columns: Part of a row → column. classify and fill have `text`, `second` and `label`; tag `words` and `tags`;
            qa `question`, `context`, `answers`, `start`, `impossible` and `key`; seq2seq the fields of
            `ptune.data.load_examples`.
        task: See `ptune.data.tasks.task_kinds`.

    Raises:
        ConfigError: A part that the task does not have, or that names no column.
    """
    check_task(task)
    if task == SEQ2SEQ:
        return check_columns(columns)
    known = dict.fromkeys(part for layout in TASK_LAYOUTS[task] for part in layout.parts)
    for part, column in columns.items():
        if part not in known:
            raise unknown(f"field in columns (task {task})", str(part), known)
        if not isinstance(column, str) or not column:
            raise ConfigError(
                f"columns: {part} must name a column, not {shown(column)}.", hint=f"Write {part}=<column>."
            )
    return dict(columns)


def find_task_layout(
    found: Sequence[str], mapping: Mapping[str, str], task: str, *, require_labels: bool
) -> tuple[TaskLayout, dict[str, str]] | None:
    """The layout of a row with these columns, and the column of each of its parts; None when they fit none.

    A row that has none of the mapped columns is read by its own names: it may be of another source than they are.
    """
    mapped = mapped_columns(found, mapping)
    for needs_labels in (True,) if require_labels else (True, False):
        for layout in TASK_LAYOUTS[task]:
            # Who names the text of a row means that text alone, whatever else there is.
            alone = "text" in mapped and "second" not in mapped
            if not set(mapped) <= set(layout.parts) or ("second" in layout.parts and alone):
                continue
            columns = _columns(layout, found, mapped)
            if set(layout.needed(needs_labels)) <= set(columns):
                return layout, columns
    return None


def _columns(layout: TaskLayout, found: Sequence[str], mapped: Mapping[str, str]) -> dict[str, str]:
    """The column of each part of a layout that is there; none is taken for two parts."""
    loose = own_columns(found)
    columns: dict[str, str] = {}
    taken = set(mapped.values())
    for part, names in layout.parts.items():
        column = mapped.get(part) or next(
            (loose[one] for one in names if one in loose and loose[one] not in taken), None
        )
        if column is not None:
            columns[part] = column
            taken.add(column)
    return columns


def no_task_layout(file: str, row: Mapping[str, Any], task: str) -> DataError:
    """The error for a row whose columns fit no layout of the task: what they hold, and the way out."""
    there = listed(f"{name} ({kind(value)})" for name, value in row.items()) or "none"
    needed = TASK_LAYOUTS[task][-1].needed(require_labels=True)
    flags = " ".join(f"{part}=<column>" for part in needed)
    return DataError(
        f"{file}: its columns fit no layout of the task {task}: {there}.",
        hint=f"Say which column is which with --columns {flags}.",
    )


def refuse_choices(file: str, row: Mapping[str, Any], task: str) -> None:
    """Raise `DataError` for rows of multiple choice, of which a text and a label alone would teach nonsense."""
    choices = [name for name in row if name.strip().lower() in _CHOICES]
    if choices and task in (CLASSIFY, FILL):
        raise DataError(
            f"{file}: the columns {listed(choices)} are those of multiple choice, which the task {task} does not know.",
            hint="Write a row for every choice, labelled right or wrong; or say with columns which column is what.",
        )
