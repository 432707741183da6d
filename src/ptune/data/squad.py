"""SQuAD: questions on paragraphs, nested as the original files have them or flat as on the hub.

Nested: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}`. Flat:
`context`, `question`, `answers: {"text": [...]}`. Of several answers the first is learned; a question that cannot be
answered from its paragraph has none, and is dropped and counted as any row without an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ptune.data.values import described
from ptune.errors import DataError

Row = tuple[str, dict[str, Any]]


def flat_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, those that hold paragraphs with questions taken apart: one row per question."""
    for place, row in rows:
        if "paragraphs" in row and isinstance(row["paragraphs"], list):
            yield from _questions(row, place)
        else:
            yield place, row


def _questions(row: dict[str, Any], place: str) -> Iterator[Row]:
    article = {key: value for key, value in row.items() if key != "paragraphs"}
    for number, paragraph in enumerate(row["paragraphs"], start=1):
        at = f"{place}, paragraph {number}"
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list):
            raise DataError(
                f"{at} is {described(paragraph)}, not an object with context and qas.",
                hint="Write it as SQuAD has it, or give question and answer columns.",
            )
        about = {"context": paragraph.get("context"), "answers": None}
        for which, question in enumerate(questions, start=1):
            if not isinstance(question, dict):
                raise DataError(
                    f"{at}, question {which} is {described(question)}, not an object.",
                    hint='Write it as {"question": ..., "answers": [{"text": ...}]}.',
                )
            yield f"{at}, question {which}", {**article, **about, **question}


def answers_in(value: Any) -> list[Any]:
    """A question's answers, each once; none when it has none.

    Args:
        value: A list of `{"text": ...}` or of texts, or `{"text": [...]}`.
    """
    if isinstance(value, dict):
        value = value.get("text")
    answers = value if isinstance(value, list) else [value]
    given = [text for text in (one.get("text") if isinstance(one, dict) else one for one in answers) if text]
    return [text for at, text in enumerate(given) if text not in given[:at]]
