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
    except Exception as error:  # whatever the model's own code raises
        raise ModelError(f"no model can be made of this configuration: {one_line(error)}") from error
    # Weights that a class draws in a way of its own have been made with data.
    base.to("meta").requires_grad_(False)  # type: ignore[arg-type]
    base.eval()  # type: ignore[no-untyped-call]
    return base
