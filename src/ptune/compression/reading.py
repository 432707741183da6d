"""The frozen model with a text in front of what it is asked: the teacher of a compressed prompt.

The text stands where it would without ptune: as a system message, or at the beginning of the first user's turn where
the template has no place for one. What all rows then begin with runs through the model once and stays as keys and
values, a deep prompt that nobody trains, so that a row behind 4,000 tokens costs what the row costs.

Shapes: `P` tokens that rows begin with alike, `T` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from ptune.answering import Answerer
from ptune.config import PromptTuningConfig
from ptune.data.example import Example
from ptune.deep_config import PrefixTuningConfig
from ptune.errors import ConfigError, DataError
from ptune.evaluation.columns import ItemTexts, encoded
from ptune.evaluation.items import Item
from ptune.evaluation.told_in_words import Telling, common_beginning
from ptune.frozen.parameters import device_of
from ptune.model.wrapper import PTunedModel
from ptune.prefix.deep_prompts import encode_tokens

READER = "text-in-front"
"""The teacher's prompt in the model."""


@dataclass(frozen=True)
class Reading:
    """Rows as the model has them with a text in front."""

    texts: Sequence[ItemTexts]
    """What stands behind the prompt `name`, row by row."""
    name: str | None
    """None where nothing is alike: the rows are whole."""
    shared: tuple[int, ...]
    """`(P,)`, what all of them begin with, the text in it."""
    tokens: int
    """Tokens that the text adds to a row."""


def told(answerer: Answerer, text: str, rows: Sequence[Example]) -> list[ItemTexts]:
    """Rows with a text in front, as token ids.

    Args:
        answerer: Its template and tokenizer write them.
        text: Before each.
        rows: What is asked, and what is answered.

    Raises:
        ConfigError: The template has no place for a text in front.
    """
    telling, template = Telling(text, (), 0), answerer.template
    try:
        telling.segments(Item((rows[0],)), template)
    except DataError:
        telling = replace(telling, as_system=False)
    return [encoded(telling.segments(Item((row,)), template), answerer.tokenizer, row.source) for row in rows]


@contextmanager
def reading(answerer: Answerer, text: str, rows: Sequence[Example], *, new_tokens: int = 0) -> Iterator[Reading]:
    """Rows behind a text; the prompt that holds it is in the model as long as this is open.

    Args:
        answerer: The frozen model.
        text: Before each row.
        rows: What is asked, and what is answered.
        new_tokens: Tokens that the longest answer may have.

    Raises:
        ConfigError: The context has no room for them.
    """
    model, texts = answerer.model, told(answerer, text, rows)
    untold = [encoded([answerer.template.segments(row)], answerer.tokenizer, row.source) for row in rows[:1]]
    tokens = len(texts[0].question) - len(untold[0].question)
    longest = max(max(one.longest, len(one.question) + new_tokens) for one in texts)
    if model.context_length is not None and longest > model.context_length:
        raise ConfigError(
            f"the text in front, the longest question and its answer take {longest:,} tokens, and the model's context "
            f"has {model.context_length:,}.",
            hint="Shorten the questions, or lower answer_tokens.",
        )
    shared = common_beginning([one.question for one in texts])
    if not shared or model.capability.filler_id is not None:
        yield Reading(texts, None, shared, tokens)
        return
    _add_text(model, shared)
    try:
        yield Reading([one.behind(len(shared)) for one in texts], READER, shared, tokens)
    finally:
        model.delete_prompt(READER)


def _add_text(model: PTunedModel, ids: tuple[int, ...]) -> None:
    """Add the teacher's prompt: keys and values of `(P,)` tokens, or their embeddings where a model keeps none."""
    active = model.active_prompt
    with torch.random.fork_rng(devices=[]):  # what a new prompt draws is none of a caller's numbers
        if model.capability.prefix:
            prefix = encode_tokens(model.base, list(ids))
            encoder = model.add_prompt(READER, PrefixTuningConfig(num_virtual_tokens=len(ids)), start=prefix)
        else:
            encoder = model.add_prompt(READER, PromptTuningConfig(num_virtual_tokens=len(ids)))
            with torch.no_grad():
                vectors = model.base.get_input_embeddings()(torch.tensor(ids, device=device_of(model.base)))
            encoder.embedding.weight = nn.Parameter(vectors, requires_grad=False)
    encoder.requires_grad_(False)
    if active is not None and model.active_prompt != active:
        model.set_prompt(active)
