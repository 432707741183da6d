"""Smaller copies of a model's configuration: fewer layers, whole periods of their pattern."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from transformers import PretrainedConfig

FEWEST = 3
"""Layers of the smaller copy: a first one, a last one, and one between."""


def layer_pattern(config: PretrainedConfig) -> tuple[int, int]:
    """(layers of the smaller copy, by how many layers the larger one has more), as the configuration's lists say."""
    text = config.get_text_config(decoder=True)
    layers = text.num_hidden_layers
    if getattr(text, "num_kv_shared_layers", None):
        return layers, 0
    kinds = list(zip(*_lists_by_layer(text).values(), strict=True)) or [()] * layers
    patterns = [
        (fewest, period)
        for period in range(1, layers)
        for fewest in range(FEWEST, layers - period + 1)
        if kinds[fewest:-period] == kinds[fewest + period :]
    ]
    return min(patterns, key=lambda pattern: (sum(pattern), pattern), default=(layers, 0))


def _lists_by_layer(text: PretrainedConfig) -> dict[str, list[Any]]:
    """The configuration's lists that have an entry a layer."""
    made = {name: getattr(text, name, None) for name in ("layer_types", "layers_block_type")}
    found = {**vars(text), **made}
    return {
        name: kept for name, kept in found.items() if isinstance(kept, list) and len(kept) == text.num_hidden_layers
    }


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The configuration with fewer layers."""
    small = copy.deepcopy(config)
    text = small.get_text_config(decoder=True)
    lists = _lists_by_layer(text)
    text.num_hidden_layers = layers
    for name, kept in lists.items():
        with contextlib.suppress(AttributeError):  # some are made from other fields
            setattr(text, name, kept[:layers])
    return small
