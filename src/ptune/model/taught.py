"""A prompt measured against a teacher: how far its model's distributions are from those that it is to imitate.

Knowledge distillation (Hinton et al. 2015) on soft labels, and with a text's reader as teacher context distillation
(Snell et al. 2022). The divergence is taken over `K + 1` outcomes: each of the teacher's `K` likeliest tokens, and all
others together. That is a lower bound of the divergence over the whole vocabulary, is 0 where the two agree on those
outcomes, and needs no more of the teacher than can be stored.

Shapes: `S` supervised positions, `K` tokens of each, `B` rows, `T` tokens of the longest row, `N` tokens of all rows of
a packed batch, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ptune.batch.row_prompts import RowNames
from ptune.data.first_labels import without_first_labels
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import SoftLabels, soft_labels_of
from ptune.frozen.parameters import device_of
from ptune.model.wrapper import PTunedModel
from ptune.packed.chunked_loss import positions_at_once, summed_divergence
from ptune.packed.head import FrozenHead

_TEXT = ("input_ids", "attention_mask", "row_lengths")


def divergence(
    model: PTunedModel,
    batch: Mapping[str, Any],
    *,
    prompt_names: RowNames = None,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """KL(teacher ‖ model) over a batch's supervised positions, in nats; with a gradient for the prompt.

    A row's first token is left out: a question stands before every answer.

    Args:
        model: The model with its prompts.
        batch: A padded or packed batch with `labels` and soft labels.
        prompt_names: As for `PTunedModel.forward`.
        num_items: By which the sum is divided; the number of supervised positions when None.
    """
    batch = without_first_labels(batch)
    teacher = soft_labels_of(batch, device_of(model.base))
    hidden = _predicting(model, batch, prompt_names)
    total = summed_divergence(FrozenHead(model.base), hidden, teacher)
    count = max(len(teacher.ids), 1) if num_items is None else num_items
    return total / (count.to(total.device) if isinstance(count, torch.Tensor) else count)


@torch.no_grad()
def soft_labels(
    model: PTunedModel, batch: Mapping[str, Any], top_k: int, *, prompt_names: RowNames = None
) -> SoftLabels:
    """The likeliest tokens at a batch's supervised positions, on the CPU.

    Args:
        model: The teacher, in eval mode.
        batch: A padded or packed batch with `labels`, none of them at a row's first token.
        top_k: `K`.
        prompt_names: As for `PTunedModel.forward`.
    """
    hidden, head = _predicting(model, batch, prompt_names), FrozenHead(model.base)
    ids, log_probs = [], []
    for part in torch.split(hidden, positions_at_once(head.vocab_size, hidden.device.type)):
        logits = head.logits(part)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
        found = wide.topk(min(top_k, head.vocab_size), dim=1)
        ids.append(found.indices.cpu())
        log_probs.append(found.values.cpu())
    return SoftLabels(torch.cat(ids), torch.cat(log_probs))


@torch.no_grad()
def likeliest_tokens(model: PTunedModel, batch: Mapping[str, Any], *, prompt_names: RowNames = None) -> torch.Tensor:
    """`(S,)`, on the CPU: what the model would write at a batch's supervised positions."""
    return soft_labels(model, batch, 1, prompt_names=prompt_names).ids[:, 0]


def _predicting(model: PTunedModel, batch: Mapping[str, Any], prompt_names: RowNames) -> torch.Tensor:
    """`(S, D)`: the hidden states that predict the batch's supervised tokens, row by row."""
    text = {name: batch[name] for name in _TEXT if name in batch}
    hidden = model.last_hidden_state(**text, prompt_names=prompt_names)
    rows, columns = torch.nonzero(batch["labels"] != IGNORE_INDEX, as_tuple=True)
    return hidden[rows.to(hidden.device), columns.to(hidden.device) - 1]
