"""Counting parameters as PEFT counts them, and PEFT's line about them."""

from __future__ import annotations

import torch
from torch import nn


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """`(trainable, all)` parameters of a module; shared ones count once."""
    sizes = [(_logical_numel(parameter), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


def parameters_line(trainable: int, total: int) -> str:
    """`trainable params: … || all params: … || trainable%: …`, in PEFT's wording."""
    return f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"


def _logical_numel(parameter: torch.Tensor) -> int:
    """Elements of a parameter; 4-bit weights of bitsandbytes hold two in a byte, as PEFT counts them."""
    if type(parameter).__name__ == "Params4bit":
        return parameter.numel() * 2 * parameter.element_size()
    return parameter.numel()
