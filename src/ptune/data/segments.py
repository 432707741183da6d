"""The text of one example in parts that are tokenized separately: what is given, and what is learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ptune.data.example import Example
from ptune.errors import ConfigError

History = Sequence[tuple[str, str]]
"""Earlier turns as (role, content), oldest first."""
Pairs = list[tuple[list[int], list[int]]]
"""Token ids of what is given and of what is learned after it, in turn."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """Virtual tokens inside a text."""

    at: int
    """The character that they stand before."""
    ids: Sequence[int]
    """See `ptune.data.blocks`."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The text of one example, in parts that are tokenized separately."""

    prompt: str
    """What the model is given before its last answer; masked in the labels."""
    answer: str
    """What it learns to write, its end token included; empty in a prompt for generation."""
    add_special_tokens: bool
    """Whether the tokenizer's own leading tokens (such as BOS) stand before everything else."""
    earlier: tuple[tuple[str, str], ...] = ()
    """Earlier answers that are learned, each with what stands before it; `prompt` goes on behind the last of them."""

    inside: tuple[Insertion, ...] = ()
    """Virtual tokens inside `prompt`, in order; they cut it into parts."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """What is given and what is learned, in turn; one after another they are the whole text."""
        return (*self.earlier, (self.prompt, self.answer))

    def texts(self) -> list[str]:
        """The parts, one after another: those of `pairs`, where `prompt` is cut by the virtual tokens inside it."""
        found = [text for pair in self.pairs for text in pair]
        cuts = [0, *(one.at for one in self.inside), len(self.prompt)]
        found[-2:-1] = [self.prompt[start:end] for start, end in pairwise(cuts)]
        return found

    def joined(self, ids: Sequence[list[int]], leading: list[int]) -> Pairs:
        """Token ids of what is given and of what is learned, in turn; one after another they are the whole row.

        Args:
            ids: Token ids of each of `texts`.
            leading: The tokenizer's own leading tokens.
        """
        before = 2 * len(self.earlier)
        given = list(ids[before])
        for one, piece in zip(self.inside, ids[before + 1 : -1], strict=True):
            given += [*one.ids, *piece]
        pairs = [*zip(ids[:before:2], ids[1:before:2], strict=True), (given, ids[-1])]
        if self.add_special_tokens:
            pairs[0] = (leading + pairs[0][0], pairs[0][1])
        return pairs


def as_segments(pairs: Sequence[tuple[str, str]], *, add_special_tokens: bool) -> Segments:
    """What is given and what is learned, in turn, as segments; empty ones where nothing is learned."""
    prompt, answer = pairs[-1] if pairs else ("", "")
    return Segments(prompt, answer, add_special_tokens, tuple(pairs[:-1]))


def refuse_extras(example: Example, template: str) -> None:
    """Raise `ConfigError` where an example has what only a chat template can write."""
    for number, extras in example.extras:
        lost = [name for name in json.loads(extras) if name in ("tool_calls", "reasoning_content")]
        if lost:
            place = f"{example.source}: " if example.source else ""
            raise ConfigError(
                f"{place}turn {number + 1} has {' and '.join(lost)}, which the {template} template cannot write.",
                hint="Use the template 'chat'.",
            )


def digest(*parts: str) -> str:
    """A name for texts: equal texts, equal name."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
