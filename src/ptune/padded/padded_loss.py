"""Cross-entropy over the supervised positions, and the LM head on those positions alone.

A label at column `t` is predicted at column `t - 1` of the same row. The first text token is predicted by the last
virtual token, which stands in the prefix, not among the text columns: `Predictors` says for each supervised label
where its prediction comes from. The loss then counts exactly the labels that PEFT counts on the concatenated sequence.

`head_at` narrows the model's LM head to the hidden states that the loss needs. It works on the head's input, so that
a model's own treatment of logits (soft-capping, scaling) stays in force.

Shapes: `B` rows, `T` text tokens, `S` supervised labels with a prediction among the text columns, `F` those
predicted by a prefix, `D` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ptune.batch.text import Text
from ptune.data.labels import IGNORE_INDEX
from ptune.frozen.parts import output_head
from ptune.frozen.transfer import sent


@dataclass(frozen=True)
class Predictors:
    """Where the prediction of each supervised label comes from."""

    rows: torch.Tensor
    """`(S,)`, row of each label predicted at a column of the model's output."""
    columns: torch.Tensor
    """`(S,)`, that column."""
    targets: torch.Tensor
    """`(S,)`, the labels."""
    prefix_rows: torch.Tensor
    """`(F,)`, rows whose first token is supervised and predicted by the prefix."""
    prefix_targets: torch.Tensor
    """`(F,)`, those labels."""

    @property
    def count(self) -> int:
        """Supervised labels in all."""
        return int(self.targets.numel() + self.prefix_targets.numel())


def find_predictors(text: Text, predicting: Sequence[bool], inside: Sequence[int] | None) -> Predictors:
    """Match labels to the positions that predict them, on the host; the result is on the text's device.

    Args:
        text: The rows, with labels.
        predicting: For each row whether its prompt predicts its first token; one without any does not.
        inside: On the concatenation path the virtual tokens of each row, which stand before its text in the model's
            output. None on the prefix path, where text token `t` stands at column `t` and the first token is predicted
            by the prefix.
    """
    assert text.labels is not None
    row, column = text.rows_and_columns
    counted = torch.nonzero((text.labels != IGNORE_INDEX) & ((column > 0) | torch.tensor(predicting)[row])).squeeze(1)
    row, column, targets = row[counted], column[counted], text.labels[counted]
    if inside is not None:
        rows, columns, targets = sent(torch.stack([row, column + torch.tensor(inside)[row] - 1, targets]), text.device)
        return Predictors(rows, columns, targets, rows[:0], rows[:0])
    inner, first = torch.nonzero(column > 0).squeeze(1), torch.nonzero(column == 0).squeeze(1)
    rows, columns, inner_targets = sent(torch.stack([row, column - 1, targets])[:, inner], text.device)
    return Predictors(rows, columns, inner_targets, *sent(torch.stack([row, targets])[:, first], text.device))


def cross_entropy(
    logits: torch.Tensor,
    prefix_logits: torch.Tensor | None,
    predictors: Predictors,
    num_items: torch.Tensor | int | None,
) -> torch.Tensor:
    """The loss in float32, or float64 where the model is.

    It is the sum over supervised labels, divided by `num_items`, or by their number when that is None.

    Args:
        logits: `(S, V)`, predictions in the order of `predictors.targets`.
        prefix_logits: `(B, V)`, predictions of each row's first token; None on the concatenation path.
        predictors: The labels.
        num_items: Supervised labels of the whole optimizer step (all micro-batches and processes), as the Trainer
            counts them.
    """
    total = F.cross_entropy(_precise(logits), predictors.targets, reduction="sum")
    if prefix_logits is not None and predictors.prefix_rows.numel():
        first = _precise(prefix_logits[predictors.prefix_rows])
        total = total + F.cross_entropy(first, predictors.prefix_targets, reduction="sum")
    if num_items is None:
        return total / max(predictors.count, 1)
    return total / (num_items.to(total.device) if isinstance(num_items, torch.Tensor) else num_items)


def _precise(logits: torch.Tensor) -> torch.Tensor:
    """The logits in float32, or in float64 where they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def head_at(base: PreTrainedModel, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[None]:
    """While open, the model's LM head sees only the hidden states at `(rows, columns)`.

    They are `(1, S, D)` in place of `(B, T, D)`. Other threads that use the model meanwhile see the whole head.
    """
    owner = threading.get_ident()
    head = output_head(base)
    assert head is not None

    def narrow(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != owner:
            return None
        hidden = args[0]
        # The head may be on another device than the labels, where a model is spread over several.
        at = rows.to(hidden.device), columns.to(hidden.device)
        return (hidden[at].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()
