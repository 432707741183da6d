"""Excel files (`.xlsx`) as rows, through openpyxl, which is in the extra `excel`.

The first row that holds anything is the header. Values are what Excel showed when the file was saved: formulas give
their last result. A file is a ZIP archive, and is looked at before it is unpacked.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptune.data.csv_files import check_header
from ptune.data.json_files import Row
from ptune.data.opened import MOST_TIMES, MOST_UNPACKED, ReadOptions
from ptune.errors import DataError, PTuneError, listed, one_line, shown, unknown


def excel_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Rows of one sheet: the one that is named, else the first.

    Raises:
        DataError: openpyxl is missing, the file is damaged, or it has no such sheet.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise DataError(
            f"{path} needs the package openpyxl to be read.", hint='Run pip install openpyxl (or "ptune[excel]").'
        ) from error
    try:
        _check_size(path)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what openpyxl does not keep: styles, extensions
            book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
            rows = list(_sheet_rows(path, _sheet(path, book, options)))
    except PTuneError:
        raise
    except Exception as error:
        # A damaged archive, XML that is none, references to parts that are missing: each has its own kind of error.
        raise DataError(
            f"{path} cannot be read as an Excel file: {one_line(error).rstrip('.') or type(error).__name__}.",
            hint="Save it again as .xlsx, or as CSV.",
        ) from error
    yield from rows


def _check_size(path: Path) -> None:
    """Raise `DataError` for an archive that unpacks to more than a table could have been packed from."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
    if unpacked > max(MOST_UNPACKED, MOST_TIMES * path.stat().st_size):
        raise DataError(
            f"{path} unpacks to more than {MOST_TIMES} times its size.", hint="Save the table as CSV, and give that."
        )


def _sheet(path: Path, book: Any, options: ReadOptions) -> Any:
    names: list[str] = book.sheetnames
    if options.sheet is not None and options.sheet not in names:
        raise unknown(f"sheet of {path}:", options.sheet, names, error=DataError)
    name = options.sheet or names[0]
    if len(names) > 1:
        options.notes.append(
            f"read the sheet {name} of {path.name}; not read: {listed(one for one in names if one != name)}"
        )
    return book[name]


def _sheet_rows(path: Path, sheet: Any) -> Iterator[Row]:
    header: list[str] | None = None
    sheet.reset_dimensions()  # what a file says of its size is often wrong
    for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        if all(value is None for value in values):
            continue
        place = f"{path}:{number}"
        if header is None:
            header = ["" if name is None else str(name).strip() for name in values]
            check_header([name for name in header if name], place)
            continue
        names = [*header, *[""] * (len(values) - len(header))]
        cells = [*values, *[None] * (len(header) - len(values))]
        nameless = [value for name, value in zip(names, cells, strict=True) if not name and value is not None]
        if nameless:
            raise DataError(
                f"{place}: {shown(nameless[0], 40)} stands in a column without a name.", hint="Name the column."
            )
        yield place, {name: value for name, value in zip(names, cells, strict=True) if name}
    if header is None:
        raise DataError(f"{path} is empty.", hint="Give a sheet with a header and at least one row.")
