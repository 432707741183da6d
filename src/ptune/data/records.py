"""`load_examples`: files, folders or hub ids become a sequence of `Example`, with a report of what was left out.

Reading is split by concern: `sources` finds the files, `json_files`, `csv_files`, `excel` and `tables` read rows with
their places, `layouts` and `row_parser` turn a row into an `Example`. Here rows without an answer and repeated rows are
dropped, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

from ptune.data.data_report import DataReport
from ptune.data.example import Example
from ptune.data.layouts import check_columns, no_such_column
from ptune.data.opened import ReadOptions
from ptune.data.row_parser import RowReader
from ptune.data.sources import find_rows
from ptune.errors import ConfigError, DataError

__all__ = ["Example", "Examples", "load_examples"]


class Examples(Sequence[Example]):
    """Examples in memory, in file order, with the report of their reading. A slice carries the same report."""

    def __init__(self, rows: Iterable[Example], report: DataReport | None = None) -> None:
        self._rows = tuple(rows)
        self.report = report if report is not None else DataReport(rows_read=len(self._rows), kept=len(self._rows))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        return Examples(self._rows[index], self.report) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Examples({len(self)} rows from {self.report.source!r})"


def load_examples(
    source: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    drop_duplicates: bool = True,
    require_output: bool = True,
    all_answers: bool = False,
    encoding: str | None = None,
    sheet: str | None = None,
) -> Examples:
    """Read examples from files, folders or the hub. docs/data.md has every format and layout.

    Args:
        source: A `.json` (a list, or an object with the list under `data` or a split's name), `.jsonl`, `.csv`, `.tsv`,
            `.txt`, `.xlsx`, `.parquet` or `.arrow` file, text files also compressed (`.gz`, `.bz2`, `.xz`, `.zst`); a
            folder written by `Dataset.save_to_disk`; a folder of such files, read in name order; or a hub id,
            `owner/name` or `owner/name:configuration`. Or several of them, read one after another.
        columns: Which column holds which field, e.g. `{"instruction": "mr", "output": "ref"}`. Columns that already
            have their field's name need no entry.
        split: The split to take from a `DatasetDict`, the hub, an object of lists, or a folder whose file names say
            `train`, `dev`, `test`…
        limit: Stop after this many kept examples of each source.
        drop_duplicates: Drop rows equal to an earlier one in every field. Several answers to one question all stay.
        require_output: False accepts rows and files without answers (to generate from).
        all_answers: Of rows with a list of right answers take all, the first as `output` and the others as `further`;
            a list is refused otherwise, but in SQuAD's layout, of which the first is taken.
        encoding: Of text files, such as `gb18030`; UTF-8 when None.
        sheet: Of Excel files; the first one when None.

    Returns:
        The examples, never empty, with `.report`.

    Raises:
        DataError: A source that is missing, empty, or holds a row that cannot be used; names the file and the line or
            row.
        ConfigError: `columns` names an unknown field, no source is named, or `limit` is below 1.
    """
    mapping = check_columns(columns or {})
    sources = sources_in(source, limit)
    rows: list[Example] = []
    reports: list[DataReport] = []
    seen: set[tuple[object, ...]] | None = set() if drop_duplicates else None
    unmet = mapping
    for one in sources:
        report = DataReport(source=str(one))
        found = find_rows(one, ReadOptions(split=split, encoding=encoding, sheet=sheet, notes=report.notes))
        report.skipped_files = found.skipped
        reader = RowReader(mapping, report, require_output=require_output, all_answers=all_answers)
        rows += _kept(reader.examples(found.tables), report, seen, limit=limit, require_output=require_output)
        reports.append(report)
        missing = reader.finish()
        unmet = {field: column for field, column in unmet.items() if field in missing}
    whole = DataReport.of(reports)
    if unmet:
        there = dict.fromkeys([*(column for column, _ in whole.columns), *whole.unused_columns])
        raise no_such_column(whole.source, there, *next(iter(unmet.items())))
    return Examples(rows, whole)


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


def _kept(
    examples: Iterable[Example | None],
    report: DataReport,
    seen: set[tuple[object, ...]] | None,
    *,
    limit: int | None,
    require_output: bool,
) -> list[Example]:
    """The examples that can be learned and did not come before; what is dropped is counted."""
    rows: list[Example] = []
    for example in examples:
        report.rows_read += 1
        if example is None:
            report.empty_questions += 1
            continue
        if require_output and not example.answered:
            report.empty_answers += 1
            continue
        if seen is not None:
            content = example.content()
            if content in seen:
                report.duplicates += 1
                continue
            seen.add(content)
        rows.append(example)
        if len(rows) == limit:
            break
    report.kept = len(rows)
    if not rows:
        raise _nothing_left(report)
    return rows


def _nothing_left(report: DataReport) -> DataError:
    """The error for a source of which no row is kept."""
    counts = (
        (report.empty_answers, "have no answer"),
        (report.empty_questions, "ask nothing"),
        (report.duplicates, "repeat rows of the sources before"),
    )
    why = ", ".join(f"{count:,} {what}" for count, what in counts if count)
    return DataError(
        f"{report.source}: none of the {report.rows_read:,} rows can be learned: {why}.",
        hint="Fill the answer column, or map the right one with columns, e.g. output=<column>.",
    )
