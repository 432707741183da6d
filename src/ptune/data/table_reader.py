"""The tables of one source become rows, each by the parser for its own columns.

There is a parser for every set of columns that comes up, looked up by the row's keys: files in which all rows are alike
pay for one. Which column was taken as what, and which was not used, is counted in rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ptune.data.data_report import DataReport
from ptune.data.layouts import mapped_columns
from ptune.data.sources import Table
from ptune.data.squad import flat_rows
from ptune.data.values import Texts
from ptune.errors import DataError, shown


def column_name(column: str, part: str) -> str:
    """A column and the part of a row that it holds, for messages."""
    return repr(column) if column == part else f"{shown(column)} ({part})"


class NamedLayout(Protocol):
    """A kind of columns."""

    @property
    def name(self) -> str:
        """For the report."""


@dataclass(kw_only=True)
class RowParser:
    """Turns rows with one set of columns into what a `TableReader` gives."""

    layout: NamedLayout
    columns: Mapping[str, str]
    """Part of a row → column."""
    file_columns: tuple[str, ...]
    report: DataReport
    texts: Texts
    rows: int = 0

    def text(self, row: Mapping[str, Any], part: str, place: str) -> str:
        """A part of a row.

        Raises:
            DataError: A value that is no text; names `place`, the column and what was found.
        """
        column = self.columns[part]
        value = row[column]
        if value.__class__ is str and value.isascii():
            return value
        return self.texts.of(value, column, self.name_of(part), place)

    def name_of(self, part: str) -> str:
        """The column of a part, for messages."""
        return column_name(self.columns[part], part)


P = TypeVar("P", bound=RowParser)
R = TypeVar("R")


class TableReader(ABC, Generic[P, R]):
    """Reads the tables of one source; what it meets stands in the report after `finish`.

    Args:
        mapping: Part of a row → column, as the user gave it.
        report: Counts.
    """

    def __init__(self, mapping: Mapping[str, str], report: DataReport) -> None:
        self.mapping, self.report = mapping, report
        self.texts = Texts(report.converted)
        self.parsers: list[P] = []

    @abstractmethod
    def new_parser(self, row: Mapping[str, Any], place: str, file: str, before: Sequence[P]) -> P:
        """The parser for rows with the columns of this one, behind those of the same table.

        Raises:
            DataError: The columns cannot be used.
        """

    @abstractmethod
    def parse(self, parser: P, row: Mapping[str, Any], place: str) -> R | str:
        """A row; or, where it is dropped, the count of `DataReport` that it goes into.

        Raises:
            DataError: The row cannot be used.
        """

    def examples(self, tables: Iterable[Table]) -> Iterator[R | str]:
        """Every row of the tables, in order, as `parse` gives it.

        Raises:
            DataError: A table without rows, or a row that cannot be used.
        """
        for table in tables:
            self.report.files += (table.name,)
            parsers: dict[tuple[str, ...], P] = {}
            for place, row in flat_rows(table.rows()):
                columns = tuple(row)
                parser = parsers.get(columns)
                if parser is None:
                    parser = parsers[columns] = self.new_parser(row, place, table.name, list(parsers.values()))
                    self.parsers.append(parser)
                parser.rows += 1
                yield self.parse(parser, row, place)
            if not parsers:
                raise DataError(f"{table.name} holds no rows.", hint="Give a file with at least one row.")

    def finish(self) -> dict[str, str]:
        """Put columns and layouts into the report.

        Returns:
            What of the mapping names a column that no row had.
        """
        for parser in self.parsers:
            self.report.layouts[parser.layout.name] += parser.rows
            for part, column in parser.columns.items():
                self.report.columns[column, part] += parser.rows
            for column in parser.file_columns:
                if column not in parser.columns.values():
                    self.report.unused_columns[column] += parser.rows
        there = tuple(dict.fromkeys(column for parser in self.parsers for column in parser.file_columns))
        available = mapped_columns(there, self.mapping)
        return {part: column for part, column in self.mapping.items() if part not in available}
