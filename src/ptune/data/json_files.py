"""JSON and JSONL files as rows, each with the line it starts on.

JSON is parsed by the standard library's C scanner, one array element at a time, which costs little more than parsing
the whole and gives the position of every row. The list of rows may stand alone, under `data`, or under the name of a
split beside others.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptune.data.opened import ReadOptions, read_text, text_lines
from ptune.data.splits import is_split, split_called
from ptune.errors import DataError, PTuneError, listed, shown, unknown

Row = tuple[str, dict[str, Any]]
"""Place (`file:line`) and the values by column."""

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_TOO_LONG = f"it has a number of more than {sys.get_int_max_str_digits():,} digits"
"""All that is left of Python's `ValueError`s once those of JSON are told apart."""


def _broken_json(path: Path, line: int, what: str, found: str) -> DataError:
    return DataError(f"{path}:{line}: {what} is not valid JSON: {found}.", hint="Fix that line.")


def _complaint(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")  # as in "Unterminated string starting at"


class _JsonText:
    """A cursor over the text of a JSON file that knows its line."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.at = 0
        self.line = 1
        self.move(0)

    def move(self, position: int) -> None:
        """Go to a position, and over the blanks there."""
        match = _BLANK.match(self.text, position)
        end = match.end() if match else position
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, what: str) -> bool:
        """Step over the character `what` and the blanks after it, if it is there."""
        if self.peek() != what:
            return False
        self.move(self.at + 1)
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
        return result

    def fault(self, what: str, found: str) -> DataError:
        return _broken_json(self.path, self.line, what, found)

    def expected(self, what: str, where: str) -> DataError:
        found = repr(self.peek()) if self.peek() else "the end of the file"
        return DataError(f"{self.path}:{self.line}: expected {what} {where}, found {found}.", hint="Fix that line.")


def _as_row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: the row is {shown(value, 40)}, not an object.",
            hint='Write it as {"instruction": ..., "output": ...}.',
        )
    return place, value


def json_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Rows of a JSON file: a list of objects, an object with such lists in it, or JSON lines under this name."""
    text = read_text(path, options.encoding)
    cursor = _JsonText(path, text)
    if cursor.peek() == "{" and not _first_line_is_row(text, cursor.at, options.split):
        yield from _wrapped_rows(cursor, options)
    elif cursor.peek() == "{":
        yield from jsonl_rows(path, options)
    elif cursor.take("["):
        yield from _array_rows(cursor)
        if cursor.peek():
            raise cursor.expected("the end of the file", "after the list")
    elif not cursor.peek():
        raise DataError(f"{path} is empty.", hint="Give a file with at least one row.")
    else:
        raise cursor.expected("a list of objects", "at the start")


def _first_line_is_row(text: str, start: int, split: str) -> bool:
    """Whether the first line is a whole JSON object that is a row rather than a wrapper around rows."""
    end = text.find("\n", start)
    try:
        value = json.loads(text[start:end] if end != -1 else text[start:])
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not any(_holds_rows(key, one, split) for key, one in value.items())


def _holds_rows(key: str, value: Any, split: str) -> bool:
    """Whether a value of an object is a list of rows: the one under `data`, or that of a split."""
    if not isinstance(value, list):
        return False
    return key == "data" or ((split_called(key) is not None or key == split) and isinstance([*value, 0][0], dict))


def _wrapped_rows(cursor: _JsonText, options: ReadOptions) -> Iterator[Row]:
    """Rows of the list under `data`, or under the wanted split, of an object."""
    cursor.take("{")
    taken: list[str] = []
    others: list[str] = []
    while not cursor.take("}"):
        key = cursor.value("the object's key")
        if not isinstance(key, str):
            raise cursor.expected("a key in quotes", f"instead of {shown(key)}")
        if not cursor.take(":"):
            raise cursor.expected("':'", f"after the key {shown(key)}")
        if (key == "data" or is_split(key, options.split)) and cursor.take("["):
            taken.append(key)
            yield from _array_rows(cursor)
        else:
            cursor.value(f"the value of {shown(key)}")
            others.append(key)
        if not cursor.take(",") and cursor.peek() != "}":
            raise cursor.expected("',' or '}'", f"after the value of {shown(key)}")
    splits = [key for key in others if split_called(key)]
    if not taken:
        raise _no_rows(cursor.path, others, splits, options.split)
    if taken != ["data"]:
        left = f"; not read: {listed(splits)}" if splits else ""
        options.notes.append(f"read {listed(taken)} of {cursor.path.name}{left}")
    if cursor.peek():
        raise cursor.expected("the end of the file", "after the object")


def _no_rows(path: Path, keys: list[str], splits: list[str], split: str) -> PTuneError:
    if splits:
        return unknown(f"split of {path}:", split, splits, error=DataError)
    return DataError(
        f"{path} is one object with the keys {listed(keys) or '(none)'}, not a list of rows.",
        hint="Give a list of objects, or an object with that list under 'data' or the name of a split.",
    )


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


def jsonl_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Rows of a JSON-lines file, read line by line; blank lines are passed over."""
    number = 0
    for line, text in enumerate(text_lines(path, options.encoding), start=1):
        if not text.strip():
            continue
        number += 1
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            found = f"{_complaint(error)} at column {error.pos + 1}"
            raise _broken_json(path, line, f"row {number}", found) from None
        except RecursionError:
            raise _broken_json(path, line, f"row {number}", "it is nested too deeply") from None
        except ValueError:
            raise _broken_json(path, line, f"row {number}", _TOO_LONG) from None
        yield _as_row(value, f"{path}:{line}")
    if not number:
        raise DataError(f"{path} is empty.", hint="Give a file with at least one row.")
