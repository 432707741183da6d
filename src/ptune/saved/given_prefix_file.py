"""PEFT's prefix tuning from its folder, checked against the model it is to stand in front of."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from ptune.config import PromptTuningConfig
from ptune.errors import ConfigError, ModelError, PromptError
from ptune.frozen.capability import prefix_capability
from ptune.frozen.parameters import device_of
from ptune.frozen.parts import embedding_table, token_dim
from ptune.prefix.given_prefix import GivenPrefix
from ptune.prefix.keys_values import encode_prefix
from ptune.saved.opened_folder import OpenedFolder
from ptune.saved.prefix_tuning import SavedPrefix, read_prefix


def load_given_prefix(
    base: PreTrainedModel, opened: OpenedFolder, *, trainable: bool
) -> tuple[GivenPrefix, PromptTuningConfig]:
    """A prefix-tuning adapter, checked against the model it is to stand in front of.

    Raises:
        ConfigError: It is to be trained on.
        ModelError: The model takes no keys and values.
        PromptError: The folder is damaged, or its layers are not this model's.
    """
    folder, saved = opened.path, read_prefix(opened)
    if trainable:
        raise ConfigError(
            f"{folder} holds prefix tuning of PEFT's, which ptune answers with and does not train.",
            hint="Load it with trainable=False, or train a prompt: ptune train.",
        )
    capability = prefix_capability(base)
    if not capability.prefix:
        raise ModelError(
            f"{folder} holds keys and values for every layer, and {capability.reason}.",
            hint="Prefix tuning needs a model with a key/value cache.",
        )
    prefix = GivenPrefix(saved.values, layers=saved.layers, heads=saved.heads)
    _check_shapes(base, folder, saved, prefix)
    config = PromptTuningConfig(
        num_virtual_tokens=prefix.num_virtual_tokens,
        token_dim=token_dim(base),
        base_model_name_or_path=saved.base_model,
        revision=saved.revision,
        inference_mode=True,
    )
    return prefix.to(device_of(base)), config


def _check_shapes(base: PreTrainedModel, folder: Path, saved: SavedPrefix, prefix: GivenPrefix) -> None:
    """Compare layers, heads and their size with those of one token that is run through the model."""
    table = embedding_table(base)
    with torch.no_grad():
        own = encode_prefix(base, table[:1])
    found = [(*keys.shape[1::2], *values.shape[1::2]) for keys, values in own.layers]
    given = [(*keys.shape[1::2], *values.shape[1::2]) for keys, values in prefix.prefix(base, table.dtype).layers]
    if given != found:
        raise PromptError(
            f"{folder} holds keys and values of {_shown(given)}; this model has {_shown(found)}.",
            hint=f"It was made for {saved.base_model}.",
        )


def _shown(shapes: list[tuple[int, ...]]) -> str:
    kinds = sorted({f"{heads} heads of {size}" for heads, size, *_ in shapes})
    return f"{len(shapes)} layers with {' or '.join(kinds)}"
