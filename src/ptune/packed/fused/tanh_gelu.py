"""GELU by its tanh approximation (Hendrycks & Gimpel 2016) in one step, as BLOOM and GPT-2 have it.

transformers writes it in nine steps forward and, for BLOOM, eighteen backward; PyTorch has one kernel for each, which
keeps the input alone and computes in float32 inside.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from ptune.frozen.product import suits


class FusedTanhGELU(nn.Module):
    """Stands in for BLOOM's and GPT-2's; built by `ptune.packed.fused.replacements` from one of them."""

    @override
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `input`."""
        if suits(input):
            return F.gelu(input, approximate="tanh")
        original: torch.Tensor = super().forward(input)
        return original
