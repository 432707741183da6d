"""The soft labels of tokenized rows, in batches of neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ptune.answering import Answerer
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import SoftLabels
from ptune.evaluation.columns import Row
from ptune.evaluation.row_losses import by_tokens
from ptune.model.taught import soft_labels

MOST_TOKENS = 2048
"""Tokens of the rows that go through the model together."""


def collated(answerer: Answerer, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as one batch: packed, where the model can."""
    packs, padding = answerer.model.packs, answerer.tokenizer.pad_token_id
    return PackingCollator()(features) if packs else PaddingCollator(int(padding))(features)


def labels_of_rows(answerer: Answerer, rows: Sequence[Row], prompt: str | None, top_k: int) -> list[SoftLabels]:
    """What the model holds likely at every supervised token, row by row.

    Args:
        answerer: The model.
        rows: Ids and labels of each.
        prompt: In front of all of them.
        top_k: Likeliest tokens of each position.
    """
    found: list[SoftLabels] = []
    for batch in by_tokens([len(ids) for ids, _ in rows], MOST_TOKENS):
        inputs = collated(answerer, [{"input_ids": rows[at][0], "labels": rows[at][1]} for at in batch])
        labels = soft_labels(answerer.model, inputs, top_k, prompt_names=[prompt] * len(batch))
        sizes = [sum(label != IGNORE_INDEX for label in rows[at][1]) for at in batch]
        parts = zip(torch.split(labels.ids, sizes), torch.split(labels.log_probs, sizes), strict=True)
        found += [SoftLabels(*one) for one in parts]
    return found
