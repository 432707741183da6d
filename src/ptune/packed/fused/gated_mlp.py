"""The gated feed-forward layer `down(silu(gate(x)) · up(x))` (Shazeer 2020) with frozen weights.

Saved for the backward are the gate's and the up product's outputs, nothing else; the backward works in their place.

Shapes: `N` positions, `D` hidden size, `F` intermediate size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import SiLUActivation
from typing_extensions import override

from ptune.frozen.product import product, suits

Weights = tuple[torch.Tensor, torch.Tensor | None]


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: Weights, up: Weights, down: Weights) -> torch.Tensor:
        gated, upped = product(x, *gate), product(x, *up)
        ctx.save_for_backward(gated, upped)
        ctx.weights = gate[0], up[0], down[0]
        return product(F.silu(gated).mul_(upped), *down)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gated, upped = ctx.saved_tensors
        gate, up, down = ctx.weights
        inner = product(grad, down.t())
        grad_up = F.silu(gated).mul_(inner)
        grad_gate = torch.ops.aten.silu_backward(inner.mul_(upped), gated)
        return product(grad_up, up.t()).add_(product(grad_gate, gate.t())), None, None, None


class FrozenGatedMLP(nn.Module):
    """Stands in for Llama's MLP and those like it; built by `ptune.packed.fused.replacements` from one of them."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(…, D)` of `(…, D)`."""
        parts = [(part.weight, part.bias) for part in (self.gate_proj, self.up_proj, self.down_proj)]
        plain = all(isinstance(part, nn.Linear) for part in (self.gate_proj, self.up_proj, self.down_proj))
        if (
            plain
            and isinstance(self.act_fn, (nn.SiLU, SiLUActivation))
            and suits(x, *(tensor for part in parts for tensor in part))
        ):
            result: torch.Tensor = _GatedMLP.apply(x, *parts)  # type: ignore[no-untyped-call]
            return result
        original: torch.Tensor = super().forward(x)
        return original
