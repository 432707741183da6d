"""Batches of rows of a task: padded to one length, what is learned beside them.

Shapes: `B` rows, `T` tokens of the longest row, `S` tokens of the longest text to write. What is padding is known from
the lengths, never from the token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ptune.choices import CLASSIFY, QA, SEQ2SEQ
from ptune.data.collate import PaddingCollator
from ptune.data.labels import IGNORE_INDEX
from ptune.data.tasks.task_kinds import check_task
from ptune.errors import DataError

_SPAN = ("start_positions", "end_positions")


@dataclass(frozen=True)
class TaskCollator:
    """Pads rows as `encode_task` makes them.

    Args:
        pad_token_id: Fills `input_ids`; it is masked and never learned.
        task: `classify`, `tag`, `qa`, `seq2seq` or `fill`.
        padding_side: Of the rows. Texts to write are padded on the right whatever it is.
        pad_to_multiple_of: Round the length up, which some kernels like.
    """

    pad_token_id: int
    task: str
    padding_side: str = "right"
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        check_task(self.task)
        self._padding()

    def _padding(self) -> PaddingCollator:
        return PaddingCollator(self.pad_token_id, self.padding_side, self.pad_to_multiple_of)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            features: Rows with `input_ids`; `attention_mask` (ones when absent), `token_type_ids`, and what is learned
                (left out when absent). Other columns are passed over.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids`, each (B, T); `labels`, (B,) for `classify`, (B, T) for
            `tag` and `fill`, (B, S) for `seq2seq`; for `qa` `start_positions` and `end_positions`, each (B,), columns
            of the padded rows. All int64.

        Raises:
            DataError: No rows, a row whose columns differ in length or have not the task's form, or a column that only
                some rows have.
        """
        apart = _SPAN if self.task == QA else ("labels",) if self.task in (CLASSIFY, SEQ2SEQ) else ()
        given = {name: _column(features, name) for name in apart}
        batch = self._padding()([{name: row[name] for name in row if name not in apart} for row in features])
        for name, values in given.items():
            if values is None:
                continue
            if self.task == SEQ2SEQ:
                batch[name] = _padded(values)
                continue
            batch[name] = _numbers(values, name, self.task)
            if self.task == QA:
                batch[name] = self._positions(batch[name], [len(row["input_ids"]) for row in features], name, batch)
        return batch

    def _positions(
        self, values: torch.Tensor, lengths: Sequence[int], name: str, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Columns of rows as columns of the padded rows."""
        own = torch.tensor(lengths)
        outside = (values < 0) | (values >= own)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise DataError(f"row {row} of a batch has {int(own[row])} tokens, but {name} {int(values[row])}.")
        return values + batch["input_ids"].shape[1] - own if self.padding_side == "left" else values


def _column(features: Sequence[Mapping[str, Any]], name: str) -> list[Any] | None:
    """A column's values, None where no row has it."""
    having = sum(name in row for row in features)
    if having not in (0, len(features)):
        raise DataError(f"only {having} of the {len(features)} rows of a batch have {name}.")
    return [row[name] for row in features] if having else None


def _numbers(values: Sequence[Any], name: str, task: str) -> torch.Tensor:
    """`(B,)`: a number a row."""
    tensors = [torch.as_tensor(value) for value in values]
    for row, tensor in enumerate(tensors):
        if tensor.numel() != 1 or tensor.is_floating_point():
            raise DataError(
                f"row {row} of a batch has {name} of shape {tuple(tensor.shape)} ({tensor.dtype}); the task {task} "
                "needs one whole number."
            )
    return torch.stack([tensor.reshape(()) for tensor in tensors]).to(torch.int64)


def _padded(values: Sequence[Any]) -> torch.Tensor:
    """`(B, S)`: texts to write, filled with what is not learned."""
    rows = [torch.as_tensor(value, dtype=torch.int64).reshape(-1) for value in values]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX)
