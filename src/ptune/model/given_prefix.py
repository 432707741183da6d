"""A prompt that is given as keys and values, not computed: PEFT's prefix tuning on ptune's prefix path.

Li & Liang 2021, "Prefix-Tuning". PEFT puts the trained keys and values into the cache as they are, layer after layer,
and lets the text start at position `P`: that is a `Prefix` as ptune's own, so forward and generation take it, whatever
the padding. What it cannot give is virtual-token embeddings. So it is not trained here, rows are not packed with it,
it stands in no concatenation, and it predicts no first token: no hidden state of the last virtual token exists, and
PEFT too leaves out the label of the first token.

Shapes: `P` virtual tokens, `L` layers, `H` key/value heads, `E` head dimension, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.checkpoint.prefix_tuning import SavedPrefix, read_prefix
from ptune.config import PromptTuningConfig
from ptune.encoders import PromptEncoder
from ptune.errors import ConfigError, ModelError, PromptError
from ptune.model.capability import prefix_capability
from ptune.model.parameters import device_of
from ptune.model.prefix import Prefix, encode_prefix
from ptune.model.prompts import embedding_table, token_dim


class GivenPrefix(PromptEncoder):
    """Keys and values of every layer, as PEFT keeps them: one row of `2 L H E` numbers a virtual token.

    Args:
        values: `(P, 2 L H E)`.
        layers: `L`.
        heads: `H`.
    """

    def __init__(self, values: torch.Tensor, *, layers: int, heads: int) -> None:
        length, width = values.shape
        with torch.device("meta"):
            super().__init__(num_virtual_tokens=length, token_dim=width)
        self.embedding.weight = nn.Parameter(values, requires_grad=False)
        self.layers, self.heads = layers, heads

    def forward(self) -> torch.Tensor:
        """Refused: there are no virtual-token embeddings."""
        raise PromptError(
            "this prompt is prefix tuning of PEFT's: keys and values of every layer, and no virtual-token embeddings. "
            "It cannot be saved, trained on, packed with rows, or concatenated with text (which activation "
            "checkpointing needs, and an answer to rows of different lengths beyond a sliding window).",
            hint="Copy the adapter's folder to save it; for the rest, train a prompt: ptune train.",
        )

    def prefix(self, base: PreTrainedModel, dtype: torch.dtype) -> Prefix:
        """The keys and values in a dtype, as the model's cache holds them; without a prediction."""
        rows = self.embedding.weight.to(dtype)
        parts = rows.view(self.num_virtual_tokens, 2 * self.layers, self.heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
        nothing = rows.new_zeros(1, base.config.get_text_config().vocab_size)
        return Prefix(
            layers=tuple((parts[at], parts[at + 1]) for at in range(0, 2 * self.layers, 2)),
            logits=nothing,
            predicts=False,
        )


def given_prefix_obstacle(encoders: Iterable[nn.Module]) -> str | None:
    """Why batches cannot be packed behind these prompts; None when they can."""
    if any(isinstance(encoder, GivenPrefix) for encoder in encoders):
        return "a prompt is given as keys and values (prefix tuning)"
    return None


def load_given_prefix(
    base: PreTrainedModel, folder: Path, *, trainable: bool
) -> tuple[GivenPrefix, PromptTuningConfig]:
    """A prefix-tuning adapter, checked against the model it is to stand in front of.

    Raises:
        ConfigError: It is to be trained on.
        ModelError: The model takes no keys and values.
        PromptError: The folder is damaged, or its layers are not this model's.
    """
    saved = read_prefix(folder)
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
