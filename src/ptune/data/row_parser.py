"""Rows of named values become examples, each by the layout of its own columns.

There is a parser for every set of columns that comes up, looked up by the row's keys: files in which all rows are alike
pay for one. Which column was taken as what, and which was not used, is counted in rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
from ptune.data.sources import Table
from ptune.data.squad import answers_in, flat_rows
from ptune.data.values import Texts
from ptune.errors import DataError, listed, shown


@dataclass(kw_only=True)
class _RowParser:
    """Turns rows with one set of columns into examples."""

    layout: Layout
    columns: Mapping[str, str]
    """Part of an example → column."""
    file_columns: tuple[str, ...]
    report: DataReport
    texts: Texts
    require_output: bool
    all_answers: bool
    rows: int = 0

    def parse(self, row: Mapping[str, Any], place: str) -> Example | None:
        """One row as an `Example`; None when nothing is asked.

        Raises:
            DataError: A value that is no text; names `place`, the column and what was found.
        """
        self.rows += 1
        if self.layout.question in CONVERSATIONS:
            system = self._text(row, "system", place) if "system" in self.columns else None
            return self._talk(self.layout.question).read(row[self.columns[self.layout.question]], place, system)
        if self.layout is TEXT:
            return Example(instruction="", output=self._text(row, "text", place), document=True, source=place)
        given = self._text(row, "input", place) if "input" in self.columns else ""
        question = self.columns["instruction"]
        if row[question] is None and not given:
            return None
        earlier = (
            self._talk("history").history(row[self.columns["history"]], place) if "history" in self.columns else []
        )
        asked = self._text(row, "instruction", place)
        answers = self._answers(row, place) if "output" in self.columns else []
        return Example(
            instruction=asked,
            input=given,
            output=answers[0] if answers else "",
            further=tuple(answers[1:]) if self.all_answers else (),
            system=(self._text(row, "system", place) or None) if "system" in self.columns else None,
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
            return [self._text(row, "output", place)]
        texts = [self.texts.of(one, column, f"an answer in {column!r}", place) for one in given]
        return list(dict.fromkeys(filter(None, texts)))

    def _text(self, row: Mapping[str, Any], part: str, place: str) -> str:
        column = self.columns[part]
        value = row[column]
        if value.__class__ is str and value.isascii():
            return value
        return self.texts.of(value, column, f"{column!r}" if column == part else f"{shown(column)} ({part})", place)


class RowReader:
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
        self.mapping = mapping
        self.report = report
        self.require_output = require_output
        self.all_answers = all_answers
        self.texts = Texts(report.converted)
        self._parsers: list[_RowParser] = []

    def examples(self, tables: Iterable[Table]) -> Iterator[Example | None]:
        """Every row of the tables as an example, None for one that asks nothing.

        Raises:
            DataError: A table without rows, or a row that cannot be used.
        """
        for table in tables:
            self.report.files += (table.name,)
            parsers: dict[tuple[str, ...], _RowParser] = {}
            for place, row in flat_rows(table.rows()):
                columns = tuple(row)
                parser = parsers.get(columns)
                if parser is None:
                    parser = self._new_parser(row, place, table.name, list(parsers.values()))
                    parsers[columns] = parser
                yield parser.parse(row, place)
            if not parsers:
                raise DataError(f"{table.name} holds no rows.", hint="Give a file with at least one row.")

    def _new_parser(self, row: Mapping[str, Any], place: str, file: str, before: list[_RowParser]) -> _RowParser:
        """The parser for rows with the columns of this one."""
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
        parser = _RowParser(
            layout=layout,
            columns=columns,
            file_columns=tuple(row),
            report=self.report,
            texts=self.texts,
            require_output=self.require_output,
            all_answers=self.all_answers,
        )
        self._parsers.append(parser)
        return parser

    def _misfit(self, row: Mapping[str, Any], place: str, file: str, before: list[_RowParser]) -> DataError:
        """The error for a row whose columns fit no layout."""
        available = available_fields(tuple(row), self.mapping)
        for parser in before:
            for field in parser.layout.needed(self.require_output):
                if field not in available:
                    column = self.mapping.get(field, field)
                    name = f"{field!r}" if column == field else f"{shown(column)} ({field})"
                    return DataError(f"{place}: the row has no {name}.", hint=f"Its columns: {listed(row) or 'none'}.")
        for field, column in self.mapping.items():
            if field not in available:
                return no_such_column(file, row, field, column)
        return unknown_layout(file, row)

    def finish(self) -> dict[str, str]:
        """Put columns and layouts into the report.

        Returns:
            What of the mapping names a column that no row had.
        """
        for parser in self._parsers:
            self.report.layouts[parser.layout.name] += parser.rows
            for part, column in parser.columns.items():
                self.report.columns[column, part] += parser.rows
            for column in parser.file_columns:
                if column not in parser.columns.values():
                    self.report.unused_columns[column] += parser.rows
        there = tuple(dict.fromkeys(column for parser in self._parsers for column in parser.file_columns))
        available = available_fields(there, self.mapping)
        return {field: column for field, column in self.mapping.items() if field not in available}
