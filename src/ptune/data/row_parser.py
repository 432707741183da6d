"""Rows of named values become examples, each by the layout of its own columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from ptune.data.conversations import ConversationReader, marks
from ptune.data.data_report import DataReport
from ptune.data.example import Example
from ptune.data.layouts import (
    CONVERSATIONS,
    TEXT,
    Layout,
    available_fields,
    find_layout,
    no_such_column,
    unknown_layout,
)
from ptune.data.squad import answers_in
from ptune.data.table_reader import RowParser, TableReader, column_name
from ptune.errors import DataError, listed

EMPTY_QUESTION, EMPTY_ANSWER = "empty_questions", "empty_answers"


@dataclass(kw_only=True)
class _ExampleParser(RowParser):
    """Turns rows with one set of columns into examples."""

    layout: Layout
    require_output: bool
    all_answers: bool

    def parse(self, row: Mapping[str, Any], place: str) -> Example | None:
        """One row as an `Example`; None when nothing is asked.

        Raises:
            DataError: A value that is no text; names `place`, the column and what was found.
        """
        if self.layout.question in CONVERSATIONS:
            system = self.text(row, "system", place) if "system" in self.columns else None
            return self._talk(self.layout.question).read(row[self.columns[self.layout.question]], place, system)
        if self.layout is TEXT:
            return Example(instruction="", output=self.text(row, "text", place), document=True, source=place)
        given = self.text(row, "input", place) if "input" in self.columns else ""
        question = self.columns["instruction"]
        if row[question] is None and not given:
            return None
        earlier = (
            self._talk("history").history(row[self.columns["history"]], place) if "history" in self.columns else []
        )
        asked = self.text(row, "instruction", place)
        answers = self._answers(row, place) if "output" in self.columns else []
        return Example(
            instruction=asked,
            input=given,
            output=answers[0] if answers else "",
            further=tuple(answers[1:]) if self.all_answers else (),
            system=(self.text(row, "system", place) or None) if "system" in self.columns else None,
            history=tuple((turn.role, turn.content) for turn in earlier),
            source=place,
            **(marks(earlier, place) if earlier else {}),
        )

    def _talk(self, part: str) -> ConversationReader:
        return ConversationReader(self.columns[part], self.texts, self.report, self.require_output)

    def _answers(self, row: Mapping[str, Any], place: str) -> list[str]:
        """The answer, or all of a list of them where that may be one."""
        column = self.columns["output"]
        if self.layout.answer == "answers":
            given = answers_in(row[column])
            if not self.all_answers:
                self.report.further_answers += len(given) > 1
                given = given[:1]
        elif self.all_answers and isinstance(row[column], list):
            given = [one for one in row[column] if one is not None]
        else:
            return [self.text(row, "output", place)]
        texts = [self.texts.of(one, column, f"an answer in {column!r}", place) for one in given]
        return list(dict.fromkeys(filter(None, texts)))


class RowReader(TableReader[_ExampleParser, Example]):
    """Reads the tables of one source; what it meets stands in the report after `finish`.

    Args:
        mapping: Field → column, as the user gave it.
        report: Counts.
        require_output: False accepts rows without an answer.
        all_answers: Take every answer of a row that has a list of them.
    """

    def __init__(
        self, mapping: Mapping[str, str], report: DataReport, *, require_output: bool, all_answers: bool
    ) -> None:
        super().__init__(mapping, report)
        self.require_output, self.all_answers = require_output, all_answers

    @override
    def parse(self, parser: _ExampleParser, row: Mapping[str, Any], place: str) -> Example | str:
        example = parser.parse(row, place)
        if example is None:
            return EMPTY_QUESTION
        return example if example.answered or not self.require_output else EMPTY_ANSWER

    @override
    def new_parser(
        self, row: Mapping[str, Any], place: str, file: str, before: Sequence[_ExampleParser]
    ) -> _ExampleParser:
        found = find_layout(tuple(row), self.mapping, require_output=self.require_output)
        if found is None:
            raise self._misfit(row, place, file, before)
        layout, columns = found
        if layout is TEXT and any(parser.layout is not TEXT for parser in before):
            raise self._misfit(row, place, file, before)
        if layout is not TEXT and any(parser.layout is TEXT for parser in before):
            raise DataError(
                f"{place}: the row has an answer ({layout.answer}), and the rows before it are texts without one.",
                hint="Put whole texts and answers into files of their own, or say with columns which column is what.",
            )
        return _ExampleParser(
            layout=layout,
            columns=columns,
            file_columns=tuple(row),
            report=self.report,
            texts=self.texts,
            require_output=self.require_output,
            all_answers=self.all_answers,
        )

    def _misfit(self, row: Mapping[str, Any], place: str, file: str, before: Sequence[_ExampleParser]) -> DataError:
        """The error for a row whose columns fit no layout."""
        available = available_fields(tuple(row), self.mapping)
        for parser in before:
            for field in parser.layout.needed(self.require_output):
                if field not in available:
                    name = column_name(self.mapping.get(field, field), field)
                    return DataError(f"{place}: the row has no {name}.", hint=f"Its columns: {listed(row) or 'none'}.")
        for field, column in self.mapping.items():
            if field not in available:
                return no_such_column(file, row, field, column)
        return unknown_layout(file, row)
