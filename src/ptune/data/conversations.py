"""Conversations: lists of messages in the spellings that people have become an `Example`.

A message is an object with `role` and `content`, or with `from` and `value` (ShareGPT). Roles are mapped to `system`,
`user`, `assistant` and `tool`. Content is text, or a list of parts of which the text is joined; a picture or a sound
cannot be trained on and is refused. The last answer and the question before it make the example, the rest is its
history; what stands after the last answer is left out. `train` (or `weight`) says whether a message is learned.
`tool_calls`, `tool_call_id`, `name` and `reasoning_content` are kept for the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ptune.data.data_report import DataReport
from ptune.data.example import Example
from ptune.data.values import Texts, check_text, described
from ptune.errors import DataError, shown, unknown

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""Roles as files write them → roles as chat templates know them."""
_PASSED_ON = ("tool_calls", "tool_call_id", "name", "reasoning_content")
_READ = {"role", "from", "content", "value", "train", "weight", "function_call", *_PASSED_ON}
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(slots=True)
class Turn:
    """One message, its role a standard one."""

    role: str
    content: str
    train: bool | None = None
    """Whether it is learned, where the data say so."""
    extras: dict[str, Any] = field(default_factory=dict)
    """What it has for the chat template beside role and content."""

    @property
    def says_something(self) -> bool:
        """Whether there is anything in it to learn."""
        return bool(self.content.strip() or "tool_calls" in self.extras)


@dataclass(frozen=True, slots=True)
class ConversationReader:
    """Reads the conversations of one column."""

    column: str
    texts: Texts
    report: DataReport
    require_output: bool

    def read(self, messages: Any, place: str, system: str | None = None) -> Example | None:
        """One conversation; None when no user speaks in it.

        Args:
            messages: The list of messages.
            place: Where it stands.
            system: The row's own system message, beside the list.

        Raises:
            DataError: Messages that cannot be read; names the message.
        """
        if not isinstance(messages, list) or not messages:
            raise DataError(
                f"{place}: {self.column} is {described(messages)}, not a list of messages.",
                hint="Write it as [{role: user, content: ...}, {role: assistant, content: ...}].",
            )
        turns = [self._turn(message, number, place) for number, message in enumerate(messages, start=1)]
        self._note_unused(messages)
        if turns[0].role == "system":
            own = turns.pop(0).content
            if system and own and own != system:
                raise DataError(
                    f"{place}: there are two system messages, {shown(system, 30)} and {shown(own, 30)}.",
                    hint="Keep one of them.",
                )
            system = own or system
        self._cut(turns)
        return self._example(turns, place, system)

    def history(self, value: Any, place: str) -> list[Turn]:
        """Earlier turns, given as messages or as [question, answer] pairs.

        Raises:
            DataError: It is neither; names the entry.
        """
        if value is None:
            return []
        if not isinstance(value, list):
            raise DataError(
                f"{place}: {self.column} is {described(value)}, not a list.", hint="Give [question, answer] pairs."
            )
        turns: list[Turn] = []
        for number, item in enumerate(value, start=1):
            if isinstance(item, list) and len(item) == 2:
                entry = f"of history entry {number}"
                turns.append(Turn("user", self._text(item[0], f"the question {entry}", place)))
                turns.append(Turn("assistant", self._text(item[1], f"the answer {entry}", place)))
            else:
                turns.append(self._turn(item, number, place))
        return turns

    def _cut(self, turns: list[Turn]) -> None:
        """Leave out what stands after the last answer; a last question stays where no answer is needed."""
        last = max(
            (at for at, turn in enumerate(turns) if turn.role == "assistant" and turn.says_something), default=-1
        )
        asks = turns and turns[-1].role == "user"
        if last in (-1, len(turns) - 1) or (asks and not self.require_output):
            return
        del turns[last + 1 :]
        self.report.cut_conversations += 1

    def _example(self, turns: list[Turn], place: str, system: str | None) -> Example | None:
        answer = turns[-1] if turns and turns[-1].role == "assistant" else None
        before = turns if answer is None else turns[:-1]
        asked = max((at for at, turn in enumerate(before) if turn.role == "user"), default=None)
        if asked is None:
            return None
        pairs = [(turn.role, turn.content) for turn in turns]
        return Example(
            instruction=before[asked].content,
            output="" if answer is None else answer.content,
            system=system or None,
            history=tuple(pairs[:asked]),
            steps=tuple(pairs[asked + 1 : len(before)]),
            source=place,
            **marks(turns, place),
        )

    def _turn(self, message: Any, number: int, place: str) -> Turn:
        """One message, its number counted from 1 for people."""
        if not isinstance(message, dict) or (message.get("role") is None and message.get("from") is None):
            raise _no_message(message, number, place)
        spoken = message.get("role") if message.get("role") is not None else message["from"]
        if not isinstance(spoken, str):
            raise DataError(
                f"{place}: the role of message {number} is {described(spoken)}, not text.",
                hint="Write it as user, assistant, system or tool.",
            )
        plain = spoken.strip().lower()
        role = ROLES.get(plain)
        if role is None:
            raise unknown(f"role in message {number} of {place}:", spoken, ROLES, error=DataError)
        extras = {name: message[name] for name in _PASSED_ON if message.get(name)}
        content = message["content"] if "content" in message else message.get("value")
        if plain == "function_call" or message.get("function_call"):
            extras["tool_calls"] = _single_call(message.get("function_call") or content, number, place)
            content = content if message.get("function_call") else ""
        elif content is None and not extras and not {"content", "value"} & message.keys():
            raise _no_message(message, number, place)
        if "tool_calls" in extras:
            extras["tool_calls"] = _calls(extras["tool_calls"], number, place)
        if not (isinstance(content, str) and content.isascii()):
            content = self._text(content, f"the content of message {number} ({spoken})", place)
        return Turn(role, content, _trains(message, role, number, place), extras)

    def _text(self, content: Any, what: str, place: str) -> str:
        """The text of a message's content: as it is, or joined from its parts."""
        if not isinstance(content, list):
            return self.texts.of(content, self.column, what, place)
        texts = []
        for number, part in enumerate(content, start=1):
            kind = part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else "text"
            if kind not in _TEXT_PARTS:
                raise DataError(
                    f"{place}: part {number} of {what} is of the type {shown(kind)}, not text.",
                    hint="ptune trains on text alone: leave such parts, or such rows, out.",
                )
            text = part.get("text") if isinstance(part, dict) else part
            texts.append(self.texts.of(text, self.column, f"part {number} of {what}", place))
        return "".join(texts)

    def _note_unused(self, messages: list[dict[str, Any]]) -> None:
        """Count the keys of messages that nothing reads, once a row."""
        unused = {key for message in messages for key in message.keys() - _READ if message[key] is not None}
        for key in sorted(map(str, unused)):
            self.report.unused_columns[f"{self.column}.{key}"] += 1


