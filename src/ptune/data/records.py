"""`load_examples`: files, folders or hub ids become a sequence of `Example`, with a report of what was left out.

Reading is split by concern: `sources` finds the files, `json_files`, `csv_files`, `excel` and `tables` read rows with
their places, `layouts` and `row_parser` turn a row into an `Example`, and `read_sources` drops rows without an answer
and repeated ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

from ptune.data.data_report import DataReport
from ptune.data.example import Example
from ptune.data.layouts import check_columns
from ptune.data.opened import ReadOptions
from ptune.data.read_sources import Rules, read_sources, sources_in
from ptune.data.row_parser import EMPTY_ANSWER, EMPTY_QUESTION, RowReader

__all__ = ["Example", "Examples", "load_examples"]
_REASONS = {
    EMPTY_ANSWER: "have no answer",
    EMPTY_QUESTION: "ask nothing",
    "duplicates": "repeat rows of the sources before",
}


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
    rules = Rules(
        reader=lambda report: RowReader(mapping, report, require_output=require_output, all_answers=all_answers),
        mapping=mapping,
        limit=limit,
        drop_duplicates=drop_duplicates,
        reasons=_REASONS,
        hint="Fill the answer column, or map the right one with columns, e.g. output=<column>.",
    )
    rows, report, _ = read_sources(
        sources_in(source, limit), ReadOptions(split=split, encoding=encoding, sheet=sheet), rules
    )
    return Examples(rows, report)
