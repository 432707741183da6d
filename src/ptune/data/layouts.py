"""Column layouts: which columns of a row make an `Example`.

A layout is recognised by the names of a row's own columns, whatever the rows before it had: one row may have an
`input` and the next none. Names are compared without regard to case and to blanks around them. The layouts are tried
in the order in which they stand here, and the first whose question and answer are there is taken. A column mapping
gives any column the name of a field.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptune.data.values import kind
from ptune.errors import ConfigError, DataError, listed, nearest, shown, unknown

_TALK = ("history",)
_SYSTEM = ("system", "system_prompt")


@dataclass(frozen=True)
class Layout:
    """A set of fields that together make an example. Of several fields for one part, the first that is there counts."""

    name: str
    question: str
    """The field that must be there."""
    answer: str | None
    """The field of the answer; None when it is part of the question field (`messages`, `text`)."""
    input: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    history: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Part of an example → the fields that may hold it."""
        whole = self.answer is None
        return {
            self.question if whole else "instruction": (self.question,),
            "input": self.input,
            "output": () if self.answer is None else (self.answer,),
            "system": self.system,
            "history": self.history,
        }

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field of the layout."""
        return tuple(field for fields in self.parts.values() for field in fields)

    def needed(self, require_output: bool) -> tuple[str, ...]:
        """The fields a row must have."""
        return (self.question, self.answer) if self.answer and require_output else (self.question,)


CONVERSATIONS = ("messages", "conversations", "conversation")
TEXT = Layout("text", "text", None)
"""A text to learn from its first token to its last. Taken where `text` is the only column, or was mapped."""
LAYOUTS = (
    Layout("Alpaca", "instruction", "output", ("input",), _SYSTEM, _TALK),
    Layout("instruction/response", "instruction", "response", ("input", "context"), _SYSTEM, _TALK),
    Layout("prompt/completion", "prompt", "completion", (), _SYSTEM, _TALK),
    Layout("prompt/response", "prompt", "response", (), _SYSTEM, _TALK),
    Layout("question/answer", "question", "answer", ("context",), _SYSTEM, _TALK),
    Layout("question/response", "question", "response", ("context",), _SYSTEM, _TALK),
    Layout("query/response", "query", "response", (), _SYSTEM, _TALK),
    Layout("SQuAD", "question", "answers", ("context",)),
    *(Layout("chat", name, None, (), ("system",)) for name in CONVERSATIONS),
    Layout("content/summary", "content", "summary"),
    Layout("source/target", "source", "target"),
    Layout("input/output", "input", "output", (), _SYSTEM, _TALK),
    Layout("text/label", "text", "label"),
    Layout("text/summary", "text", "summary"),
    Layout("sentence/label", "sentence", "label"),
    TEXT,
)
FIELDS = tuple(dict.fromkeys(field for layout in LAYOUTS for field in layout.fields))
_ANSWERS = (
    *("answer", "output", "response", "completion", "reply", "target", "label", "summary", "ref", "reference"),
    *("translation", "solution", "result", "category", "class", "sentiment", "intent", "highlights", "headline"),
)
_QUESTIONS = (
    *("question", "instruction", "prompt", "query", "input", "source", "text", "sentence", "mr", "document", "article"),
    *("problem", "context", "premise", "review", "title"),
)
"""Words that a column of that kind is likely to be called by, the likeliest first."""
_NEITHER = ("id", "idx", "index", "uuid", "url", "date", "time", "timestamp", "split", "lang", "language", "score")
"""Words of columns that are neither."""


def check_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The column mapping, checked: known fields, all of one layout.

    Raises:
        ConfigError: A field that does not exist, or fields that do not go together.
    """
    for field, column in columns.items():
        if field not in FIELDS:
            raise unknown("field in columns", str(field), FIELDS)
        if not isinstance(column, str) or not column:
            raise ConfigError(
                f"columns: {field} must name a column, not {shown(column)}.", hint=f"Write {field}=<column>."
            )
    if not any(set(columns) <= set(layout.fields) for layout in LAYOUTS):
        raise ConfigError(
            f"columns: {', '.join(columns)} do not go together.",
            hint="Use the fields of one layout, such as instruction, input and output; docs/data.md has them all.",
        )
    return dict(columns)


def own_columns(found: Sequence[str]) -> dict[str, str]:
    """Names by which columns are found: their own, and in lower case without blanks around → the column."""
    return {name.strip().lower(): name for name in reversed(found)} | {name: name for name in found}


