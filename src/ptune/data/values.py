"""Values as text. A file says `2` where an answer belongs and means "2"; a list or a table there is a mistake.

Numbers, true and false are taken in their JSON spelling (`2`, `2.0`, `true`), dates in that of ISO 8601, and counted by
column; null, and what data frames write for it (NaN), is empty. A lone half of a surrogate pair cannot be written as
UTF-8, and is refused where it is read rather than deep in a tokenizer.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ptune.errors import DataError, shown


def kind(value: Any) -> str:
    """What a value is, in the words of the file: `text`, `a number`, `null`, `a list`."""
    if value is None:
        return "null"
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (str, "text"),
        (bool, "a boolean"),
        ((int, float, Decimal), "a number"),
        ((dt.date, dt.time), "a date"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((word for one, word in kinds if isinstance(value, one)), type(value).__name__)


def described(value: Any) -> str:
    """What a value is, with the value itself when it is short."""
    return "null" if value is None else f"{kind(value)} ({shown(value, 40)})"


def check_text(text: str, what: str, place: str) -> str:
    """`text`, if it can be written as UTF-8.

    Raises:
        DataError: It holds half of a surrogate pair; names place and character.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: {what} holds half of a surrogate pair ({text[error.start]!a}) at character {error.start}.",
                hint="Write the whole character.",
            ) from None
    return text


@dataclass(frozen=True, slots=True)
class Texts:
    """Makes text of the values of one source, and counts by column what was none."""

    converted: Counter[str]

    def of(self, value: Any, column: str, what: str, place: str) -> str:
        """The text of a value, empty for null.

        Args:
            value: As the file has it.
            column: Whose count goes up when it is no text.
            what: The value's name in an error.
            place: Where it stands.

        Raises:
            DataError: A list, an object, or something else that is no plain value.
        """
        if isinstance(value, str):
            return check_text(value, what, place)
        if value is None or value != value:  # noqa: PLR0124 (NaN)
            return ""
        if isinstance(value, (bool, int, float)):
            text = json.dumps(value)
        elif isinstance(value, (Decimal, dt.date, dt.time)):
            text = str(value) if isinstance(value, Decimal) else value.isoformat()
        else:
            raise DataError(
                f"{place}: {what} is {described(value)}, not text.", hint="Write it as a string, or leave the row out."
            )
        self.converted[column] += 1
        return text
