"""A batch in parts: fewer rows at a time for less memory, the same gradient in the sum.

Shapes: `B` rows, `T` tokens of the longest row, `N` tokens of all rows of a packed batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch


def rows_of(inputs: Mapping[str, Any]) -> int:
    """`B`, of a padded or a packed batch."""
    lengths = inputs.get("row_lengths")
    return len(inputs["input_ids"]) if lengths is None else len(lengths)


def row_slice(inputs: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The rows from `start` to `stop` as a batch of the same kind."""
    lengths = inputs.get("row_lengths")
    if lengths is None:
        rows = len(inputs["input_ids"])
        return {
            name: value[start:stop] if isinstance(value, torch.Tensor) and value.dim() and len(value) == rows else value
            for name, value in inputs.items()
        }
    ends = [0, *accumulate(lengths)]
    tokens, total = slice(ends[start], ends[stop]), ends[-1]
    parts = {
        name: value[:, tokens] if isinstance(value, torch.Tensor) and value.shape[:2] == (1, total) else value
        for name, value in inputs.items()
    }
    return {**parts, "row_lengths": list(lengths[start:stop])}


def in_parts(inputs: dict[str, Any], rows: int | None) -> list[dict[str, Any]]:
    """A batch in parts of at most so many rows; None leaves it whole."""
    count = rows_of(inputs)
    if rows is None or count <= rows:
        return [inputs]
    return [row_slice(inputs, start, min(start + rows, count)) for start in range(0, count, rows)]


def text_tokens(inputs: Mapping[str, Any]) -> int | torch.Tensor:
    """Tokens of a batch that are not padding; a number on the batch's device where there is a mask."""
    mask: torch.Tensor | None = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel()) if mask is None else mask.sum()


def row_tokens(inputs: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of each row, padding left out."""
    if "row_lengths" in inputs:
        return [ids.tolist() for ids in torch.split(inputs["input_ids"][0], list(inputs["row_lengths"]))]
    mask = inputs.get("attention_mask")
    ids = inputs["input_ids"]
    return [
        row[keep].tolist()
        for row, keep in zip(ids, torch.ones_like(ids) > 0 if mask is None else mask > 0, strict=True)
    ]
