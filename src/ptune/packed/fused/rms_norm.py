"""Root mean square normalisation (Zhang & Sennrich 2019) with frozen weights, in the form Llama has it.

Saved for the backward are the input and one number a position; transformers' own, written in single steps, keeps the
normalised values and their squares too. In half precision all compute in float32 inside. On accelerators it is one
kernel of PyTorch's, which rounds once; the CPU has none, and here rounds where transformers does.

Shapes: `N` positions, `D` hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from ptune.frozen.product import suits


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, rstd)
        ctx.weight = weight
        normed: torch.Tensor = (wide * rstd).to(x.dtype).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, rstd = ctx.saved_tensors
        wide = x.float()
        scaled = grad.float() * ctx.weight.float()
        # d y / d x = rstd · (g − x · rstd² · mean(g · x))
        along = torch.linalg.vecdot(scaled, wide).unsqueeze(-1).mul_(rstd.square()).div_(x.shape[-1])
        return scaled.addcmul_(wide, along, value=-1).mul_(rstd).to(x.dtype), None, None


class FrozenRMSNorm(nn.Module):
    """Stands in for Llama's norm and those like it; built by `ptune.packed.fused.replacements` from one of them."""

    weight: nn.Parameter
    variance_epsilon: float

    @override
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(…, D)` of `(…, D)`."""
        if suits(hidden_states, self.weight):
            if hidden_states.device.type != "cpu":
                return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
            result: torch.Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
            return result
        original: torch.Tensor = super().forward(hidden_states)
        return original
