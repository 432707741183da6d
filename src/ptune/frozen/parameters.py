"""A model's parameters: where they are, and how many, counted as PEFT counts them.

What accelerate has offloaded to the CPU or a disk is on the meta device between its uses.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.frozen.parts import embedding_table


def has_weights(base: PreTrainedModel) -> bool:
    """Whether a model can be run here: not on the meta device, and not scattered over processes."""
    offloaded = getattr(base, "hf_device_map", None) is not None
    return all((offloaded or not weight.is_meta) and weight.numel() > 0 for weight in base.parameters())


def device_of(base: PreTrainedModel) -> torch.device:
    """Where a model's text goes in: where its embeddings are or, with those offloaded, its first weight that is not."""
    weights = chain([embedding_table(base)], base.parameters())
    first = next((weight.device for weight in weights if not weight.is_meta), None)
    if first is not None:
        return first
    return torch.device("cpu" if has_weights(base) else "meta")


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