def mapped_columns(found: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """The fields of a mapping whose column is there, and the column as the row has it."""
    loose = own_columns(found)
    given = {field: loose.get(column, loose.get(column.strip().lower())) for field, column in mapping.items()}
    return {field: column for field, column in given.items() if column is not None}


def available_fields(found: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """The fields that a row with these columns has, and the column of each. The mapping comes first."""
    loose, mapped = own_columns(found), mapped_columns(found, mapping)
    taken = set(mapped.values())
    own = {field: loose[field] for field in FIELDS if field in loose and field not in mapping}
    return {field: column for field, column in own.items() if column not in taken} | mapped


def find_layout(
    found: Sequence[str], mapping: Mapping[str, str], *, require_output: bool
) -> tuple[Layout, dict[str, str]] | None:
    """The layout of a row with these columns, and the column of each of its parts; None when they fit none.

    A row that has none of the mapped columns is read by its own names: it may be of another source than they are.
    """
    available = available_fields(found, mapping)
    if not set(mapping) & set(available):
        mapping, available = {}, available_fields(found, {})
    for needs_answer in (True,) if require_output else (True, False):
        for layout in LAYOUTS:
            if not set(mapping) <= set(layout.fields) or not set(layout.needed(needs_answer)) <= set(available):
                continue
            if layout is TEXT and not (require_output and (len(found) == 1 or "text" in mapping)):
                continue
            parts = {
                part: next((available[field] for field in fields if field in available), None)
                for part, fields in layout.parts.items()
            }
            return layout, {part: column for part, column in parts.items() if column is not None}
    return None


def no_such_column(file: str, found: Iterable[str], field: str, column: str) -> DataError:
    """The error for a mapped column that is not there."""
    names = [str(name) for name in found]
    guess = nearest(column, names)
    return DataError(
        f"{file} has no column {shown(column)} (asked for as {field}).",
        hint=(f"Did you mean {guess!r}? " if guess else "") + f"Its columns: {listed(names) or 'none'}.",
    )


def unknown_layout(file: str, row: Mapping[str, Any]) -> DataError:
    """The error for a row whose columns fit no layout: what they hold, and the flag to use."""
    there = listed(f"{name} ({kind(value)})" for name, value in row.items()) or "none"
    guess = _guess(row)
    if not guess:
        way = "Say which column is which with --columns instruction=<column> output=<column>."
    elif list(guess) == ["text"]:
        way = (
            f"To learn the texts themselves: {_flag(guess)}. For questions and answers: "
            f"{_flag({'instruction': guess['text'], 'output': '<column>'})}."
        )
    else:
        way = f"Say which column is which: {_flag(guess)}."
    return DataError(f"{file}: its columns fit no layout: {there}.", hint=f"{way} docs/data.md has the known layouts.")


def _flag(columns: Mapping[str, str]) -> str:
    return "--columns " + " ".join(
        f"{field}={column}" if column == "<column>" else shlex.quote(f"{field}={column}")
        for field, column in columns.items()
    )


def _guess(row: Mapping[str, Any]) -> dict[str, str]:
    """The likeliest mapping for a row: answer and question by their names, else the last and the first text."""
    plain = [name for name, value in row.items() if kind(value) in ("text", "a number", "a boolean")]
    usable = [name for name in plain if not _rank(name, _NEITHER)]
    texts = [name for name in usable if kind(row[name]) == "text"]
    answer = max(usable, key=lambda name: _rank(name, _ANSWERS), default=None)
    if answer is None or not _rank(answer, _ANSWERS):
        answer = texts[-1] if len(texts) > 1 else None
    texts = [name for name in texts if name != answer]
    if not texts:
        return {}
    if answer is None:
        return {"text": texts[0]}
    question = max(texts, key=lambda name: _rank(name, _QUESTIONS))
    further = [name for name in texts if name != question]
    return {
        "instruction": question,
        **({"input": further[0]} if len(further) == 1 else {}),
        "output": answer,
    }


def _rank(name: str, words: Sequence[str]) -> int:
    """How near a column's name is to the head of a list of words: 0 when none of them is part of it."""
    parts = "".join(sign if sign.isalpha() else " " for sign in name.lower()).split()
    return max((len(words) - at for at, word in enumerate(words) if word in parts or name.lower() == word), default=0)
