"""A decoder that stands under a classifier, as the causal language model that it comes from.

Its layers are the classifier's own, its LM head the token embeddings, as in models that tie the two. So it takes
every way through a causal model, packed rows and a prompt that is computed once among them, and it can be tried as one.
Only its hidden states are of use.

Shapes: `V` vocabulary, `D` hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from ptune.frozen.parts import embedding_table
from ptune.internals import children_of

_OF_THE_WHOLE = ("hf_device_map", "hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_8bit")
"""What loading notes on a model."""


def as_causal_model(inner: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """A causal language model around the layers of another model, which it shares.

    Args:
        inner: The layers.
        model: The model that they are part of, or they themselves.
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config)]
    with torch.device("meta"):
        shell: PreTrainedModel = kind(inner.config)
    table: Any = embedding_table(inner)
    for name, child in children_of(shell).items():
        if name != shell.base_model_prefix and child is not None:
            child.to_empty(device=table.device).to(table.dtype)
            for weight in child.parameters():
                nn.init.zeros_(weight)
    setattr(shell, shell.base_model_prefix, inner)
    head: Any = shell.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    if head.weight.shape == table.shape:
        head.weight = table
    else:
        # No parameter: it is not a part of the model that a prompt belongs to.
        drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)).to(table.device, table.dtype)
        del head.weight
        head.__dict__["weight"] = drawn / drawn.shape[1] ** 0.5
    shell.__dict__.update({name: value for name, value in model.__dict__.items() if name in _OF_THE_WHOLE})
    shell.requires_grad_(False)
    return shell.eval() if not inner.training else shell  # type: ignore[no-untyped-call]  # transformers' own
