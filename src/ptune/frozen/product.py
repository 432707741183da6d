"""Products with frozen weights, on the CPU by oneDNN.

PyTorch sends float32 products on x86 to MKL, which on processors that are not Intel's leaves AVX-512 unused: there
oneDNN, which is part of PyTorch too, is about twice as fast (`benchmarks/results/floor.json`). Both compute in float32.

Shapes: `N` positions, `I` inputs, `O` outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from ptune.internals import ONEDNN_LINEAR

_FUSED = (torch.float32, torch.bfloat16, torch.float16)
_MIN_ROWS = 8
"""Below this a product reads the weights and does little else, and all kernels are alike."""


def onednn_pays() -> bool:
    """Whether float32 products on this machine's CPU go to oneDNN."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # PyTorch's own
    return available and torch.backends.cpu.get_cpu_capability() == "AVX512"


_PAYS = onednn_pays()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`(…, O)`: `x` `(…, I)` times the transpose of `weight` `(O, I)`, plus `bias` `(O,)`; no gradients.

    By the fastest kernel for the device and dtype; under autocast by PyTorch's, which casts.
    """
    if x.device.type == "cpu":
        # For the last position of every text, a view, PyTorch would copy the weight once a text.
        x = x.contiguous()
    if (
        _PAYS
        and ONEDNN_LINEAR is not None
        and not torch.is_autocast_enabled("cpu")
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and x.numel() >= _MIN_ROWS * x.shape[-1]
    ):
        result: torch.Tensor = ONEDNN_LINEAR(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # Kept as it is rather than saved: a frozen weight is no part of the graph.
        ctx.weight = weight
        return product(x, _unpacked(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return product(grad, _unpacked(ctx.weight, grad.dtype).t()), None, None


def _unpacked(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight as numbers: itself, or what torchao has quantized, dequantized."""
    return weight if is_plain(weight) else weight.dequantize().to(dtype)


def frozen_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`product`, with a gradient for `x` alone."""
    result: torch.Tensor = _FrozenProduct.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def suits(x: torch.Tensor, *weights: torch.Tensor | None) -> bool:
    """Whether the fused parts can take `x` and these weights: plain, of one dtype, and nothing that trains.

    float64 is left to transformers: it is there to compare with. Not under autocast, which chooses a dtype for every
    step.
    """
    if x.dtype not in _FUSED or torch.is_autocast_enabled(x.device.type):
        return False
    return not any(
        weight is not None and (weight.requires_grad or weight.dtype is not x.dtype or not is_plain(weight))
        for weight in weights
    )


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is an ordinary tensor, whose numbers kernels can read; torchao's and others are not.

    A tensor that stands for one without having its data, as in a forecast of memory, is ordinary too.
    """
    kind = type(weight)
    return kind in (torch.Tensor, nn.Parameter) or kind.__module__ == "torch._subclasses.fake_tensor"


def is_packed(weight: torch.Tensor) -> bool:
    """Whether a weight is one of torchao's quantized ones.

    torchao's own product would keep a full-size copy of each for the backward; here it is unpacked once more instead.
    """
    return type(weight).__module__.startswith("torchao.") and not weight.requires_grad


class FrozenLinear(nn.Linear):
    """`nn.Linear` whose weights do not train."""

    @override
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(…, O)` of `(…, I)`."""
        if suits(input, self.weight, self.bias) or is_packed(self.weight):
            return frozen_product(input, self.weight, self.bias)
        return super().forward(input)


class FrozenConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is `(I, O)`."""

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(…, O)` of `(…, I)`."""
        if suits(x, self.weight, self.bias):
            return frozen_product(x, self.weight.t(), self.bias)
        result: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return result
