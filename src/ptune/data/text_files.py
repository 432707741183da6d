"""JSON, JSONL and CSV files as rows, each with the line it starts on.

JSON is parsed by the standard library's C scanner, one array element at a time, which costs little more than parsing
the whole and gives the position of every row. CSV is read by the standard library's reader in strict mode: every value
stays text (no guessed numbers) and a broken quote is an error. Files are UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptune.errors import DataError, listed, shown

Row = tuple[str, dict[str, Any]]
"""Place (`file:line`) and the values by column."""

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_BOM = b"\xef\xbb\xbf"
_TOO_LONG = f"it has a number of more than {sys.get_int_max_str_digits():,} digits"
"""All that is left of Python's `ValueError`s once those of JSON are told apart."""
_csv_limit = threading.Lock()


def _decode(data: bytes, path: Path, offset: int = 0) -> str:
    """`data` as UTF-8; `offset` is where it begins in the file, in bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = offset + error.start
        wide = offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff")
        guess = " The file begins like UTF-16." if wide else ""
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at byte offset {where}.{guess}",
            hint="Convert it to UTF-8, e.g. with iconv -f <its encoding> -t UTF-8.",
        ) from None


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, without its byte order mark.

    Raises:
        DataError: The file cannot be read, or is not UTF-8; names the byte offset.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint="Check who may read it.") from error
    return _decode(data.removeprefix(_BOM), path, len(_BOM) if data.startswith(_BOM) else 0)


def _broken_json(path: Path, line: int, what: str, found: str) -> DataError:
    return DataError(f"{path}:{line}: {what} is not valid JSON: {found}.", hint="Mend that line.")


def _complaint(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")  # as in "Unterminated string starting at"


class _JsonText:
    """A cursor over the text of a JSON file that knows its line."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.at = 0
        self.line = 1
        self.skip_blank()

    def move(self, position: int) -> None:
        self.line += self.text.count("\n", self.at, position)
        self.at = position

    def skip_blank(self) -> None:
        match = _BLANK.match(self.text, self.at)
        self.move(match.end() if match else self.at)

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, what: str) -> bool:
        """Step over the character `what` and the blanks after it, if it is there."""
        if self.peek() != what:
            return False
        self.move(self.at + 1)
        self.skip_blank()
        return True

    def value(self, what: str) -> Any:
        """The JSON value here; the cursor goes behind it."""
        try:
            result, end = _DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            raise self.fault(what, f"{_complaint(error)} at line {error.lineno}, column {error.colno}") from None
        except RecursionError:
            raise self.fault(what, "it is nested too deeply") from None
        except ValueError:
            raise self.fault(what, _TOO_LONG) from None
        self.move(end)
        self.skip_blank()
        return result

    def fault(self, what: str, found: str) -> DataError:
        return _broken_json(self.path, self.line, what, found)

    def expected(self, what: str, where: str) -> DataError:
        found = repr(self.peek()) if self.peek() else "the end of the file"
        return DataError(f"{self.path}:{self.line}: expected {what} {where}, found {found}.", hint="Mend that line.")


def _as_row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: the row is {shown(value, 40)}, not an object.",
            hint='Write it as {"instruction": ..., "output": ...}.',
        )
    return place, value


def json_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON file: a list of objects, an object with that list under `data`, or JSON lines under this name."""
    text = read_text(path)
    cursor = _JsonText(path, text)
    if cursor.peek() == "{" and not _first_line_is_row(text, cursor.at):
        yield from _wrapped_rows(cursor)
    elif cursor.peek() == "{":
        yield from jsonl_rows(path)
    elif cursor.take("["):
        yield from _array_rows(cursor)
        if cursor.peek():
            raise cursor.expected("the end of the file", "after the list")
    elif not cursor.peek():
        raise DataError(f"{path} is empty.", hint="Give a file with at least one row.")
    else:
        raise cursor.expected("a list of objects", "at the start")


def _first_line_is_row(text: str, start: int) -> bool:
    """Whether the first line is a whole JSON object that is a row rather than a wrapper around rows."""
    end = text.find("\n", start)
    try:
        value = json.loads(text[start:end] if end != -1 else text[start:])
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _wrapped_rows(cursor: _JsonText) -> Iterator[Row]:
    """Rows of the list under the key `data` of an object."""
    cursor.take("{")
    keys: list[str] = []
    while not cursor.take("}"):
        key = cursor.value("the object's key")
        if not isinstance(key, str):
            raise cursor.expected("a key in quotes", f"instead of {shown(key)}")
        if not cursor.take(":"):
            raise cursor.expected("':'", f"after the key {shown(key)}")
        if key == "data" and cursor.take("["):
            yield from _array_rows(cursor)
        else:
            cursor.value(f"the value of {shown(key)}")
        keys.append(key)
        if not cursor.take(",") and cursor.peek() != "}":
            raise cursor.expected("',' or '}'", f"after the value of {shown(key)}")
    if "data" not in keys:
        raise DataError(
            f"{cursor.path} is one object with the keys {listed(keys) or '(none)'}, not a list of rows.",
            hint="Give a list of objects, or an object with that list under 'data'.",
        )
    if cursor.peek():
        raise cursor.expected("the end of the file", "after the object")


def _array_rows(cursor: _JsonText) -> Iterator[Row]:
    """Rows of a list whose '[' has been taken; leaves the cursor behind its ']'."""
    number = 0
    if cursor.take("]"):
        return
    while True:
        number += 1
        place = f"{cursor.path}:{cursor.line}"
        yield _as_row(cursor.value(f"row {number}"), place)
        if cursor.take("]"):
            return
        if not cursor.take(","):
            raise cursor.expected("',' or ']'", f"after row {number}")


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON-lines file, read line by line; blank lines are passed over."""
    offset = 0
    number = 0
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                data = raw.removeprefix(_BOM) if line == 1 else raw
                text = _decode(data, path, offset + len(raw) - len(data))
                offset += len(raw)
                if not text.strip():
                    continue
                number += 1
                try:
                    value = json.loads(text)
                except json.JSONDecodeError as error:
                    raise _broken_json(
                        path, line, f"row {number}", f"{_complaint(error)} at column {error.pos + 1}"
                    ) from None
                except RecursionError:
                    raise _broken_json(path, line, f"row {number}", "it is nested too deeply") from None
                except ValueError:
                    raise _broken_json(path, line, f"row {number}", _TOO_LONG) from None
                yield _as_row(value, f"{path}:{line}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint="Check who may read it.") from error
    if not number:
        raise DataError(f"{path} is empty.", hint="Give a file with at least one row.")


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV file with a header (`.tsv`: tab-separated); blank lines are passed over."""
    text = read_text(path)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
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
            header = values
            _check_header(header, path, line)
            continue
        if len(values) != len(header):
            raise DataError(
                f"{path}:{line}: the row has {len(values)} values, the header {len(header)} columns.",
                hint=f"Its columns: {listed(header)}. Put values with commas or line breaks in quotes.",
            )
        yield f"{path}:{line}", dict(zip(header, values, strict=True))
    if header is None:
        raise DataError(f"{path} is empty.", hint="Give a file with a header and at least one row.")


def _next_long(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, however long its fields: the csv module's limit is global, so it is lifted for this row alone."""
    with _csv_limit:
        before = csv.field_size_limit(sys.maxsize)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)


def _check_header(header: list[str], path: Path, line: int) -> None:
    twice = [name for name, times in Counter(header).items() if times > 1]
    if twice:
        raise DataError(
            f"{path}:{line}: the header names {shown(twice[0])} more than once.", hint="Rename one of them."
        )
