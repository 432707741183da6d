"""One record of a task, and the records of a source with the report of their reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from ptune.choices import QA, SEQ2SEQ, TAG
from ptune.data.data_report import DataReport


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExample:
    """A row of a task. Every task has its own fields; those of others are empty."""

    text: str = ""
    """classify, fill: the text, or the first of a pair. seq2seq: the instruction, earlier turns before it."""
    second: str | None = None
    """The second text of a pair; seq2seq: the further material of the instruction. None where there is none."""
    label: str | None = None
    """classify, fill: the class. None where the row has none."""
    words: tuple[str, ...] = ()
    """tag: the words."""
    tags: tuple[str, ...] = ()
    """tag: the tag of each word, empty for a word without one; no tags at all where the row has none."""
    question: str = ""
    """qa: what is asked."""
    context: str = ""
    """qa: the text that the answer is found in."""
    answers: tuple[tuple[str, int], ...] = ()
    """qa: right answers, each once: their text, and the character of `context` at which it begins."""
    impossible: bool = False
    """qa: the data say that the context does not answer the question."""
    target: str = ""
    """seq2seq: the text to write. Empty where the row has none."""
    key: str = ""
    """qa: the row's own `id`, by which SQuAD's predictions go."""
    source: str = ""
    """Where the row stands: `file:line` in text files, `name[row]` in tables."""

    def labelled(self, task: str) -> bool:
        """Whether the row says what is right."""
        if task == TAG:
            return any(self.tags)
        if task == QA:
            return bool(self.answers) or self.impossible
        return bool(self.target) if task == SEQ2SEQ else self.label is not None

    def content(self) -> tuple[object, ...]:
        """Everything but place and key: equal for rows that repeat one another."""
        return (
            *(self.text, self.second, self.label, self.words, self.tags),
            *(self.question, self.context, self.answers, self.impossible, self.target),
        )


class TaskExamples(Sequence[TaskExample]):
    """Rows of a task in memory, in file order. A slice carries the same report.

    Args:
        rows: The rows.
        task: What they are rows of.
        report: Of their reading.
        class_names: The names of the classes in their order, where a table has them.
    """

    def __init__(
        self,
        rows: Iterable[TaskExample],
        task: str,
        report: DataReport | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self._rows = tuple(rows)
        self.task = task
        self.report = report if report is not None else DataReport(rows_read=len(self._rows), kept=len(self._rows))
        self.class_names = tuple(class_names)

    @overload
    def __getitem__(self, index: int) -> TaskExample: ...
    @overload
    def __getitem__(self, index: slice) -> TaskExamples: ...
    def __getitem__(self, index: int | slice) -> TaskExample | TaskExamples:
        if isinstance(index, slice):
            return TaskExamples(self._rows[index], self.task, self.report, self.class_names)
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"TaskExamples({len(self)} rows of {self.task} from {self.report.source!r})"
