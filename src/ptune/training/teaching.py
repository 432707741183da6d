"""What a run is given that learns from a teacher: the model that taught, its soft labels, and where the prompt starts.

Such a run is any other (the same rows, batches, checkpoints and prompt folder), but for its loss: the divergence from
what the teacher held likely (`ptune.model.taught`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset

from ptune.model.wrapper import PTunedModel
from ptune.prefix.keys_values import Prefix
from ptune.training.rows import Rows


@dataclass(frozen=True)
class Teaching:
    """Of one run."""

    model: PTunedModel
    """The frozen model, loaded, without prompts."""
    label: Callable[[Dataset], Dataset]
    """Adds the columns of `ptune.data.soft_labels` to tokenized rows."""
    start: Callable[[], torch.Tensor | Prefix | None]
    """Where the prompt starts; None: where the recipe says."""
    details: Mapping[str, Any]
    """For `ptune.json`."""

    def labelled(self, rows: Rows) -> Rows:
        """The rows with soft labels."""
        tokens, held_out = (
            None if part is None else replace(part, dataset=self.label(part.dataset))
            for part in (rows.tokens, rows.held_out_tokens)
        )
        assert tokens is not None
        return replace(rows, tokens=tokens, held_out_tokens=held_out)
