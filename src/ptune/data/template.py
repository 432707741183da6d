r"""Templates: how an `Example` becomes the text of a prompt and the text of its answer.

Three kinds. `tutorial` is the layout `Human: …\n\nAssistant: ` with the end-of-sequence token behind the answer, token
for token what the P-tuning tutorial's `process_func` makes. `chat` is the tokenizer's own chat template. Any text with
`{output}` and `{instruction}` (or `{input}`) is a template of the user's, and may have places for virtual tokens (see
`ptune.data.blocks`). The same object writes the prompt for training and for generation, so the two cannot drift apart.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ptune.choices import LAST_TURN
from ptune.data.blocks import Block, is_block, read_blocks
from ptune.data.chat_template import chat_template
from ptune.data.example import Example, learned_turns
from ptune.data.opened import read_text
from ptune.data.segments import History, Insertion, Segments, as_segments, digest, refuse_extras
from ptune.errors import ConfigError, ModelError, shown, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["History", "Segments", "Template", "TutorialTemplate", "end_token", "get_template"]

NAMES = ("tutorial", "chat")
_FIELDS = ("instruction", "input", "system", "output", "eos_token")
PLACEHOLDER = re.compile(r"\{\{(\w+|prompt:[^{}]*)\}\}|\{([A-Za-z_]\w*|prompt:[^{}]*)\}")
"""A placeholder of a template: a place for something, or in doubled braces the text itself."""


class Template(Protocol):
    """What every template offers."""

    @property
    def name(self) -> str:
        """`tutorial`, `chat` or `custom`."""

    @property
    def text(self) -> str:
        """What to store: `get_template(text, tokenizer)` makes this template again."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Its places for virtual tokens, in order; none where it does not say how many stand before the text."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the text made from an example would change."""

    def segments(self, example: Example, train_on: str = LAST_TURN) -> Segments:
        """Prompt and answer of an example, for training and evaluation.

        Args:
            example: The example.
            train_on: `last`, or `all-turns` to learn the earlier answers of a conversation too. What the example says
                of a turn comes first. Where nothing of it is learned, the last answer is empty.

        Raises:
            ConfigError: The template has no place for a part of it, or cannot tell the answers apart.
            DataError: The chat template refuses the messages.
        """

    def prompt(
        self,
        instruction: str,
        input: str = "",  # noqa: A002 (the field name of the data)
        history: History = (),
        system: str | None = None,
    ) -> Segments:
        """The prompt for generation: the same text as in training, with an empty answer."""


def get_template(
    name_or_text: str, tokenizer: PreTrainedTokenizerBase, *, files: bool = True, virtual_tokens: int | None = None
) -> Template:
    """The template of that name, or made from that text.

    Args:
        name_or_text: `tutorial`, `chat`, a text with `{output}` and `{instruction}` and/or `{input}`
            (also `{system}` and `{eos_token}`; `{{name}}` writes `{name}` itself), or `@file.txt` holding such a text.
            `{prompt:3}` is a place for three virtual tokens.
        tokenizer: Gives the end-of-sequence token and the chat template.
        files: False for what a prompt folder says: it may name no file, and a text may begin with `@`.
        virtual_tokens: How many `{prompt}` stands for, where a template's only block has no number.

    Raises:
        ConfigError: An unknown name, a text whose placeholders cannot be used, or a tokenizer without a chat template.
        ModelError: The tokenizer has no end-of-sequence token.
        DataError: The file cannot be read.
    """
    if name_or_text == "chat":
        return chat_template(tokenizer)
    if name_or_text == "tutorial":
        return TutorialTemplate(end_token(tokenizer))
    if files and name_or_text.startswith("@"):
        return _custom(template_text(name_or_text), end_token(tokenizer), virtual_tokens)
    if "{" in name_or_text:
        return _custom(name_or_text, end_token(tokenizer), virtual_tokens)
    error = unknown("template" if files else "template in the prompt folder:", name_or_text, NAMES)
    way = "Or give a text with {instruction} and {output}, or @file." if files else "Give another one with --template."
    error.hint = f"{error.hint} {way}"
    raise error


def template_text(text: str) -> str:
    """A template's text, read from a file where it is `@file`.

    Raises:
        ConfigError: There is no such file.
        DataError: It cannot be read.
    """
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    with suppress(RuntimeError):  # ~name of nobody's
        path = path.expanduser()
    if not path.is_file():
        raise ConfigError(
            f"the template file {shown(str(path), 200)} does not exist.", hint="Check the path after '@'."
        )
    return read_text(path).removesuffix("\n").removesuffix("\r")


def end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that ends an answer.

    Raises:
        ModelError: The tokenizer has none.
    """
    eos = tokenizer.eos_token
    if not eos:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so an answer could not be ended.",
            hint="Set tokenizer.eos_token to the token that ends an answer; a model that writes none, such as BERT, is "
            "for ptune train --task classify, tag, qa or fill.",
        )
    return str(eos)


