"""Memory that one position of a row takes: keys and values of every layer."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache

from ptune.frozen.cache_argument import as_cache
from ptune.frozen.parameters import device_of
from ptune.model.wrapper import PTunedModel
from ptune.prefix.keys_values import keys_and_values
from ptune.serving.engine.batched_model import batching_obstacle


@torch.no_grad()
def position_bytes(model: PTunedModel) -> int | None:
    """Bytes of one position, found by running one token; None for a model whose rows share no batch."""
    if batching_obstacle(model) is not None:
        return None
    cache = DynamicCache()
    ids = torch.zeros(1, 1, dtype=torch.long, device=device_of(model.base))
    model.base(input_ids=ids, **as_cache(model.base, cache), use_cache=True)
    return sum(part.nbytes for layer in keys_and_values(cache) for part in layer)
