"""Labels as text: what a file has for one class becomes its name.

Whole numbers are written as such (`1.0`, as data frames write it, is `1`), true and false as in JSON. A number with a
fraction is regression, a list several labels of one row: neither is one of some classes. -1 is what GLUE writes where
the label is kept secret.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from ptune.data.values import check_text, described
from ptune.errors import DataError, shown

NO_LABEL = "-1"
"""Stands for no label."""
_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]*[1-9][0-9]*")
_UNTAGGED = (NO_LABEL, "-100")


def label_text(value: Any, what: str, place: str) -> str | None:
    """The name of a class; `NO_LABEL` where the data hide it, None where the value is empty.

    Args:
        value: As the file has it; a class of a table is its name already.
        what: The value's name in an error.
        place: Where it stands.

    Raises:
        DataError: A number with a fraction, a list, or something else that is no class.
    """
    if isinstance(value, str):
        text = check_text(value, what, place).strip()
        if _FRACTION.fullmatch(text):
            raise _regression(text, what, place)
        return text or None
    if value is None or value != value:  # noqa: PLR0124 (NaN)
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        if not math.isfinite(value) or value != int(value):
            raise _regression(value, what, place)
        return str(int(value))
    if isinstance(value, list):
        raise DataError(
            f"{place}: {what} is a list ({shown(value, 40)}): several labels of one row are not learned.",
            hint="Give every row one label.",
        )
    raise DataError(
        f"{place}: {what} is {described(value)}, not a label.", hint="Write it as a text or a whole number."
    )


def _regression(value: object, what: str, place: str) -> DataError:
    return DataError(
        f"{place}: {what} is {shown(value, 40)}, a number with a fraction: labels are classes, and regression is not "
        "learned.",
        hint="Give classes, as text or whole numbers; where such numbers are names, write them with a letter (v3.5).",
    )


def tag_texts(values: list[Any], what: str, place: str) -> tuple[str, ...]:
    """The tag of every word of a row; empty for a word that has none (null, -1 and -100).

    Raises:
        DataError: One of them is no label.
    """
    tags = [label_text(value, f"tag {number} of {what}", place) for number, value in enumerate(values, start=1)]
    return tuple("" if tag is None or tag in _UNTAGGED else tag for tag in tags)
