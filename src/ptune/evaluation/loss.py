"""Held-out loss of a prompt, and of the frozen model without one, over the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from ptune.model.concat import first_tokens
from ptune.model.loss import IGNORE_INDEX
from ptune.model.wrapper import PTunedModel


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean cross-entropy over supervised tokens, in nats."""

    loss: float
    tokens: int


@torch.no_grad()
def held_out_loss(
    model: PTunedModel,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    *,
    batch_size: int = 8,
    with_prompt: bool = True,
    progress: Callable[[int], None] | None = None,
) -> HeldOutLoss:
    """The loss over a tokenized data set, each supervised token weighing the same whatever the batches.

    Args:
        model: The model; its mode (train or eval) is left as it was.
        dataset: Columns `input_ids`, `attention_mask`, `labels`.
        collate: Makes a batch of rows.
        batch_size: Rows a batch; rows of similar length are put together.
        with_prompt: False measures the frozen model alone.
        progress: Called with the number of rows done.
    """
    was_training = model.training
    model.eval()
    total, tokens, done = 0.0, 0, 0
    lengths = [len(ids) for ids in dataset["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        rows = [dataset[row] for row in order[start : start + batch_size]]
        batch = {key: value.to(model.base.device) for key, value in collate(rows).items()}
        names = None if with_prompt else [None] * len(rows)
        if not with_prompt:
            # Nothing predicts the first token of a row then.
            batch["labels"][torch.arange(len(rows)), first_tokens(batch["attention_mask"])] = IGNORE_INDEX
        output = model(**batch, prompt_names=names, num_items_in_batch=1, return_logits=False)
        total += float(output.loss)
        tokens += int((batch["labels"] != IGNORE_INDEX).sum())
        done += len(rows)
        if progress is not None:
            progress(done)
    model.train(was_training)
    return HeldOutLoss(loss=total / max(tokens, 1), tokens=tokens)
