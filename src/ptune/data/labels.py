"""The label of what is not supervised, as PyTorch's cross-entropy and all of transformers have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

IGNORE_INDEX: Final = -100


def supervised(batch: Mapping[str, Any]) -> torch.Tensor:
    """How many labels a batch has: of tokens, of rows, or answers that are marked in a text."""
    if "start_positions" in batch:
        marked: torch.Tensor = (batch["start_positions"] >= 0).sum()
        return marked
    count: torch.Tensor = (batch["labels"] != IGNORE_INDEX).sum()
    return count
