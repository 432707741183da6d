"""A model without weights: its shapes and names, from the configuration alone."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ptune.config import TaskType
from ptune.errors import ModelError, one_line
from ptune.loading.for_task import auto_class


def skeleton(
    config: PretrainedConfig, dtype: torch.dtype = torch.float32, *, task: TaskType = TaskType.CAUSAL_LM
) -> PreTrainedModel:
    """A frozen model on the meta device.

    Args:
        config: The model's.
        dtype: Of its weights.
        task: What the model is for.

    Raises:
        ModelError: The configuration is that of no model for the task.
    """
    try:
        with torch.device("meta"):
            base: PreTrainedModel = auto_class(task).from_config(config, dtype=dtype)
    except Exception as error:  # whatever the model's own code raises
        raise ModelError(f"no model can be made of this configuration: {one_line(error)}") from error
    # Weights that a class draws in a way of its own have been made with data.
    base.to("meta").requires_grad_(False)  # type: ignore[arg-type]
    base.eval()  # type: ignore[no-untyped-call]
    return base
