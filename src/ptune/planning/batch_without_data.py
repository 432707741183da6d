"""A batch without values: what a step of each task is given, and how much of it is learned.

Shapes: `B` rows, `T` tokens of each, `S` tokens of a text to write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from ptune.config import TaskType

_OF_THE_VOCABULARY = (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM, TaskType.MASKED_LM)
"""The tasks whose logits are over the vocabulary."""


@dataclass(frozen=True)
class Shape:
    """A batch: `rows` of `length` tokens each, of which a share has labels."""

    rows: int
    length: int
    supervised_share: float = 0.6
    learned: int | None = None
    """Positions of a row that have labels, where they are not a share of it: a text to write, or a gap."""

    @property
    def supervised(self) -> int:
        """Positions that have labels."""
        if self.learned is not None:
            return self.rows * self.learned
        return max(int(self.rows * self.length * self.supervised_share), 1)


def logits_width(config: PretrainedConfig, task: TaskType) -> int:
    """The last dimension of logits over the vocabulary; -1 for a task that has none."""
    return int(config.get_text_config(decoder=True).vocab_size) if task in _OF_THE_VOCABULARY else -1


def batch_for(task: TaskType, shape: Shape, *, packed: bool, prompt: bool) -> dict[str, Any]:
    """A batch, to be made where tensors have no values.

    Args:
        task: What the model is for.
        shape: How large it is.
        packed: Whether the rows of a causal model stand one after another.
        prompt: Whether one of ptune's prompts stands before them.
    """
    unread: dict[str, Any] = {"return_logits": False} if prompt else {}
    if task is TaskType.CAUSAL_LM:
        return unread | _causal(shape, packed=packed)
    size = (shape.rows, shape.length)
    batch = {"input_ids": _zeros(size), "attention_mask": torch.ones(size, dtype=torch.long), **unread}
    if task is TaskType.QUESTION_ANS:
        return {**batch, "start_positions": _zeros(shape.rows), "end_positions": _zeros(shape.rows)}
    of_rows = {TaskType.SEQ_CLS: (shape.rows,), TaskType.SEQ_2_SEQ_LM: (shape.rows, shape.learned or 1)}
    return {**batch, "labels": _zeros(of_rows.get(task, size))}


def _causal(shape: Shape, *, packed: bool) -> dict[str, Any]:
    size = (1, shape.rows * shape.length) if packed else (shape.rows, shape.length)
    batch: dict[str, Any] = {"input_ids": _zeros(size), "labels": _zeros(size)}
    if packed:
        batch["row_lengths"] = [shape.length] * shape.rows
    else:
        batch["attention_mask"] = torch.ones(size, dtype=torch.long)
    return batch


def _zeros(size: int | tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.long)
