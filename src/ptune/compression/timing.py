"""Time to the first token, and tokens a second behind it, with a text in front, with a prompt, and with neither."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptune.answering import Answerer
from ptune.choices import GREEDY
from ptune.compression.reading import Reading
from ptune.data.labels import IGNORE_INDEX
from ptune.evaluation.columns import Row
from ptune.frozen.parameters import device_of

_REPEATS, _TOKENS = 3, 16


@dataclass(frozen=True)
class Timing:
    """Medians, of one question at a time."""

    first_token_cold: float
    """Seconds to the first token where what stands in front is computed anew."""
    first_token: float
    """The same where its keys and values are kept."""
    tokens_per_second: float
    """Of the tokens that follow."""


def time_columns(
    answerer: Answerer, read: Reading, row: Row, prompt: str | None, *, names: tuple[str, str, str]
) -> dict[str, Timing]:
    """Time the three columns in turn, several times.

    Args:
        answerer: The model; the text's keys and values are in it.
        read: The text in front of a row.
        row: The same row alone.
        prompt: The compressed prompt.
        names: Of nothing, the text, the prompt.
    """
    ids, labels = row
    question = [token for token, label in zip(ids, labels, strict=True) if label == IGNORE_INDEX]
    behind = list(read.texts[0].question)
    whole = [*read.shared, *behind] if read.name is not None else behind
    asked = dict(
        zip(
            names,
            ((question, None, question, None), (whole, None, behind, read.name), (question, prompt) * 2),
            strict=True,
        )
    )
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for turn in range(_REPEATS + 1):
        for name, (cold, cold_prompt, warm, warm_prompt) in asked.items():
            answerer.model.clear_prefixes()
            first_cold = _seconds(answerer, cold, cold_prompt, 1)
            _seconds(answerer, warm, warm_prompt, 1)
            first = _seconds(answerer, warm, warm_prompt, 1)
            more = _seconds(answerer, warm, warm_prompt, _TOKENS + 1)
            if turn:  # the first one warms up
                found[name].append((first_cold, first, _TOKENS / max(more - first, 1e-9)))
    return {name: Timing(*map(statistics.median, zip(*each, strict=True))) for name, each in found.items()}


def _seconds(answerer: Answerer, ids: Sequence[int], prompt: str | None, tokens: int) -> float:
    model = answerer.model
    given = torch.tensor([list(ids)], device=device_of(model.base))
    start = time.perf_counter()
    model.generate(
        given,
        attention_mask=torch.ones_like(given),
        prompt_names=[prompt],
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=answerer.tokenizer.pad_token_id,
        **GREEDY,
    )
    return time.perf_counter() - start
