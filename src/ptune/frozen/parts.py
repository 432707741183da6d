"""The parts of a frozen model: token embeddings, layers, LM head.

Shapes: `V` vocabulary, `D` token dimension.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.internals import children_of


def embedding_table(base: PreTrainedModel) -> torch.Tensor:
    """The weights of the model's input embeddings, `(V, D)`."""
    table = base.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return table


def token_dim(base: PreTrainedModel) -> int:
    """`D`: the size of the model's input embeddings, which need not be its hidden size."""
    return int(embedding_table(base).shape[-1])


def layers_of(model: PreTrainedModel) -> nn.Module | None:
    """What comes before the LM head: embeddings, layers and last norm; None where the model is not built that way."""
    layers = children_of(model).get(model.base_model_prefix)  # as an attribute it could be the model itself
    return layers if isinstance(layers, nn.Module) else None


def output_head(base: PreTrainedModel) -> torch.nn.Module | None:
    """The model's LM head; None where it has none."""
    head: torch.nn.Module | None = base.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    return head
