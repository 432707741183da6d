"""The loss of each task, from a model's logits: transformers' own functions, with what they leave out.

Where a row is padded, its padding takes no part: the places of an answer are chosen among the text's tokens alone, so
that a row's loss is the one it has by itself.

Shapes: `B` rows, `T` tokens of the longest row, `A` tokens of the longest answer, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import (
    ForSequenceClassificationLoss,
    ForTokenClassification,
)

from ptune.data.labels import IGNORE_INDEX

Count = torch.Tensor | int | None
"""Labels of the whole optimizer step, by which a summed loss is divided; None takes the mean over the batch."""


def sequence_loss(logits: torch.Tensor, labels: torch.Tensor, config: PreTrainedConfig, count: Count) -> torch.Tensor:
    """Cross-entropy of labels `(B,)`; squared error for one label, binary cross-entropy for `(B, labels)` floats."""
    if (config.num_labels or 0) > 1 and not labels.is_floating_point() and not bool((labels != IGNORE_INDEX).any()):
        return logits.sum() * 0.0
    loss = _checked(ForSequenceClassificationLoss(labels, logits, config, **_counted(count)))
    if count is None or config.problem_type == "single_label_classification":
        return loss
    return loss * labels.numel() / count  # a mean in transformers, whatever the step counts


def token_loss(logits: torch.Tensor, labels: torch.Tensor, config: PreTrainedConfig, count: Count) -> torch.Tensor:
    """Cross-entropy of labels `(B, T)`, -100 where a token has none."""
    if not bool((labels != IGNORE_INDEX).any()):
        return logits.sum() * 0.0
    return _checked(ForTokenClassification(logits, labels, config, **_counted(count)))


def span_loss(
    start: torch.Tensor, end: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, count: Count
) -> torch.Tensor:
    """Mean of the cross-entropies of both places `(B,)`; logits `(B, T)` are the lowest number at padding.

    A place that is not in the text is -1, and has no part in it.
    """
    both = [_place_loss(logits, places, count) for logits, places in ((start, starts), (end, ends))]
    return (both[0] + both[1]) / 2


def _place_loss(logits: torch.Tensor, places: torch.Tensor, count: Count) -> torch.Tensor:
    chosen = places >= 0
    if not bool(chosen.any()):
        return logits[:, 0].sum() * 0.0  # the first column is never padding, whose lowest numbers have no sum
    total = F.cross_entropy(logits[chosen].float(), places[chosen], reduction="sum" if count is not None else "mean")
    return total if count is None else total / count


def vocabulary_loss(logits: torch.Tensor, labels: torch.Tensor, count: Count) -> torch.Tensor:
    """Cross-entropy of the tokens `(B, A)` at their places, -100 where there is none; logits `(B, A, V)`."""
    places = labels != IGNORE_INDEX
    if not bool(places.any()):
        return logits.sum() * 0.0
    total = F.cross_entropy(logits[places].float(), labels[places], reduction="sum" if count is not None else "mean")
    return total if count is None else total / count


def _counted(count: Count) -> dict[str, Any]:
    return {} if count is None else {"num_items_in_batch": count}


def _checked(loss: Any) -> torch.Tensor:
    assert isinstance(loss, torch.Tensor)
    return loss
