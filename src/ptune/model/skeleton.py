"""A model without weights: its shapes and names, from the configuration alone."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ptune.errors import ModelError, one_line


def skeleton(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A frozen model on the meta device.

    Raises:
        ModelError: The configuration is no causal language model's.
    """
    try:
        with torch.device("meta"):
            base: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"no model can be made of this configuration: {one_line(error)}") from error
    base.requires_grad_(False)
    base.eval()  # type: ignore[no-untyped-call]
    return base
