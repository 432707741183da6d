"""The tokenizer's own chat template, and where in its text the answers stand.

The conversation is rendered whole, and once more up to each learned answer: with the generation prompt before it, and
with the answer in it. Where each of these is a beginning of the whole, the answers can be cut out of it, and the pieces
put together are the whole conversation, letter by letter. A template that writes earlier turns in another way once
others follow (many leave out what was thought) fails this, and is refused rather than trained on text that it never
writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptune.choices import LAST_TURN
from ptune.data.blocks import Block
from ptune.data.example import Example, learned_turns
from ptune.data.segments import History, Segments, as_segments, digest
from ptune.errors import ConfigError, DataError, one_line, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


def chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The tokenizer's chat template.

    Raises:
        ConfigError: It has none.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template.",
            hint="Use the template 'tutorial', or an instruction-tuned model.",
        )
    return ChatTemplate(tokenizer)


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """The tokenizer's own chat template; an answer is everything it writes after the generation prompt."""

    tokenizer: PreTrainedTokenizerBase
    name: str = "chat"
    text: str = "chat"
    blocks: tuple[Block, ...] = ()

    @property
    def fingerprint(self) -> str:
        """The chat template's own text."""
        return digest(self.name, repr(self.tokenizer.chat_template))

    def segments(self, example: Example, train_on: str = LAST_TURN) -> Segments:
        """Prompts and answers of an example."""
        learned = learned_turns(example, train_on)
        if not learned:
            return Segments("", "", False)
        messages = _with_extras(_messages(example.turns()[: learned[-1] + 1], example.system), example)
        before_turns = len(messages) - learned[-1] - 1  # the system message
        whole = self._render(messages, generation=False, place=example.source)
        self._check_calls(messages, whole, example.source)
        pairs: list[tuple[str, str]] = []
        start = 0
        for turn in learned:
            at = before_turns + turn
            given = self._render(messages[:at], generation=True, place=example.source)
            ended = whole if turn == learned[-1] else self._up_to(messages[: at + 1], whole, example.source)
            _check_beginning(whole, given, ended, messages[at], example.source)
            pairs.append((whole[start : len(given)], whole[len(given) : len(ended)]))
            start = len(ended)
        return as_segments(pairs, add_special_tokens=False)

    def prompt(
        self,
        instruction: str,
        input: str = "",  # noqa: A002 (the field name of the data)
        history: History = (),
        system: str | None = None,
    ) -> Segments:
        """The conversation with the opening of the answer."""
        asked = Example(instruction=instruction, input=input)
        messages = _messages((*history, ("user", asked.question)), system)
        return Segments(self._render(messages, generation=True), "", False)

    def _up_to(self, messages: Sequence[Message], whole: str, place: str) -> str:
        """The conversation up to an earlier answer, without the end token that some templates put behind a last one."""
        text = self._render(messages, generation=False, place=place)
        shorter = text.removesuffix(str(self.tokenizer.eos_token))
        return shorter if whole.startswith(shorter) and not whole.startswith(text) else text

    def _check_calls(self, messages: Sequence[Message], whole: str, place: str) -> None:
        """Raise `ConfigError` where the template leaves tool calls out."""
        if not any("tool_calls" in message for message in messages):
            return
        bare = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
        if self._render(bare, generation=False, place=place) == whole:
            raise ConfigError(
                f"{_at(place)}there are tool calls, and the chat template does not write them.",
                hint="Use a model with a chat template for tools, or leave such rows out.",
            )

    def _render(self, messages: Sequence[Message], *, generation: bool, place: str = "") -> str:
        import jinja2

        # The template is a program of the model's: whatever goes wrong in it is its fault.
        faults = (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation)
        except (*faults, RecursionError, MemoryError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"{_at(place)}the chat template refuses the messages ({roles}): {one_line(error).rstrip('.')}.",
                hint="Leave out what it has no place for.",
            ) from error
        return str(text)


def _at(place: str) -> str:
    return f"{place}: " if place else ""


def _messages(turns: Sequence[tuple[str, str]], system: str | None) -> list[Message]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": role, "content": content} for role, content in turns)]


def _with_extras(messages: list[Message], example: Example) -> list[Message]:
    """The messages with what the data have beside role and content."""
    before_turns = 1 if example.system else 0
    for number, extras in example.extras:
        if before_turns + number < len(messages):
            messages[before_turns + number] |= json.loads(extras)
    return messages


def _check_beginning(whole: str, given: str, ended: str, message: Message, place: str) -> None:
    """Raise `ConfigError` where an answer cannot be cut out of the whole conversation, or is not in it as it was given.

    Args:
        whole: The whole conversation, rendered.
        given: The conversation up to the answer, with the generation prompt.
        ended: The conversation up to the answer and with it.
        message: The answer.
        place: The row.
    """
    if not whole.startswith(ended):
        raise ConfigError(
            f"{_at(place)}the chat template writes an earlier answer in another way once others follow "
            f"({shown(message['content'], 30)}): it can be learned as the last one alone.",
            hint="Use --train-on last, or the template 'tutorial'.",
        )
    if not ended.startswith(given):
        raise ConfigError(
            f"{_at(place)}the chat template writes a prompt for generation that its finished conversation does not "
            f"begin with: {given[-40:]!r}.",
            hint="Use the template 'tutorial' or a text of your own.",
        )
    answer = ended[len(given) :]
    if message["content"].strip() not in answer and _dense(message["content"]) not in _dense(answer):
        raise ConfigError(
            f"{_at(place)}the chat template does not write the answer as it stands in the data "
            f"({shown(message['content'], 60)}) but as {shown(answer, 60)}.",
            hint="Use the template 'tutorial' or a text of your own, or leave out of the answers what it leaves out.",
        )


def _dense(text: str) -> str:
    return "".join(text.split())
