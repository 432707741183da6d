"""Column layouts: how a row of named values becomes an `Example`.

Four layouts are recognised by their column names, in this order: Alpaca (instruction, output; input optional),
prompt/completion, chat (`messages`), and text/label. A column mapping gives any column the name of a field. Only the
text itself is accepted as text: a number where an answer belongs is an error with its place, never converted in
silence. The one exception is the field `label`, where numbers and booleans are how classes are commonly written; they
become their JSON spelling (`1`, `true`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptune.data.example import Example
from ptune.errors import ConfigError, DataError, listed, nearest, shown, unknown

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Layout:
    """A set of fields that together make an example."""

    name: str
    question: str
    """The field that must be there."""
    answer: str | None
    """The field of the answer; None when it is part of the question field (`messages`)."""
    optional: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field of the layout."""
        return (self.question, *((self.answer,) if self.answer else ()), *self.optional)

    def needed(self, require_output: bool) -> tuple[str, ...]:
        """The fields a file must have."""
        return (self.question, self.answer) if self.answer and require_output else (self.question,)


LAYOUTS = (
    Layout("Alpaca", "instruction", "output", ("input", "system", "history")),
    Layout("prompt/completion", "prompt", "completion", ("system", "history")),
    Layout("chat", "messages", None),
    Layout("text/label", "text", "label"),
)
FIELDS = tuple(dict.fromkeys(field for layout in LAYOUTS for field in layout.fields))
EXPECTED = "instruction and output (input optional); prompt and completion; messages; or text and label"


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
            f"columns: {', '.join(columns)} do not go together.", hint=f"Use the fields of one layout: {EXPECTED}."
        )
    return dict(columns)


@dataclass(frozen=True)
class RowParser:
    """Turns the rows of one file into examples."""

    layout: Layout
    columns: Mapping[str, str]
    """Field of the layout → column of the file."""
    file_columns: tuple[str, ...]
    require_output: bool

    @classmethod
    def for_columns(
        cls, found: Sequence[str], mapping: Mapping[str, str], *, file: str, require_output: bool
    ) -> RowParser:
        """The parser for a file with these columns.

        Raises:
            DataError: The columns fit no layout, or a mapped column is not in the file.
        """
        there = listed(found) or "none"
        for field, column in mapping.items():
            if column not in found:
                guess = nearest(column, [str(name) for name in found])
                raise DataError(
                    f"{file} has no column {shown(column)} (asked for as {field}).",
                    hint=(f"Did you mean {guess!r}? " if guess else "") + f"Its columns: {there}.",
                )
        taken = set(mapping.values())
        available = {field: field for field in FIELDS if field in found and field not in taken} | dict(mapping)
        for layout in LAYOUTS:
            if set(mapping) <= set(layout.fields) and set(layout.needed(require_output)) <= set(available):
                columns = {field: available[field] for field in layout.fields if field in available}
                return cls(layout, columns, tuple(found), require_output)
        raise DataError(
            f"{file}: its columns ({there}) fit no layout.",
            hint=f"Expected {EXPECTED}. Or map your own with columns, e.g. instruction=<column>, output=<column>.",
        )

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns of the file that no field reads."""
        return tuple(name for name in self.file_columns if name not in self.columns.values())

    def parse(self, row: Mapping[str, Any], place: str) -> Example:
        """One row as an `Example`.

        Raises:
            DataError: A value that is missing or not text; names `place`, the column and what was found.
        """
        if self.layout.name == "chat":
            return _from_messages(self._value(row, "messages", place), place, self.require_output)
        answer = self.layout.answer or ""
        return Example(
            instruction=self._text(row, self.layout.question, place),
            input=self._text(row, "input", place, empty_if_null=True) if "input" in self.columns else "",
            output=self._text(row, answer, place, empty_if_null=True) if answer in self.columns else "",
            system=(self._text(row, "system", place, empty_if_null=True) or None) if "system" in self.columns else None,
            history=_history(row.get(self.columns["history"]), place) if "history" in self.columns else (),
            source=place,
        )

    def _value(self, row: Mapping[str, Any], field: str, place: str) -> Any:
        column = self.columns[field]
        if column not in row:
            if field in self.layout.needed(self.require_output):
                there = listed(row) or "none"
                raise DataError(f"{place}: the row has no {_named(field, column)}.", hint=f"Its columns: {there}.")
            return None
        return row[column]

    def _text(self, row: Mapping[str, Any], field: str, place: str, *, empty_if_null: bool = False) -> str:
        value = self._value(row, field, place)
        if value is None and empty_if_null:
            return ""
        if field == "label" and isinstance(value, (bool, int)):
            return json.dumps(value)
        return _check_text(value, _named(field, self.columns[field]), place)


def _named(field: str, column: str) -> str:
    return f"{field!r}" if field == column else f"{shown(column)} ({field})"


def _kind(value: Any) -> str:
    """What a value is, in the words of the file, with the value when it is short."""
    if value is None:
        return "null"
    kinds = ((bool, "a boolean"), ((int, float), "a number"), (list, "a list"), (dict, "an object"))
    name = next((word for kind, word in kinds if isinstance(value, kind)), type(value).__name__)
    return f"{name} ({shown(value, 40)})"


def _check_text(value: Any, what: str, place: str) -> str:
    """`value`, if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise DataError(f"{place}: {what} is {_kind(value)}, not text.", hint="Write it as a string.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: {what} holds half of a surrogate pair ({value[error.start]!a}) at character {error.start}.",
                hint="Write the whole character.",
            ) from None
    return value


