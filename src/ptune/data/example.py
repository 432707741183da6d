"""One training or evaluation record, whatever file it came from, and which of its turns are learned."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ptune.choices import ALL_TURNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question and its answer. Every source (file, Arrow folder, hub) becomes a sequence of these.

    A conversation is its last question with its answer, and what stands before and between. Turns are numbered from 0
    through `history`, the question, `steps` and the answer.
    """

    instruction: str
    """What is asked: the instruction, the prompt, the text to label, or the last user turn."""
    input: str = ""
    """Further material for the instruction; empty when there is none."""
    output: str = ""
    """The answer to learn; empty only in files that hold questions alone."""
    further: tuple[str, ...] = ()
    """Other right answers, where a reader was asked for all of them."""
    system: str | None = None
    """System message, for templates that have a place for it."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns as (role, content), oldest first."""
    steps: tuple[tuple[str, str], ...] = ()
    """Turns between the question and its answer: tool calls and what the tools gave."""
    train: tuple[tuple[int, bool], ...] = ()
    """Turns of which the data say whether they are learned, by number."""
    extras: tuple[tuple[int, str], ...] = ()
    """What a turn has beside role and content (`tool_calls`…): its number, and a JSON object for the chat template."""
    document: bool = False
    """Whether `output` is a text of its own, learned from its first token to its last; no template is applied."""
    source: str = ""
    """Where the row stands: `file:line` in text files (lines from 1), `name[row]` in tables (rows from 0)."""

    @property
    def question(self) -> str:
        """The user's turn: the instruction, and the input on the lines after it."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction

    @property
    def answered(self) -> bool:
        """Whether the last answer says something: text, or a call of a tool."""
        return bool(self.output.strip()) or len(self.history) + len(self.steps) + 1 in self.calling()

    def calling(self) -> set[int]:
        """Numbers of the turns that call tools."""
        return {number for number, extras in self.extras if "tool_calls" in json.loads(extras)}

    def turns(self) -> tuple[tuple[str, str], ...]:
        """Every turn as (role, content), without the system message."""
        return (*self.history, ("user", self.question), *self.steps, ("assistant", self.output))

    def content(self) -> tuple[object, ...]:
        """Everything but the place: equal for rows that repeat one another."""
        return (
            *(self.instruction, self.input, self.output, self.further, self.system, self.history),
            *(self.steps, self.train, self.extras, self.document),
        )


def answers(example: Example) -> list[int]:
    """Numbers of the turns that could be learned: what an assistant says after a user, unless it is empty."""
    if not example.history and not example.steps:
        return [1]
    turns = example.turns()
    first = next(number for number, (role, _) in enumerate(turns) if role == "user")
    calling = example.calling()
    found = [
        number
        for number, (role, content) in enumerate(turns[:-1])
        if role == "assistant" and number > first and (content.strip() or number in calling)
    ]
    return [*found, len(turns) - 1]


def learned_turns(example: Example, train_on: str) -> list[int]:
    """Numbers of the turns that are learned: those the data say, and of the others the last one or all of them."""
    found = answers(example)
    said = dict(example.train)
    return [number for number in found if said.get(number, train_on == ALL_TURNS or number == found[-1])]
