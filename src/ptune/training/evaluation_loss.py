"""The loss of an evaluation over all its answer tokens, however the rows fall into batches and processes.

Trainer's own averages the means of the batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from ptune.data.labels import IGNORE_INDEX
from ptune.evaluation.held_out_loss import HeldOutLoss, LossSum


class EvaluationLoss:
    """Sums the losses of one evaluation after the other.

    Args:
        trainer: The one that evaluates; its arguments and accelerator are read.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._sum = LossSum(of_means=True)

    def begin(self) -> None:
        """A new evaluation."""
        self._sum = LossSum(of_means=True)

    def add(self, mean: torch.Tensor, labels: torch.Tensor) -> None:
        """Count in the mean loss of a batch with these labels."""
        self._sum.add(mean, (labels != IGNORE_INDEX).sum())

    def mean(self) -> HeldOutLoss:
        """The mean over all processes. Every process must call it."""
        return self._sum.mean(self.trainer.args.world_size, self.trainer.args.device)

    def without_repeats(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The labels, masked where several processes' last batches are filled up with rows that came before."""
        labels: torch.Tensor = inputs["labels"]
        lengths: Sequence[int] | None = inputs.get("row_lengths")
        args, state = self.trainer.args, self.trainer.accelerator.gradient_state
        if args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return labels
        rows = len(labels) if lengths is None else len(lengths)
        real = min(max(state.remainder - args.process_index * rows, 0), rows)
        labels = labels.clone()
        if lengths is None:
            labels[real:] = IGNORE_INDEX
        else:
            labels[:, sum(lengths[:real]) :] = IGNORE_INDEX
        return labels
