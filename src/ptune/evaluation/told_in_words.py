"""The frozen model told its job: a written prompt and examples before every question, as one would without training.

The fair baseline. What all questions then begin with is made a prompt of the embeddings of its tokens: it runs through
the model once for all rows, as a soft prompt does, and gives what it gives as text.

Shapes: `P` tokens that texts begin with alike.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from ptune.answering import Answerer
from ptune.config import PromptTuningConfig
from ptune.data.example import Example
from ptune.data.segments import Segments
from ptune.data.template import Template
from ptune.errors import ConfigError, DataError
from ptune.evaluation.columns import WRITTEN, Column, ItemTexts, encoded
from ptune.evaluation.items import Item
from ptune.frozen.parameters import device_of
from ptune.model.wrapper import PTunedModel


@dataclass(frozen=True)
class Telling:
    """What the frozen model is told."""

    words: str | None
    """The job; before everything else."""
    pool: Sequence[Example]
    """Examples in random order, of which the first are shown."""
    shots: int
    """How many."""
    as_system: bool = True
    """Whether the words are a system message, or the beginning of the first user's turn."""

    @classmethod
    def drawn(cls, words: str | None, examples: Sequence[Example], shots: int, seed: int) -> Telling:
        """With the examples in an order that the seed gives."""
        order = list(examples)
        random.Random(seed).shuffle(order)
        return cls(words, order, shots)

    def shown(self, item: Item) -> tuple[Example, ...]:
        """The first examples that do not ask what the item asks."""
        asked = item.example.question
        found = (example for example in self.pool if example.question != asked)
        return tuple(example for _, example in zip(range(self.shots), found, strict=False))

    def segments(self, item: Item, template: Template) -> list[Segments]:
        """The item's rows, told.

        Raises:
            DataError: The chat template refuses the messages.
        """
        shown = self.shown(item)
        if template.name != "custom":
            return [template.segments(self._as_turns(row, shown)) for row in item.rows]
        # A template of the user's has no place for earlier turns: they are written one after another.
        examples = [template.segments(example) for example in shown]
        parts = [*([self.words] if self.words else []), *(one.prompt + one.answer for one in examples)]
        before = "".join(f"{part}\n\n" for part in parts)
        whole = [template.segments(row) for row in item.rows]
        return [replace(one, prompt=before + one.prompt) for one in whole]

    def _as_turns(self, row: Example, shown: Sequence[Example]) -> Example:
        """The row with the words as system message and the examples as earlier turns."""
        turns = [turn for one in shown for turn in (("user", one.question), ("assistant", one.output))]
        told = row
        if self.words and self.as_system:
            told = replace(row, system=f"{self.words}\n\n{row.system}" if row.system else self.words)
        elif self.words and turns:
            turns[0] = ("user", f"{self.words}\n\n{turns[0][1]}")
        elif self.words:
            told = replace(row, instruction=f"{self.words}\n\n{row.instruction}")
        return replace(
            told,
            history=(*turns, *row.history),
            train=tuple((number + len(turns), learned) for number, learned in row.train),
            extras=tuple((number + len(turns), extras) for number, extras in row.extras),
        )


@contextmanager
def told_in_words(
    answerer: Answerer,
    items: Sequence[Item],
    telling: Telling,
    *,
    plain: Sequence[ItemTexts],
    new_tokens: int,
) -> Iterator[tuple[Column, Telling]]:
    """The column; the prompts that it stands behind are in the model as long as this is open.

    Args:
        answerer: The model, its tokenizer, and the template that writes the texts.
        items: What is asked.
        telling: What is told; with fewer examples where the context has no room for all.
        plain: The items untold, cut where they are to be cut.
        new_tokens: Tokens that the longest answer may have.

    Yields:
        The column, and what was told.

    Raises:
        ConfigError: The words leave no room in the context.
    """
    model, tokenizer, template = answerer.model, answerer.tokenizer, answerer.template
    try:
        telling.segments(items[0], template)
    except DataError:
        telling = replace(telling, as_system=False)
    limit = model.context_length
    while True:
        told = []
        for item, untold in zip(items, plain, strict=True):
            whole = encoded(telling.segments(item, template), tokenizer, item.example.source)
            told.append(whole.within(len(whole.question) - len(untold.question) + untold.longest))
        longest = max(max(one.longest, len(one.question) + new_tokens) for one in told)
        if limit is None or longest <= limit:
            break
        if telling.shots == 0:
            raise ConfigError(
                f"the written prompt and the longest row take {longest:,} tokens, and the model's context has "
                f"{limit:,}.",
                hint="Shorten written_prompt, or set max_length.",
            )
        telling = replace(telling, shots=telling.shots - 1)
    more = [len(one.question) - len(untold.question) for one, untold in zip(told, plain, strict=True)]
    prompts: list[str | None] = [None] * len(items)
    added: list[str] = []
    try:
        for numbers in _told_alike(items, telling):
            shared = common_beginning([told[number].question for number in numbers])
            if len(numbers) > 1 and shared and model.capability.filler_id is None:
                added.append(_add_text(model, shared))
                for number in numbers:
                    told[number] = told[number].behind(len(shared))
                    prompts[number] = added[-1]
        yield Column(WRITTEN, told, prompts, round(statistics.median(more))), telling
    finally:
        for name in added:
            model.delete_prompt(name)


def _told_alike(items: Sequence[Item], telling: Telling) -> list[list[int]]:
    """Numbers of the items that are told the same."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(tuple(map(id, telling.shown(item))), []).append(number)
    return list(groups.values())


def common_beginning(texts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all texts begin with; a token of each is left."""
    first, last = min(texts)[:-1], max(texts)[:-1]
    different = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(different, min(map(len, texts)) - 1)]


def _add_text(model: PTunedModel, ids: tuple[int, ...]) -> str:
    """Add a prompt of the embeddings of `(P,)` tokens; gives its name."""
    name = next(
        name for number in range(len(model.prompt_names) + 1) if (name := f"told-{number}") not in model.prompts
    )
    with torch.random.fork_rng(devices=[]):  # what a new prompt draws is none of a caller's numbers
        encoder = model.add_prompt(name, PromptTuningConfig(num_virtual_tokens=len(ids)))
    with torch.no_grad():
        vectors = model.base.get_input_embeddings()(torch.tensor(ids, device=device_of(model.base)))
    encoder.embedding.weight = nn.Parameter(vectors, requires_grad=False)
    return name
