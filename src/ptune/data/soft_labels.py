"""Soft labels: what a teacher holds likely at every supervised position, beside the one token that stands there.

A row carries the `K` likeliest tokens of each of its `S` supervised positions and their log-probabilities, flat, in two
columns. In a batch they stand where the labels stand, so that whatever cuts a batch into rows cuts them too.

Shapes: `S` supervised positions, `K` tokens of each, `B` rows, `T` tokens of the longest row, `N` tokens of all rows of
a packed batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ptune.data.labels import IGNORE_INDEX
from ptune.errors import DataError

TEACHER_IDS, TEACHER_LOG_PROBS = "teacher_ids", "teacher_log_probs"
"""The columns."""


@dataclass(frozen=True)
class SoftLabels:
    """The likeliest tokens of some positions; what they leave of the probability belongs to all other tokens."""

    ids: torch.Tensor
    """`(S, K)`, int64; no token twice at a position."""
    log_probs: torch.Tensor
    """`(S, K)`, natural logarithms."""


def add_soft_labels(batch: dict[str, Any], features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the soft labels of rows, where they have them, into their batch.

    Args:
        batch: With `labels`, `(B, T)` or `(1, N)`, the rows in the order of `features`.
        features: The rows.

    Returns:
        The batch; with soft labels `teacher_ids` and `teacher_log_probs` too, `(B, T, K)` or `(1, N, K)`, 0 at
        positions that are not supervised.

    Raises:
        DataError: Some rows have soft labels and others none, or a row has not as many at each position.
    """
    having = sum(TEACHER_IDS in row for row in features)
    if not having:
        return batch
    supervised = batch["labels"] != IGNORE_INDEX
    count = int(supervised.sum())
    if having < len(features):
        raise DataError(f"only {having} of the {len(features)} rows of a batch have soft labels.")
    for name, dtype in ((TEACHER_IDS, torch.int64), (TEACHER_LOG_PROBS, torch.float32)):
        flat = torch.cat([torch.as_tensor(row[name], dtype=dtype).flatten() for row in features])
        if not count or len(flat) % count:
            raise DataError(f"a batch has {count:,} supervised tokens and {len(flat):,} values of {name}.")
        values = flat.view(count, -1)
        spread = torch.zeros(*supervised.shape, values.shape[1], dtype=dtype)
        spread[supervised] = values
        batch[name] = spread
    return batch


def soft_labels_of(batch: Mapping[str, Any], device: torch.device) -> SoftLabels:
    """Those of a batch's supervised positions, row by row."""
    supervised = (batch["labels"] != IGNORE_INDEX).to(batch[TEACHER_IDS].device)
    return SoftLabels(batch[TEACHER_IDS][supervised].to(device), batch[TEACHER_LOG_PROBS][supervised].to(device))