def _turn(message: Any, number: int, place: str) -> tuple[str, str]:
    """One chat message as (role, content)."""
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise DataError(
            f"{place}: message {number} is {_kind(message)}, not an object with role and content.",
            hint='Write it as {"role": "user", "content": "..."}.',
        )
    role = _check_text(message["role"], f"the role of message {number}", place)
    if role not in ROLES:
        raise unknown(f"role in message {number} of {place}:", role, ROLES, error=DataError)
    return role, _check_text(message["content"], f"the content of message {number} ({role})", place)


def _from_messages(messages: Any, place: str, require_output: bool) -> Example:
    """A conversation: its last answer is learned, the user turn before it is the instruction, the rest is history."""
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"{place}: messages is {_kind(messages)}, not a list of messages.",
            hint="Write it as [{role: user, content: ...}, {role: assistant, content: ...}].",
        )
    turns = [_turn(message, number, place) for number, message in enumerate(messages, start=1)]
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    output = ""
    if turns and turns[-1][0] == "assistant":
        output = turns.pop()[1]
    elif require_output:
        last = turns[-1][0] if turns else "system"
        raise DataError(
            f"{place}: the conversation ends with a {last} message, so there is no answer to learn.",
            hint="End it with an assistant message.",
        )
    if not turns or turns[-1][0] != "user":
        raise DataError(f"{place}: there is no user message before the answer.", hint="Put a user message before it.")
    return Example(instruction=turns[-1][1], output=output, system=system, history=tuple(turns[:-1]), source=place)


def _history(value: Any, place: str) -> tuple[tuple[str, str], ...]:
    """Earlier turns, given as messages or as [question, answer] pairs."""
    if value is None or value == []:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{place}: history is {_kind(value)}, not a list.", hint="Give [question, answer] pairs.")
    turns: list[tuple[str, str]] = []
    for number, item in enumerate(value, start=1):
        if isinstance(item, list) and len(item) == 2:
            turns.append(("user", _check_text(item[0], f"the question of history entry {number}", place)))
            turns.append(("assistant", _check_text(item[1], f"the answer of history entry {number}", place)))
        else:
            turns.append(_turn(item, number, place))
    return tuple(turns)