def marks(turns: Sequence[Turn], place: str) -> dict[str, Any]:
    """`Example`'s fields for what turns have beside role and content."""
    return {
        "train": tuple((at, turn.train) for at, turn in enumerate(turns) if turn.train is not None),
        "extras": tuple((at, _as_json(turn.extras, place)) for at, turn in enumerate(turns) if turn.extras),
    }


def _no_message(message: Any, number: int, place: str) -> DataError:
    return DataError(
        f"{place}: message {number} is {described(message)}, not an object with role and content.",
        hint='Write it as {"role": "user", "content": "..."}.',
    )


def _trains(message: Mapping[str, Any], role: str, number: int, place: str) -> bool | None:
    """Whether a message says that it is learned (True), that it is not (False), or nothing."""
    said = {name: message[name] for name in ("train", "weight") if message.get(name) is not None}
    if not said:
        return None
    for name, value in said.items():
        if value not in (0, 1):
            raise DataError(
                f"{place}: {name} of message {number} is {described(value)}; a message is learned or it is not.",
                hint=f"Write {name} as {'true or false' if name == 'train' else '1 or 0'}.",
            )
    train = all(said.values())
    if role == "assistant":
        return train
    if train:
        raise DataError(
            f"{place}: message {number} ({role}) says that it is to be learned ({', '.join(said)}); only answers are.",
            hint="Set it in assistant messages alone.",
        )
    return None


def _single_call(call: Any, number: int, place: str) -> list[Any]:
    """A call in the older spelling (`function_call`): an object, a list of them, or either as JSON text."""
    if isinstance(call, str):
        try:
            call = json.loads(call)
        except (ValueError, RecursionError):
            raise DataError(
                f"{place}: the function call of message {number} is {described(call)}, not JSON.",
                hint='Write it as {"name": ..., "arguments": {...}}.',
            ) from None
    return call if isinstance(call, list) else [call]


def _calls(calls: Any, number: int, place: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates take them: `{"type": "function", "function": {"name", "arguments"}}`."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{place}: a tool call of message {number} is {described(call)}, without the name of a function.",
                hint='Write it as {"type": "function", "function": {"name": ..., "arguments": {...}}}.',
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):  # a template may write what is no JSON as it is
                arguments = json.loads(arguments)
        about = {key: call[key] for key in ("id", "type") if call.get(key) is not None}
        called = {"name": function["name"], "arguments": arguments}
        found.append({"type": "function", **about, "function": called})
    return found


def _as_json(extras: Mapping[str, Any], place: str) -> str:
    try:
        text = json.dumps(extras, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: a tool call cannot be written as JSON: {error}.", hint="Write plain values."
        ) from None
    return check_text(text, "a tool call", place)
