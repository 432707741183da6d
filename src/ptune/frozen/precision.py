"""Which autocast a frozen model goes with."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ptune.errors import ModelError

_HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Half precisions → the training argument that asks for them."""


def check_autocast(base: PreTrainedModel, device: torch.device) -> None:
    """`check_mixed` for the autocast that is on, where one is."""
    if torch.is_autocast_enabled(device.type):
        check_mixed(base, torch.get_autocast_dtype(device.type))


def check_mixed(base: PreTrainedModel, asked: torch.dtype | None) -> None:
    """Raise `ModelError` when autocast to `asked` meets a model in the other half precision.

    PyTorch multiplies no bfloat16 with float16, and its error names neither.
    """
    if asked in _HALF and base.dtype in _HALF and base.dtype is not asked:
        own, other = (str(dtype).removeprefix("torch.") for dtype in (base.dtype, asked))
        raise ModelError(
            f"the model is in {own}, and autocast is to {other}; PyTorch has no products of the two.",
            hint=f"Ask for {_HALF[base.dtype]}, or load the model with dtype={other} or float32.",
        )
