"""CSV files as rows, each with the line it starts on.

They are read by the standard library's reader in strict mode: every value stays text (no guessed numbers) and a broken
quote is an error. Where a comma leaves the header in one piece, another sign that divides it is taken, and said.
"""

from __future__ import annotations

import csv
import io
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ptune.data.json_files import Row
from ptune.data.opened import ReadOptions, kind_of, read_text
from ptune.errors import DataError, listed, shown

_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_csv_limit = threading.Lock()


def csv_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Rows of a CSV file with a header (`.tsv`: tab-separated); blank lines are passed over."""
    text = read_text(path, options.encoding)
    delimiter = "\t" if kind_of(path) == ".tsv" else _delimiter(text)
    if delimiter in _OTHER_DELIMITERS and kind_of(path) != ".tsv":
        options.notes.append(f"{path.name} has {_OTHER_DELIMITERS[delimiter]} between its columns")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            values = _next_long(reader)
        except csv.Error as error:
            raise DataError(f"{path}:{line}: the row is not valid CSV: {error}.", hint="Check its quotes.") from None
        if values is None:
            break
        if not values:
            continue
        if header is None:
            header = [name.strip() for name in values]
            check_header(header, f"{path}:{line}")
            continue
        if len(values) != len(header):
            raise DataError(
                f"{path}:{line}: the row has {len(values)} values, the header {len(header)} columns.",
                hint=f"Its columns: {listed(header)}. Put values with commas or line breaks in quotes.",
            )
        yield f"{path}:{line}", dict(zip(header, values, strict=True))
    if header is None:
        raise DataError(f"{path} is empty.", hint="Give a file with a header and at least one row.")


def _delimiter(text: str) -> str:
    """What stands between the columns: a comma, unless only another sign divides the header."""
    header = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    if _columns(header, ",") > 1:
        return ","
    best = max(_OTHER_DELIMITERS, key=lambda sign: _columns(header, sign))
    return best if _columns(header, best) > 1 else ","


def _columns(header: str, delimiter: str) -> int:
    """Into how many columns a sign divides a header; 0 where its quotes are broken then."""
    try:
        return len(next(csv.reader([header], delimiter=delimiter, strict=True), []))
    except csv.Error:
        return 0


def _next_long(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, however long its fields: the csv module's limit is global, so it is lifted for this row alone."""
    with _csv_limit:
        before = csv.field_size_limit(sys.maxsize)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)


def check_header(header: list[str], place: str) -> None:
    """Raise `DataError` for a header that names a column more than once."""
    twice = [name for name, times in Counter(header).items() if times > 1]
    if twice:
        raise DataError(f"{place}: the header names {shown(twice[0])} more than once.", hint="Rename one of them.")
