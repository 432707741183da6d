"""What became of the rows of a data source, counted while they are read. What is not trained on is always said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ptune.errors import listed, printable

_FACTS = (
    ("empty_answers", "dropped {:,} rows without an answer"),
    ("empty_questions", "dropped {:,} rows without a question"),
    ("empty_texts", "dropped {:,} rows without any text"),
    ("unlabelled", "dropped {:,} rows without a label"),
    ("hidden_labels", "dropped {:,} rows with the label -1, which stands for none (a class needs another name)"),
    ("duplicates", "dropped {:,} rows that repeat an earlier one"),
    ("further_answers", "{:,} rows have several answers: the first of each is learned"),
    ("moved_answers", "{:,} answers do not stand where answer_start says, and were found elsewhere in their context"),
    ("untagged_words", "{:,} words have no tag, and are not learned"),
    ("cut_conversations", "left out what stands after the last answer of {:,} conversations"),
)
"""Counts, and the line that tells of each."""
_SUMS = ("rows_read", "kept", *(name for name, _ in _FACTS))


@dataclass(kw_only=True)
class DataReport:
    """What was read and what was left out, in rows."""

    source: str = ""
    """What the caller named."""
    files: tuple[str, ...] = ()
    """The files or tables read, in order."""
    skipped_files: tuple[str, ...] = ()
    """Files of the folder, or lists of the file, that belong to another split."""
    notes: list[str] = field(default_factory=list)
    """How a file was read, where that was not as its name says."""
    layouts: Counter[str] = field(default_factory=Counter)
    """Rows of each kind of columns, e.g. `Alpaca`."""
    columns: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows of each column that is used, and the part of an example that it becomes."""
    unused_columns: Counter[str] = field(default_factory=Counter)
    """Rows of each column that is not used; `messages.id` is a key of a message."""
    converted: Counter[str] = field(default_factory=Counter)
    """Values of each column that were numbers, dates, true or false, and were taken as text."""
    rows_read: int = 0
    """Rows looked at; fewer than the file holds when a limit was reached."""
    kept: int = 0
    """Rows that became examples."""
    empty_answers: int = 0
    """Rows dropped because their answer is empty, blank or null."""
    empty_questions: int = 0
    """Rows dropped because nothing is asked: a null question, or a conversation without a user's message."""
    duplicates: int = 0
    """Rows dropped because the same question with the same answer came before."""
    further_answers: int = 0
    """Rows with several answers, of which the first is taken."""
    empty_texts: int = 0
    """Rows of a task dropped because there is no text to classify, to tag, to ask or to ask about."""
    unlabelled: int = 0
    """Rows of a task dropped because nothing says what is right."""
    hidden_labels: int = 0
    """Rows of a task dropped because their label is -1."""
    moved_answers: int = 0
    """Answers that do not stand where the data say, and were found elsewhere."""
    untagged_words: int = 0
    """Words of kept rows without a tag."""
    cut_conversations: int = 0
    """Conversations that go on after their last answer, and were cut there."""
    weight: float | None = None
    """How often each row stands in an epoch, where that was asked for."""
    rows_an_epoch: int | None = None
    """Rows of an epoch that come from here, where a weight was asked for."""
    parts: tuple[DataReport, ...] = ()
    """The sources, one by one, where several were named; the counts are their sums then."""

    @property
    def layout(self) -> str:
        """The kinds of columns found."""
        return ", ".join(self.layouts)

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        if self.parts:
            own = [f"together {self.kept:,} rows of {len(self.parts)} sources"]
            if self.rows_an_epoch is not None:
                own.append(f"an epoch has {self.rows_an_epoch:,} rows")
            return [line for part in self.parts for line in part.lines()] + own
        return [printable(line) for line in self._own_lines()]

    def _own_lines(self) -> Iterator[str]:
        layout = f" ({self.layout} columns)" if self.layout else ""
        yield f"read {self.rows_read:,} rows from {self.source}{layout}, kept {self.kept:,}"
        if self.weight is not None:
            yield f"weight {self.weight:g}: {self.rows_an_epoch:,} of its rows an epoch"
        yield from self.notes
        if any(column != part or rows != self.rows_read for (column, part), rows in self.columns.items()):
            yield f"columns used: {listed(map(self._use, self.columns))}"
        if self.unused_columns:
            unused = (f"{column} ({rows:,} rows)" for column, rows in self.unused_columns.items())
            yield f"columns not used: {listed(unused)}"
        if self.converted:
            values = (f"{times:,} of {column}" for column, times in self.converted.items())
            yield f"values that are no text, taken as text: {listed(values)}"
        for name, line in _FACTS:
            if times := getattr(self, name):
                yield line.format(times).replace("an answer", "any text" if self.layout == "text" else "an answer")
        if self.skipped_files:
            yield f"of other splits, not read: {listed(self.skipped_files)}"

    def _use(self, use: tuple[str, str]) -> str:
        column, part = use
        rows = self.columns[use]
        renamed = f" as {part}" if column != part else ""
        return f"{column}{renamed}" + (f" ({rows:,} of {self.rows_read:,} rows)" if rows != self.rows_read else "")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {
            **{name: dict(value) if isinstance(value, Counter) else value for name, value in plain.items()},
            "layout": self.layout,
            "columns": [{"column": column, "as": part, "rows": rows} for (column, part), rows in self.columns.items()],
            "parts": [part.to_dict() for part in self.parts],
        }

    @classmethod
    def of(cls, parts: Sequence[DataReport]) -> DataReport:
        """One report of several sources; that of a single one is its own."""
        if len(parts) == 1:
            return parts[0]
        whole = cls(
            source=", ".join(part.source for part in parts),
            files=tuple(name for part in parts for name in part.files),
            skipped_files=tuple(name for part in parts for name in part.skipped_files),
            parts=tuple(parts),
            **{name: sum(getattr(part, name) for part in parts) for name in _SUMS},
        )
        for part in parts:
            for name in ("layouts", "columns", "unused_columns", "converted"):
                getattr(whole, name).update(getattr(part, name))
        return whole
