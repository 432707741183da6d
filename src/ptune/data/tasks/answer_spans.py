"""Where the answers of a question stand in its context, and answers that are not where the data say.

`answers` is `{"text": [...], "answer_start": [...]}` on the hub, a list of `{"text", "answer_start"}` in the original
files, or a text with its start in a column of its own. Starts are characters, from 0. An answer that stands elsewhere,
and there alone, is taken there; one that stands nowhere, or at several places of which none is its start, is refused:
it would teach a wrong span.
"""

from __future__ import annotations

from typing import Any

from ptune.data.values import check_text, described
from ptune.errors import DataError, shown

Given = list[tuple[str, int | None]]
"""Answers as the data give them: their text, and where they say that it begins."""


def answers_given(value: Any, start: Any, place: str) -> Given | None:
    """The answers of a row; none where it says that there are none, None where it says nothing.

    Args:
        value: Of the column of answers.
        start: Of the column of starts, where there is one.
        place: Where the row stands.

    Raises:
        DataError: Answers of no known form.
    """
    if value is None:
        return None
    if isinstance(value, dict):
        start = value.get("answer_start", value.get("start", start))
        value = value.get("text")
        if value is None:
            return None
    if isinstance(value, str):
        value, start = ([value] if value.strip() else []), [_first(start)]
    if not isinstance(value, list):
        raise _no_answers(value, place)
    if value and all(isinstance(one, dict) for one in value):
        start = [one.get("answer_start") for one in value]
        value = [one.get("text") for one in value]
    if not isinstance(start, list):
        start = [start] * len(value)
    if value and len(start) != len(value):
        raise DataError(
            f"{place}: there are {len(value)} answers and {len(start)} starts of answers.",
            hint="Give every answer its answer_start.",
        )
    return [(_text(text, place), _start(at, place)) for text, at in zip(value, start, strict=False)]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _no_answers(value: Any, place: str) -> DataError:
    return DataError(
        f"{place}: 'answers' is {described(value)}.",
        hint='Write it as SQuAD does: {"text": ["..."], "answer_start": [0]}.',
    )


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{place}: an answer is {described(value)}, not text.",
            hint="Write the words as they stand in the context; no answer at all is an empty list.",
        )
    return check_text(value, "an answer", place)


def _start(value: Any, place: str) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        if isinstance(value, float) and value.is_integer():
            return int(value)
        raise DataError(
            f"{place}: answer_start is {described(value)}, not a whole number.",
            hint="Give the character of the context at which the answer begins, from 0.",
        )
    return value


def placed(text: str, start: int | None, context: str, place: str) -> tuple[tuple[str, int], bool]:
    """An answer where it stands in its context, and whether that is elsewhere than the data say.

    Raises:
        DataError: It stands nowhere, or at several places of which none is `start`.
    """
    if start is not None and start >= 0 and context.startswith(text, start):
        return (text, start), False
    found: list[int] = []
    at = context.find(text)
    while at != -1 and len(found) < 2:
        found.append(at)
        at = context.find(text, at + 1)
    if len(found) == 1:
        return (text, found[0]), True
    said = "has no answer_start" if start is None else f"does not stand at answer_start {start}"
    there = f" ({shown(context[max(start, 0) : max(start, 0) + len(text)], 40)} does)" if start is not None else ""
    where = "it stands at several places of the context" if found else "the context has it nowhere"
    raise DataError(
        f"{place}: the answer {shown(text, 40)} {said}{there}, and {where}.",
        hint="Give the character at which it begins, from 0, and the words as the context has them.",
    )
