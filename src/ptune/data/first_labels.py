"""The labels of rows' first tokens, which nothing predicts where no virtual token stands before them.

A prompt of keys and values of every layer has none either: what it would predict was never computed.

Shapes: `B` rows, `T` tokens of the longest row, `N` tokens of all rows of a packed batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch

from ptune.data.labels import IGNORE_INDEX


def without_first_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A padded `(B, T)` or packed `(1, N)` batch in which no row's first token is supervised."""
    if "labels" not in batch:
        return dict(batch)
    labels = batch["labels"].clone()
    labels[_first_positions(batch)] = IGNORE_INDEX
    return {**batch, "labels": labels}


def _first_positions(batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each row's first token."""
    if "row_lengths" in batch:
        starts = torch.tensor([0, *accumulate(batch["row_lengths"])][:-1])
        return torch.zeros_like(starts), starts
    mask = batch.get("attention_mask")
    if mask is None:
        rows = torch.arange(len(batch["labels"]))
        return rows, torch.zeros_like(rows)
    first = mask.to(torch.int8).argmax(dim=1)
    return torch.arange(len(first), device=first.device), first
