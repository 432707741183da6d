"""Batches of tokenized rows, padded to one length.

Shapes: `B` rows, `T` tokens of the longest row. What is padding is known from the lengths, never from the token ids: in
many models the padding token is the end token, which must be learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ptune.errors import ConfigError, DataError, unknown

IGNORED = -100
"""Label of a position that is not learned, as PyTorch's cross-entropy has it."""


@dataclass(frozen=True)
class PaddingCollator:
    """Pads rows of `input_ids`, `attention_mask` and `labels` to the longest of the batch.

    Args:
        pad_token_id: Fills `input_ids`; it is masked and never learned.
        padding_side: `right` for training, `left` for generation.
        pad_to_multiple_of: Round the length up, which some kernels like.
    """

    pad_token_id: int
    padding_side: str = "right"
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.padding_side not in ("left", "right"):
            raise unknown("padding_side", str(self.padding_side), ("left", "right"))
        if isinstance(self.pad_token_id, bool) or not isinstance(self.pad_token_id, int) or self.pad_token_id < 0:
            raise ConfigError(
                f"pad_token_id must be a token id, not {self.pad_token_id!r}.",
                hint="Set the tokenizer's pad_token, e.g. to its eos_token.",
            )
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ConfigError(f"pad_to_multiple_of must be at least 1, not {self.pad_to_multiple_of}.")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            features: Rows with `input_ids`; `attention_mask` (ones when absent) and `labels` (left out when absent) of
                the same length.

        Returns:
            `input_ids`, `attention_mask` and `labels`, each (B, T), int64.

        Raises:
            DataError: No rows, a row whose columns differ in length, or labels in some rows only.
        """
        if not features:
            raise DataError("a batch needs at least one row.")
        lengths = [len(row["input_ids"]) for row in features]
        step = self.pad_to_multiple_of or 1
        longest = -(-max(lengths) // step) * step
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0}
        with_labels = sum("labels" in row for row in features)
        if with_labels:
            if with_labels != len(features):
                raise DataError(f"only {with_labels} of the {len(features)} rows of a batch have labels.")
            fills["labels"] = IGNORED
        batch = {name: torch.full((len(features), longest), fill, dtype=torch.int64) for name, fill in fills.items()}
        for index, (row, length) in enumerate(zip(features, lengths, strict=True)):
            start = longest - length if self.padding_side == "left" else 0
            for name, tensor in batch.items():
                values = row.get(name, [1] * length) if name == "attention_mask" else row[name]
                if len(values) != length:
                    raise DataError(f"row {index} of a batch has {length} input_ids, but {len(values)} {name}.")
                tensor[index, start : start + length] = torch.as_tensor(values, dtype=torch.int64)
        return batch
