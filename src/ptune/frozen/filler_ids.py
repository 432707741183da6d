"""Virtual tokens for models that make more of token ids than their embeddings.

Gemma 3n and 4 look up a second embedding for every layer by token id, DeepSeek V4 routes tokens to experts by id,
others hash neighbouring ids. A virtual token has no id. It goes by a filler, the padding token, as Gemma's own soft
tokens do (those of a picture or of sound), and its vector takes the place of the filler's embedding: the model is run
on ids, with an embedding layer that answers with the vectors given.

Shapes: `B` rows, `Q` positions, `N` tokens, `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.frozen.shards import shallow_copy
from ptune.internals import children_of


def filler_of(model: PreTrainedModel) -> int:
    """The token id that virtual tokens go by."""
    config = model.config.get_text_config(decoder=True)
    given = getattr(config, "pad_token_id", None)
    return given if isinstance(given, int) and 0 <= given < config.vocab_size else 0


def with_fillers(ids: torch.Tensor, virtual: int, filler: int) -> torch.Tensor:
    """`(P + N,)`: ids `(N,)` behind `P` fillers."""
    return torch.cat([ids.new_full((virtual,), filler), ids])


def fed(
    model: PreTrainedModel, embeds: torch.Tensor, ids: torch.Tensor | None
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A model, and the arguments that hand it embeddings.

    Args:
        model: The model; it stays as it is.
        embeds: `(B, Q, D)`.
        ids: `(B, Q)`, where the model needs them beside; None where embeddings are all it reads.

    Returns:
        The model itself and `inputs_embeds`; or a shallow copy whose embedding layer gives `embeds`, and `input_ids`.
    """
    if ids is None:
        return model, {"inputs_embeds": embeds}
    layer = model.get_input_embeddings()
    given = copy.copy(layer)

    def forward(asked: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found: torch.Tensor = embeds if asked.shape == embeds.shape[:-1] else layer(asked, *args, **kwargs)
        return found

    given.__dict__["forward"] = forward
    path = next(name for name, module in model.named_modules() if module is layer)
    twin = _exchanged(model, path.split("."), given)
    assert isinstance(twin, PreTrainedModel)
    return twin, {"input_ids": ids}


def _exchanged(module: nn.Module, path: list[str], inner: nn.Module) -> nn.Module:
    """A shallow copy of a module with another one at a path below it; everything else is shared."""
    if not path:
        return inner
    twin = shallow_copy(module)
    children = children_of(module)
    child = children[path[0]]
    assert child is not None
    twin.__dict__["_modules"] = {**children, path[0]: _exchanged(child, path[1:], inner)}
    return twin
