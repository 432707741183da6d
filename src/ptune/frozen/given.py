"""In place of a module: a result that is there already.

A model's own `forward` is run on such a stand-in for its layers where only what it does behind them is wanted: its LM
head, or a classifier with its pooling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from typing_extensions import override

from ptune.internals import viewed


class LayersOutput(BaseModelOutputWithPast):
    """What layers give: hidden states, and None under every other name."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Given(nn.Module):
    """In place of a module: a result that is there already.

    Args:
        result: The result.
        expected: What the module should be given for the result to be right.
        weight: The module's, whose dtype some models ask for (Mamba).
    """

    def __init__(self, result: Any, expected: torch.Tensor | None = None, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.result = result
        self.expected = expected
        self.weight = weight
        self.as_expected = expected is None
        """Whether the module was given what was expected."""

    @property
    def decoder(self) -> Given:
        """OPT's causal model calls its inner model's decoder."""
        return self

    @override
    def forward(self, *args: Any, **_kwargs: Any) -> Any:
        if self.expected is not None:
            found = args[0] if args else None
            self.as_expected = (
                isinstance(found, torch.Tensor)
                and viewed(found) is viewed(self.expected)
                and found.storage_offset() == self.expected.storage_offset()
                and found.numel() == self.expected.numel()
                and found.shape[-1] == self.expected.shape[-1]
            )
        return self.result