@dataclass(frozen=True)
class TutorialTemplate:
    r"""`Human: {instruction}\n{input}\n\nAssistant: {output}{eos}`, exactly as the tutorial writes it.

    Beyond the tutorial: earlier turns stand before it in the same form, each answer with its end token; a system
    message is a paragraph of its own at the start.
    """

    eos: str
    name: str = "tutorial"
    text: str = "tutorial"
    blocks: tuple[Block, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Name and end token."""
        return digest(self.name, self.eos)

    def segments(self, example: Example, train_on: str = LAST_TURN) -> Segments:
        """Prompts and answers of an example."""
        refuse_extras(example, self.name)
        turns, learned = example.turns(), learned_turns(example, train_on)
        pairs: list[tuple[str, str]] = []
        given = f"{example.system}\n\n" if example.system else ""
        for number, (role, content) in enumerate(turns[: learned[-1] + 1] if learned else ()):
            given += _opening(role, content)
            if role == "assistant" and number in learned:
                pairs.append((given, content + self.eos))
                given = "\n\n"
            elif role == "assistant":
                given += content + self.eos + "\n\n"
        return as_segments(pairs, add_special_tokens=True)

    def prompt(
        self,
        instruction: str,
        input: str = "",  # noqa: A002 (the field name of the data)
        history: History = (),
        system: str | None = None,
    ) -> Segments:
        """The prompt up to and including `Assistant: `."""
        asked = Example(instruction=instruction, input=input, history=tuple(history), system=system)
        return replace(self.segments(asked), answer="")


def _opening(role: str, content: str) -> str:
    """What the tutorial template writes for a turn; of an assistant's, what stands before its text."""
    if role == "assistant":
        return "Assistant: "
    if role == "user":
        return f"Human: {content}".strip() + "\n\n"
    raise ConfigError(
        f"the tutorial template has no place for a {role} message among the earlier turns.",
        hint="Use the template 'chat'.",
    )


def _custom(text: str, eos: str, virtual_tokens: int | None) -> CustomTemplate:
    """A template of the user's, checked."""
    names = [match[2] for match in PLACEHOLDER.finditer(text) if match[2]]
    short = shown(text, 60)
    for name in names:
        if name not in _FIELDS and not is_block(name):
            error = unknown(
                f"placeholder in the template {short}:",
                "{" + name + "}",
                ["{" + one + "}" for one in (*_FIELDS, "prompt:N")],
            )
            error.hint = f"{error.hint} Write {{{{{name}}}}} for the text itself."
            raise error
    if names.count("output") != 1:
        raise ConfigError(
            f"the template {short} has {names.count('output')} times {{output}}.",
            hint="Put {output} in it once, for the answer.",
        )
    before, after = names[: names.index("output")], names[names.index("output") + 1 :]
    if not {"instruction", "input"} & set(before):
        raise ConfigError(f"the template {short} asks nothing.", hint="Put {instruction} or {input} before {output}.")
    late = [name for name in after if name != "eos_token"]
    if late and is_block(late[0]):
        raise ConfigError(
            f"the template {short} has {{{late[0]}}} after {{output}}, where no part of the answer sees it.",
            hint="Put it before {output}: a causal model reads from left to right.",
        )
    if late:
        raise ConfigError(
            f"the template {short} has {{{late[0]}}} after {{output}}, where the answer would contain it.",
            hint="Put it before {output}.",
        )
    blocks = template_blocks(text, virtual_tokens)
    # The text that is stored says the number.
    numbered = PLACEHOLDER.sub(lambda match: str(blocks[0]) if match[2] == "prompt" else match[0], text)
    return CustomTemplate(numbered, eos, blocks)


def template_blocks(text: str, virtual_tokens: int | None = None) -> tuple[Block, ...]:
    """A template's places for virtual tokens; those with nothing before them lead.

    Args:
        text: As `get_template` takes it; a name has none.
        virtual_tokens: How many `{prompt}` stands for.

    Raises:
        ConfigError: One of them cannot be used.
    """
    found, start = [], 0
    for match in PLACEHOLDER.finditer(text):
        if match[2] and is_block(match[2]):
            leads = match.start() == start
            found.append((match[2], leads))
            start = match.end() if leads else start
    return tuple(read_blocks(found, shown(text, 60), virtual_tokens))


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a template of the user's for a part of the question."""

    name: str
    """`instruction`, `input` or `system`."""


@dataclass(frozen=True)
class CustomTemplate:
    """A text of the user's: what stands before `{output}` is the prompt, the rest with the end token the answer."""

    text: str
    eos: str
    blocks: tuple[Block, ...] = ()
    name: str = "custom"

    @property
    def fingerprint(self) -> str:
        """The text and the end token."""
        return digest(self.name, self.text, self.eos, *map(repr, self.blocks))

    def segments(self, example: Example, train_on: str = LAST_TURN) -> Segments:
        """Prompt and answer of an example."""
        refuse_extras(example, self.name)
        if not learned_turns(example, train_on):
            return Segments("", "", True)
        place = f"{example.source}: " if example.source else ""
        earlier = (*example.history, *example.steps)
        question, inside = self._question(example.instruction, example.input, earlier, example.system, place)
        ending, _ = self._fill(self._halves()[1], {})
        if not ending.endswith(self.eos):
            ending += self.eos
        return Segments(question, example.output + ending, True, inside=inside)

    def prompt(
        self,
        instruction: str,
        input: str = "",  # noqa: A002 (the field name of the data)
        history: History = (),
        system: str | None = None,
    ) -> Segments:
        """The text up to `{output}`."""
        question, inside = self._question(instruction, input, history, system, "")
        return Segments(question, "", True, inside=inside)

    def _halves(self) -> tuple[str, str]:
        """The template before and after `{output}`."""
        match = next(match for match in PLACEHOLDER.finditer(self.text) if match[2] == "output")
        return self.text[: match.start()], self.text[match.end() :]

    def _question(
        self, instruction: str, extra: str, history: History, system: str | None, place: str
    ) -> tuple[str, tuple[Insertion, ...]]:
        values = {"instruction": instruction, "input": extra, "system": system or ""}
        has = self.fields
        for name, value in values.items():
            if value and name not in has:
                raise ConfigError(
                    f"{place}there is {name} text ({shown(value, 40)}), but the template has no {{{name}}}.",
                    hint=f"Put {{{name}}} in the template, so that nothing is lost.",
                )
        if history:
            raise ConfigError(
                f"{place}there are earlier turns, and a template of one's own has no place for them.",
                hint="Use the template 'chat' or 'tutorial'.",
            )
        return self._fill(self._halves()[0], values)

    @property
    def fields(self) -> frozenset[str]:
        """The parts of a question that it has places for."""
        return frozenset(part.name for part in self.parts() if isinstance(part, Field))

    def parts(self) -> list[str | Field | Block]:
        """What stands before the answer, in order: words, places for parts of the question, virtual tokens."""
        return self._parts(self._halves()[0])

    def _parts(self, text: str) -> list[str | Field | Block]:
        """A half of the template, cut at its placeholders."""
        parts: list[str | Field | Block] = []
        end, blocks = 0, iter(self.blocks)
        for match in PLACEHOLDER.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            if match[1]:
                parts.append("{" + match[1] + "}")
            elif is_block(match[2]):
                parts.append(next(blocks))
            else:
                parts.append(self.eos if match[2] == "eos_token" else Field(match[2]))
        return [*parts, text[end:]]

    def _fill(self, text: str, values: dict[str, str]) -> tuple[str, tuple[Insertion, ...]]:
        """A half of the template with its placeholders filled, and the virtual tokens inside it."""
        made, inside = "", []
        for part in self._parts(text):
            if isinstance(part, str):
                made += part
            elif isinstance(part, Field):
                made += values[part.name]
            elif not part.leads:
                inside.append(Insertion(len(made), part.ids))
        return made, tuple(inside)
