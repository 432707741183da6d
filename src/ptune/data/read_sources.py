"""Sources are read one after another; rows that teach nothing and repeated ones are dropped, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ptune.data.data_report import DataReport
from ptune.data.layouts import no_such_column
from ptune.data.opened import ReadOptions
from ptune.data.sources import find_rows
from ptune.data.table_reader import TableReader
from ptune.errors import ConfigError, DataError


class Row(Protocol):
    """What a reader makes of a row."""

    def content(self) -> tuple[object, ...]:
        """What tells it from others."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, kw_only=True)
class Rules(Generic[R]):
    """How rows are made, and which of them are kept."""

    reader: Callable[[DataReport], TableReader[Any, R]]
    """Makes the reader of a source, which fills this report."""
    mapping: Mapping[str, str]
    """Part of a row → column, as the user gave it."""
    limit: int | None
    """Kept rows of each source; None is all."""
    drop_duplicates: bool
    """Drop rows equal to an earlier one in every part."""
    reasons: Mapping[str, str]
    """Counts of `DataReport` that rows are dropped into, and what such rows have or do."""
    hint: str
    """What helps where no row is left."""


def sources_in(source: str | Path | Sequence[str | Path], limit: int | None) -> list[str | Path]:
    """The sources that a caller names, one or several.

    Raises:
        ConfigError: There is none, or `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}.", hint="Leave it out to read everything.")
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources:
        raise ConfigError("no data are named.", hint="Give at least one file, folder or hub id.")
    return sources


def read_sources(
    sources: Iterable[str | Path], options: ReadOptions, rules: Rules[R]
) -> tuple[list[R], DataReport, dict[str, tuple[str, ...]]]:
    """The rows of all sources, never empty, the report of their reading, and the class names that parts' columns have.

    Raises:
        DataError: A source that is missing, empty, or holds a row that cannot be used; the mapping names a column that
            none has.
    """
    rows: list[R] = []
    reports: list[DataReport] = []
    names: dict[str, dict[str, None]] = {}
    seen: set[tuple[object, ...]] | None = set() if rules.drop_duplicates else None
    unmet = rules.mapping
    for source in sources:
        report = DataReport(source=str(source))
        own = replace(options, notes=report.notes, class_names={})
        found = find_rows(source, own)
        report.skipped_files = found.skipped
        reader = rules.reader(report)
        rows += _kept(reader.examples(found.tables), report, seen, rules)
        reports.append(report)
        missing = reader.finish()
        unmet = {part: column for part, column in unmet.items() if part in missing}
        for parser in reader.parsers:
            for part, column in parser.columns.items():
                names.setdefault(part, {}).update(dict.fromkeys(own.class_names.get(column, ())))
    whole = DataReport.of(reports)
    if unmet:
        there = dict.fromkeys([*(column for column, _ in whole.columns), *whole.unused_columns])
        raise no_such_column(whole.source, there, *next(iter(unmet.items())))
    return rows, whole, {part: tuple(ordered) for part, ordered in names.items()}


def _kept(
    given: Iterable[R | str], report: DataReport, seen: set[tuple[object, ...]] | None, rules: Rules[R]
) -> list[R]:
    """The rows that can be learned and did not come before."""
    rows: list[R] = []
    for row in given:
        report.rows_read += 1
        if isinstance(row, str):
            setattr(report, row, getattr(report, row) + 1)
            continue
        if seen is not None:
            content = row.content()
            if content in seen:
                report.duplicates += 1
                continue
            seen.add(content)
        rows.append(row)
        if len(rows) == rules.limit:
            break
    report.kept = len(rows)
    if not rows:
        counts = ((getattr(report, name), what) for name, what in rules.reasons.items())
        why = ", ".join(f"{count:,} {what}" for count, what in counts if count)
        raise DataError(
            f"{report.source}: none of the {report.rows_read:,} rows can be learned: {why}.", hint=rules.hint
        )
    return rows
