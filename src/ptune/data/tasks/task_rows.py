"""Rows of named values become examples of a task, each by the layout of its own columns.

A row of which nothing can be learned is not an example but the name of the count it goes into.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from ptune.choices import CLASSIFY, FILL, QA, TAG
from ptune.data.data_report import DataReport
from ptune.data.layouts import mapped_columns, no_such_column
from ptune.data.table_reader import RowParser, TableReader
from ptune.data.tasks.answer_spans import answers_given, placed
from ptune.data.tasks.label_values import NO_LABEL, label_text, tag_texts
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_layouts import (
    TaskLayout,
    find_task_layout,
    no_task_layout,
    refuse_choices,
)
from ptune.data.values import described
from ptune.errors import DataError, shown

Parsed = TaskExample | str
"""An example, or the count of `DataReport` that a row without one goes into."""
EMPTY, UNLABELLED, HIDDEN = "empty_texts", "unlabelled", "hidden_labels"


@dataclass(kw_only=True)
class _TaskRowParser(RowParser):
    """Turns rows with one set of columns into examples of a task."""

    layout: TaskLayout
    require_labels: bool

    def classified(self, row: Mapping[str, Any], place: str) -> Parsed:
        """A text or a pair with its label."""
        text = self.text(row, "text", place)
        second = self.text(row, "second", place) if "second" in self.columns else None
        if not text.strip() and not (second or "").strip():
            return EMPTY
        label = None
        if "label" in self.columns:
            label = label_text(row[self.columns["label"]], self.name_of("label"), place)
        if label in (None, NO_LABEL) and self.require_labels:
            return HIDDEN if label else UNLABELLED
        return TaskExample(text=text, second=second, label=None if label == NO_LABEL else label, source=place)

    def tagged(self, row: Mapping[str, Any], place: str) -> Parsed:
        """Words with their tags."""
        words = tuple(
            self.texts.of(word, self.columns["words"], f"word {number} of {self.name_of('words')}", place)
            for number, word in enumerate(self._list(row, "words", place), start=1)
        )
        if not any(word.strip() for word in words):
            return EMPTY
        tags: tuple[str, ...] = ()
        if "tags" in self.columns and row[self.columns["tags"]] is not None:
            tags = tag_texts(self._list(row, "tags", place), self.name_of("tags"), place)
            if len(tags) != len(words):
                raise DataError(
                    f"{place}: there are {len(words):,} words and {len(tags):,} tags.",
                    hint="Give every word one tag; null for a word that has none.",
                )
        if not any(tags):
            if self.require_labels:
                return UNLABELLED
            tags = ()
        self.report.untagged_words += sum(not tag for tag in tags)
        return TaskExample(words=words, tags=tags, source=place)

    def asked(self, row: Mapping[str, Any], place: str) -> Parsed:
        """A question, its context, and where the answers stand in it."""
        question, context = (self.text(row, part, place) for part in ("question", "context"))
        if not question.strip() or not context.strip():
            return EMPTY
        start = row[self.columns["start"]] if "start" in self.columns else None
        given = answers_given(row[self.columns["answers"]], start, place) if "answers" in self.columns else None
        impossible = self._impossible(row, place)
        if impossible and given:
            raise DataError(
                f"{place}: {self.name_of('impossible')} is true, and there is an answer ({shown(given[0][0], 40)}).",
                hint="Leave the answers empty, or say that the question can be answered.",
            )
        if given is None and not impossible and self.require_labels:
            return UNLABELLED
        answers = []
        for text, at in given or ():
            answer, moved = placed(text, at, context, place)
            self.report.moved_answers += moved
            answers.append(answer)
        distinct = tuple(dict.fromkeys(answers))
        self.report.further_answers += len(distinct) > 1
        return TaskExample(
            question=question,
            context=context,
            answers=distinct,
            impossible=impossible or given == [],
            key=self.text(row, "key", place) if "key" in self.columns else "",
            source=place,
        )

    def _impossible(self, row: Mapping[str, Any], place: str) -> bool:
        if "impossible" not in self.columns:
            return False
        said = label_text(row[self.columns["impossible"]], self.name_of("impossible"), place)
        return said in ("true", "True", "1")

    def _list(self, row: Mapping[str, Any], part: str, place: str) -> list[Any]:
        """A list of values; a text is one in JSON's spelling, or values divided by blanks."""
        value = row[self.columns[part]]
        if isinstance(value, str):
            if not value.lstrip().startswith("["):
                return value.split()
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = row[self.columns[part]]
        if not isinstance(value, list):
            raise DataError(
                f"{place}: {self.name_of(part)} is {described(value)}, not a list.",
                hint='Write a list of texts (["EU", "rejects"]), a text with blanks between, or a CoNLL file.',
            )
        return value


_PARSERS: dict[str, Callable[[_TaskRowParser, Mapping[str, Any], str], Parsed]] = {
    CLASSIFY: _TaskRowParser.classified,
    FILL: _TaskRowParser.classified,
    TAG: _TaskRowParser.tagged,
    QA: _TaskRowParser.asked,
}


class TaskRowReader(TableReader[_TaskRowParser, TaskExample]):
    """Reads the tables of one source; what it meets stands in the report after `finish`.

    Args:
        task: What the rows are of.
        mapping: Part of a row → column, as the user gave it.
        report: Counts.
        require_labels: False accepts rows without a label.
    """

    def __init__(self, task: str, mapping: Mapping[str, str], report: DataReport, *, require_labels: bool) -> None:
        super().__init__(mapping, report)
        self.task, self.require_labels = task, require_labels

    @override
    def parse(self, parser: _TaskRowParser, row: Mapping[str, Any], place: str) -> Parsed:
        return _PARSERS[self.task](parser, row, place)

    @override
    def new_parser(
        self, row: Mapping[str, Any], place: str, file: str, before: Sequence[_TaskRowParser]
    ) -> _TaskRowParser:
        later = bool(before)
        if not self.mapping:
            refuse_choices(place if later else file, row, self.task)
        found = find_task_layout(tuple(row), self.mapping, self.task, require_labels=self.require_labels)
        if found is None:
            there = mapped_columns(tuple(row), self.mapping)
            for part, column in self.mapping.items():
                if part not in there:
                    raise no_such_column(place if later else file, row, part, column)
            raise no_task_layout(place if later else file, row, self.task)
        layout, columns = found
        return _TaskRowParser(
            layout=layout,
            columns=columns,
            file_columns=tuple(row),
            report=self.report,
            texts=self.texts,
            require_labels=self.require_labels,
        )
