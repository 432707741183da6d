"""`load_examples`: a file, folder or hub id becomes a sequence of `Example`, with a report of what was left out.

Reading is split by concern: `sources` finds the files, `text_files` and `tables` read rows with their places, `layouts`
turns a row into an `Example`. Here rows without an answer and repeated rows are dropped, and counted: what is not
trained on is always said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from ptune.data.example import Example
from ptune.data.layouts import RowParser, check_columns
from ptune.data.sources import Table, find_rows
from ptune.errors import ConfigError, DataError, listed, printable

__all__ = ["DataReport", "Example", "Examples", "load_examples"]


@dataclass(kw_only=True)
class DataReport:
    """What was read and what was left out, in rows."""

    source: str = ""
    """What the caller named."""
    files: tuple[str, ...] = ()
    """The files or tables read, in order."""
    skipped_files: tuple[str, ...] = ()
    """Files of the folder that belong to another split."""
    layout: str = ""
    """The kind of columns found, e.g. `Alpaca`."""
    unused_columns: tuple[str, ...] = ()
    """Columns that stand in the first row of a file and are not used."""
    rows_read: int = 0
    """Rows looked at; fewer than the file holds when a limit was reached."""
    kept: int = 0
    """Rows that became examples."""
    empty_answers: int = 0
    """Rows dropped because their answer is empty, blank or null."""
    duplicates: int = 0
    """Rows dropped because the same question with the same answer came before."""

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        layout = f" ({self.layout} columns)" if self.layout else ""
        lines = [f"read {self.rows_read:,} rows from {self.source}{layout}, kept {self.kept:,}"]
        if self.empty_answers:
            lines.append(f"dropped {self.empty_answers:,} rows without an answer")
        if self.duplicates:
            lines.append(f"dropped {self.duplicates:,} rows that repeat an earlier one")
        if self.unused_columns:
            lines.append(f"columns not used: {listed(self.unused_columns)}")
        if self.skipped_files:
            lines.append(f"files of other splits, not read: {listed(self.skipped_files)}")
        return [printable(line) for line in lines]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


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
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    drop_duplicates: bool = True,
    require_output: bool = True,
) -> Examples:
    """Read examples from a file, a folder or the hub.

    Args:
        source: A `.json` (a list, or an object with the list under `data`), `.jsonl`, `.csv`, `.tsv`, `.parquet` or
            `.arrow` file; a folder written by `Dataset.save_to_disk`; a folder of such files, read in name order; or a
            hub id, `owner/name` or `owner/name:configuration`.
        columns: Which column holds which field, e.g. `{"instruction": "mr", "output": "ref"}`. Columns that already
            have their field's name need no entry.
        split: The split to take from a `DatasetDict`, the hub, or a folder whose file names say `train`, `dev`, `test`…
        limit: Stop after this many kept examples.
        drop_duplicates: Drop rows equal to an earlier one in every field. Several answers to one question all stay.
        require_output: False accepts rows and files without answers (to generate from).

    Returns:
        The examples, never empty, with `.report`.

    Raises:
        DataError: A source that is missing, empty, or holds a row that cannot be used; names the file and the line or
            row.
        ConfigError: `columns` names an unknown field, or `limit` is below 1.
    """
    mapping = check_columns(columns or {})
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}.", hint="Leave it out to read everything.")
    found = find_rows(source, split)
    report = DataReport(source=str(source), skipped_files=found.skipped)
    rows: list[Example] = []
    seen: set[tuple[object, ...]] = set()
    for example in _read(found.tables, mapping, report, require_output):
        report.rows_read += 1
        if require_output and not example.output.strip():
            report.empty_answers += 1
        elif drop_duplicates and _is_repeated(example, seen):
            report.duplicates += 1
        else:
            rows.append(example)
            if len(rows) == limit:
                break
    report.kept = len(rows)
    if not rows:
        raise DataError(
            f"{report.source}: none of the {report.rows_read:,} rows has an answer.",
            hint="Fill the answer column, or map the right one with columns, e.g. output=<column>.",
        )
    return Examples(rows, report)


def _read(
    tables: Iterable[Table], mapping: Mapping[str, str], report: DataReport, require_output: bool
) -> Iterator[Example]:
    """Every row of the tables as an example; notes files, layouts and unused columns in `report`."""
    for table in tables:
        report.files += (table.name,)
        parser: RowParser | None = None
        for place, row in table.rows():
            if parser is None:
                parser = RowParser.for_columns(list(row), mapping, file=table.name, require_output=require_output)
                report.layout = ", ".join(dict.fromkeys(filter(None, (*report.layout.split(", "), parser.layout.name))))
                report.unused_columns = tuple(dict.fromkeys((*report.unused_columns, *parser.unused)))
            yield parser.parse(row, place)
        if parser is None:
            raise DataError(f"{table.name} holds no rows.", hint="Give a file with at least one row.")


def _is_repeated(example: Example, seen: set[tuple[object, ...]]) -> bool:
    """Whether the same fields came before; remembers them."""
    key = (example.instruction, example.input, example.output, example.system, example.history)
    if key in seen:
        return True
    seen.add(key)
    return False
