"""What stands side by side: the frozen model alone, told in words, and with its soft prompt.

A column is every item's text as token ids, and the prompt in front of it.

Shapes: `T` tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ptune.data.labels import IGNORE_INDEX
from ptune.data.segments import Segments
from ptune.data.template import Template
from ptune.data.tokenize import encode, encode_rows
from ptune.errors import DataError
from ptune.evaluation.items import Item
from ptune.evaluation.row_losses import LearnedRow

ALONE, WRITTEN, PROMPT = "alone", "written", "prompt"
COMMONEST, NO_ANSWER = "commonest", "no_answer"
"""What a classifier's prompt is beside, whose head is untrained without it: one answer to every row."""
TITLES = {ALONE: "frozen model alone", WRITTEN: "told in words", PROMPT: "with the prompt"}
CONSTANT_TITLES = {COMMONEST: "the commonest label", NO_ANSWER: "no answer"}
ALL_TITLES = {**TITLES, **CONSTANT_TITLES}
ANY_LENGTH = 2**31

Row = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids and labels, `(T,)` both."""


@dataclass(frozen=True)
class ItemTexts:
    """An item as token ids."""

    question: tuple[int, ...]
    """`(T,)`, what an answer follows; empty for a text without a question."""
    rows: tuple[Row, ...]
    """The question with each of its answers."""
    source: str = ""
    cut: int = 0
    """Answers that were cut at their end."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(ids) for ids, _ in self.rows)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer."""
        return self.longest - len(self.question)

    def bare(self) -> ItemTexts:
        """Without the virtual tokens that a template has inside the text: for a model without the prompt."""
        question = tuple(token for token in self.question if token >= 0)
        kept = [[at for at, token in enumerate(ids) if token >= 0] for ids, _ in self.rows]
        rows = tuple(
            (tuple(ids[at] for at in places), tuple(labels[at] for at in places))
            for places, (ids, labels) in zip(kept, self.rows, strict=True)
        )
        return ItemTexts(question, rows, self.source, self.cut)

    def behind(self, shown: int) -> ItemTexts:
        """Without the first tokens, which stand in a prompt."""
        rows = tuple((ids[shown:], labels[shown:]) for ids, labels in self.rows)
        return ItemTexts(self.question[shown:], rows, self.source, self.cut)

    def within(self, room: int | None) -> ItemTexts:
        """Cut at so many tokens.

        Raises:
            DataError: Nothing of an answer is left.
        """
        if room is None or self.longest <= room:
            return self
        if len(self.question) >= room:
            raise DataError(
                f"{self.source}: the question alone has {len(self.question):,} tokens, and there is room for {room:,}.",
                hint="Leave the row out, or shorten it.",
            )
        cut = sum(len(ids) > room for ids, _ in self.rows)
        return ItemTexts(
            self.question, tuple((ids[:room], labels[:room]) for ids, labels in self.rows), self.source, cut
        )


@dataclass(frozen=True)
class Column:
    """All items, as one contender is asked."""

    name: str
    texts: Sequence[ItemTexts]
    prompts: Sequence[str | None]
    """The prompt in front of each item."""
    prompt_tokens: int
    """Tokens that the model is given more than alone: virtual ones, or those of the words."""

    def learned(self, number: int, next_tokens: Sequence[int] = ()) -> list[LearnedRow]:
        """The rows of an item whose loss is wanted; the first is also asked how likely tokens follow the question."""
        item = self.texts[number]
        after = [(len(item.question), token) for token in next_tokens]
        rows = [LearnedRow(ids, labels, self.prompts[number]) for ids, labels in item.rows]
        return [replace(rows[0], besides=after), *rows[1:]]

    def batches(self, numbers: Sequence[int], size: int) -> Iterator[list[int]]:
        """Some items in batches of one prompt and similar length."""
        by_prompt: dict[str | None, list[int]] = {}
        for number in sorted(numbers, key=lambda one: len(self.texts[one].question)):
            by_prompt.setdefault(self.prompts[number], []).append(number)
        for alike in by_prompt.values():
            for start in range(0, len(alike), size):
                yield alike[start : start + size]


def plain_column(name: str, texts: Sequence[ItemTexts], prompt: str | None, tokens: int) -> Column:
    """One prompt, or none, in front of every item."""
    return Column(name, texts, [prompt] * len(texts), tokens)


def item_texts(item: Item, template: Template, tokenizer: PreTrainedTokenizerBase, room: int | None) -> ItemTexts:
    """An item as training would have it, cut at `room` tokens; a long text without a question becomes several rows.

    Raises:
        DataError: Nothing of an answer is left.
    """
    if not item.example.document:
        segments = [template.segments(row) for row in item.rows]
        return encoded(segments, tokenizer, item.example.source).within(room)
    pieces = encode_rows(item.example, template, tokenizer, ANY_LENGTH if room is None else room)
    return ItemTexts((), tuple((tuple(one.input_ids), tuple(one.labels)) for one in pieces), item.example.source)


def encoded(segments: Sequence[Segments], tokenizer: PreTrainedTokenizerBase, source: str) -> ItemTexts:
    """One question with each of its answers, whole."""
    rows: list[Row] = []
    for one in segments:
        row = encode(one, tokenizer, ANY_LENGTH)
        if row is None:
            raise DataError(f"{source}: nothing of the row is learned.", hint="Leave it out.")
        rows.append((tuple(row.input_ids), tuple(row.labels)))
    ids, labels = rows[0]
    asked = max(at for at, label in enumerate(labels) if label == IGNORE_INDEX) + 1
    return ItemTexts(ids[:asked], tuple(rows), source)
