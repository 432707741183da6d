"""Batches of tokenized rows: padded to one length, or packed one after another without padding.

A padded batch spends work on every position of its longest row; a packed one holds real tokens alone, and says where a
row ends by `row_lengths`. Its rows do not see each other: the model keeps them apart. Soft labels of rows
(`ptune.data.soft_labels`) go with them.

Shapes: `B` rows, `T` tokens of the longest row, `N` tokens of all rows together. What is padding is known from the
lengths, never from the token ids: in many models the padding token is the end token, which must be learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import add_soft_labels
from ptune.errors import ConfigError, DataError, unknown


@dataclass(frozen=True)
class PaddingCollator:
    """Pads rows of `input_ids`, `attention_mask`, `token_type_ids` and `labels` to the longest of the batch.

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
            features: Rows with `input_ids`; `attention_mask` (ones when absent), `token_type_ids` and `labels` (left
                out when absent) of the same length.

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids` and `labels`, each (B, T), int64.

        Raises:
            DataError: No rows, a row whose columns differ in length, or a column that only some rows have.
        """
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORE_INDEX}
        rows = _columns(features)
        lengths = [len(row["input_ids"]) for row in rows]
        step = self.pad_to_multiple_of or 1
        longest = -(-max(lengths) // step) * step
        batch = {name: torch.full((len(rows), longest), fills[name], dtype=torch.int64) for name in rows[0]}
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            start = longest - length if self.padding_side == "left" else 0
            for name, tensor in batch.items():
                tensor[index, start : start + length] = row[name]
        return add_soft_labels(batch, features)


@dataclass(frozen=True)
class PackingCollator:
    """Puts the rows of a batch one after another; `PTunedModel` keeps them apart where its `packs` is True.

    Tokens that a row's `attention_mask` leaves out are dropped, their labels with them.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch.

        Args:
            features: Rows as for `PaddingCollator`.

        Returns:
            `input_ids` and `labels` (left out when absent), each (1, N), int64, and `row_lengths`: the tokens of each
            row in a plain list, so that nobody waits for a device to tell them.

        Raises:
            DataError: No rows, a row without tokens or with columns of several lengths, or labels in some rows only.
        """
        rows = [_kept(row) for row in _columns(features)]
        lengths = [len(row["input_ids"]) for row in rows]
        if 0 in lengths:
            raise DataError(f"row {lengths.index(0)} of a batch has no tokens.", hint="Leave such rows out.")
        batch: dict[str, Any] = {name: torch.cat([row[name] for row in rows]).unsqueeze(0) for name in rows[0]}
        return {**add_soft_labels(batch, features), "row_lengths": lengths}


def unpacked(packed: torch.Tensor, row_lengths: Sequence[int], fill: float) -> torch.Tensor:
    """`(1, N, …)` → `(B, T, …)`: a row for each row of a packed batch, `fill` behind the shorter ones."""
    return pad_sequence(list(torch.split(packed[0], list(row_lengths))), batch_first=True, padding_value=fill)


def _columns(features: Sequence[Mapping[str, Any]]) -> list[dict[str, torch.Tensor]]:
    """The rows' `input_ids`, `attention_mask` (ones where absent), and others where they have them, as tensors."""
    if not features:
        raise DataError("a batch needs at least one row.")
    further = []
    for name in ("token_type_ids", "labels"):
        having = sum(name in row for row in features)
        if having not in (0, len(features)):
            raise DataError(f"only {having} of the {len(features)} rows of a batch have {name}.")
        further += [name] * bool(having)
    rows = []
    for index, row in enumerate(features):
        length = len(row["input_ids"])
        columns = {"input_ids": row["input_ids"], "attention_mask": row.get("attention_mask", [1] * length)}
        columns |= {name: row[name] for name in further}
        for name, values in columns.items():
            if len(values) != length:
                raise DataError(f"row {index} of a batch has {length} input_ids, but {len(values)} {name}.")
        rows.append({name: torch.as_tensor(values, dtype=torch.int64) for name, values in columns.items()})
    return rows


def _kept(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A row's other columns at the positions that its `attention_mask` keeps."""
    keep = row.pop("attention_mask") != 0
    return row if bool(keep.all()) else {name: values[keep] for name, values in row.items()}
