"""Held-out loss of a prompt, and of the frozen model without one, over the same tokens.

It is the cross-entropy, or for rows with soft labels the divergence from the teacher.

Shapes: `B` rows, `T` tokens of the longest row, `N` tokens of all rows of a packed batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from ptune.data.first_labels import without_first_labels
from ptune.data.labels import supervised
from ptune.data.soft_labels import TEACHER_IDS
from ptune.frozen.eval_mode import in_eval_mode
from ptune.frozen.parameters import device_of
from ptune.model.prompted import PromptedModel
from ptune.model.taught import divergence
from ptune.model.wrapper import PTunedModel


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean cross-entropy over labels (of tokens, or of rows), or mean divergence from the teacher, in nats."""

    loss: float
    tokens: int
    """Labels: tokens that are learned, or rows."""


class LossSum:
    """Summed cross-entropy of batches, so that each supervised token weighs the same whatever the batches.

    Losses stay where they are until the mean is asked for: to look at one, the host waits for the device.

    Args:
        of_means: Whether a batch's loss is the mean over its supervised tokens, in place of the sum.
    """

    def __init__(self, *, of_means: bool = False) -> None:
        self._of_means = of_means
        self._losses: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor, tokens: torch.Tensor) -> None:
        """Count a batch in, by its loss and the number of its supervised tokens; one without any adds nothing."""
        self._losses.append(loss.detach())
        self._tokens.append(tokens)

    def mean(self, processes: int = 1, device: torch.device | str = "cpu") -> HeldOutLoss:
        """The mean over everything added, in all processes. Every process must call it."""
        losses, counts = (torch.stack(each).tolist() if each else [] for each in (self._losses, self._tokens))
        weights = counts if self._of_means else [1] * len(counts)
        total = sum(loss * weight for loss, weight, count in zip(losses, weights, counts, strict=True) if count)
        tokens = sum(counts)
        if processes > 1:
            sums = torch.tensor([total, tokens], dtype=torch.float64, device=device)
            torch.distributed.all_reduce(sums)
            total, tokens = float(sums[0]), int(sums[1])
        return HeldOutLoss(loss=total / max(tokens, 1), tokens=tokens)


@torch.no_grad()
def held_out_loss(
    model: PromptedModel,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    *,
    batch_size: int = 8,
    with_prompt: bool = True,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> HeldOutLoss:
    """The loss over a tokenized data set, each supervised token weighing the same whatever the batches.

    Args:
        model: The model; its mode (train or eval) is left as it was.
        dataset: Columns `input_ids`, `attention_mask`, `labels`: this process's share.
        collate: Makes a batch of rows, padded or packed.
        batch_size: Rows a batch; rows of similar length are put together.
        with_prompt: False measures the frozen model alone.
        processes: Processes that measure a share each; every one gets the loss over all of them.
        progress: Called with the number of rows done.
    """
    summed, done = LossSum(), 0
    lengths = [len(ids) for ids in dataset["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    with in_eval_mode(model):
        for start in range(0, len(order), batch_size):
            rows = [dataset[row] for row in order[start : start + batch_size]]
            batch = collate(rows)
            names = None if with_prompt else [None] * len(rows)
            if isinstance(model, PTunedModel) and not (with_prompt and model.predicts_first_tokens):
                batch = without_first_labels(batch)
            # It goes to the model's device by itself; labels and lengths are the host's to look at.
            if TEACHER_IDS in batch and isinstance(model, PTunedModel):
                loss = divergence(model, batch, prompt_names=names, num_items=1)
            else:
                loss = model(**batch, prompt_names=names, num_items_in_batch=1, return_logits=False).loss
            summed.add(loss, supervised(batch))
            done += len(rows)
            if progress is not None:
                progress(done)
    return summed.mean(processes, device_of(model.base))
