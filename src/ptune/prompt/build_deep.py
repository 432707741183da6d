"""A deep prompt for a given frozen model: its sizes, and where its keys and values start.

Keys and values that the model made itself are where training begins best (Eyuboglu et al. 2025, "Cartridges"): the
model knows what to make of them. Here they come from a text, from sampled tokens, or from an input prompt that has been
trained; each is run through the model once. Of a longer text `P` tokens can be taken that have seen the whole of it:
the last ones, or even ones. They stand at the distances at which they would stand if all of the text were there, so the
text begins to count at `P - T`. Where a model has positions of its own for each place (GPT-2) it begins at 0.

Shapes: `P` virtual tokens, `L` layers, `H` key/value heads, `E` head dimension, `T` tokens of a text, `D` token
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import Any

import torch
from transformers import PreTrainedModel

from ptune.config import PromptTuningInit
from ptune.deep_config import CartridgeConfig, PrefixTuningConfig, TextTokens
from ptune.encoders import DeepEncoder, build_deep_encoder
from ptune.encoders.initialise import repeated, sampled_tokens
from ptune.errors import ConfigError
from ptune.frozen.capability import context_length
from ptune.frozen.eval_mode import in_eval_mode
from ptune.frozen.filler_ids import filler_of
from ptune.frozen.parameters import device_of, has_weights
from ptune.frozen.parts import embedding_table, output_head, token_dim
from ptune.prefix.deep_prompts import (
    KeyValueShape,
    counts_distances,
    encode_tokens,
    encode_vectors,
    key_value_shape,
    rows_of,
)
from ptune.prefix.keys_values import Prefix, encode_prefix

DeepConfig = PrefixTuningConfig | CartridgeConfig


def empty_deep_encoder(config: DeepConfig) -> DeepEncoder:
    """The encoder that a complete configuration describes, before any initialisation of ours.

    Raises:
        ConfigError: No virtual token is left to train.
    """
    assert config.token_dim is not None
    assert config.num_layers is not None
    assert config.num_attention_heads is not None
    projects = isinstance(config, PrefixTuningConfig) and config.prefix_projection
    return build_deep_encoder(
        "prefix-mlp" if projects else "prefix",
        num_virtual_tokens=config.num_virtual_tokens,
        token_dim=config.token_dim,
        layers=config.num_layers,
        heads=config.num_attention_heads,
        hidden_size=config.encoder_hidden_size if isinstance(config, PrefixTuningConfig) else None,
        num_frozen_tokens=config.num_frozen_tokens if isinstance(config, CartridgeConfig) else 0,
    )


def completed_deep(base: PreTrainedModel, config: DeepConfig) -> DeepConfig:
    """A configuration with the model's sizes.

    Raises:
        ConfigError: It has others.
        ModelError: The model keeps no keys and values of one shape.
    """
    shape, text = key_value_shape(base), base.config.get_text_config()
    # PEFT takes the model's own sizes for those of its key/value heads.
    known: dict[str, tuple[int, ...]] = {
        "num_layers": (shape.layers,),
        "num_attention_heads": (shape.heads, getattr(text, "num_attention_heads", shape.heads)),
        "token_dim": (shape.token_dim, token_dim(base), getattr(text, "hidden_size", shape.token_dim)),
    }
    for name, values in known.items():
        given = getattr(config, name)
        if given is not None and given not in values:
            raise ConfigError(
                f"{name}={given}, but the model keeps keys and values of {shape}.", hint=f"Leave {name} out."
            )
    sizes: dict[str, Any] = {
        "num_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "token_dim": shape.token_dim,
    }
    completed = replace(config, **sizes)
    if isinstance(completed, PrefixTuningConfig) and completed.prefix_projection:
        completed = replace(completed, encoder_hidden_size=completed.encoder_hidden_size or shape.token_dim)
    return completed


def build_deep(
    base: PreTrainedModel,
    config: DeepConfig,
    start: torch.Tensor | Prefix | None,
    *,
    text_ids: Sequence[int] | None,
    special_ids: Sequence[int],
) -> DeepEncoder:
    """A new encoder of keys and values, initialised where the model has weights.

    Args:
        base: The frozen model.
        config: What to build, complete.
        start: Keys and values to start from, or vectors `(any, D)` that are run through the model, in place of what the
            configuration says; too many are cut, too few repeated.
        text_ids: Of the initial text, where there is one.
        special_ids: Tokens that are no ordinary ones.

    Raises:
        ConfigError: The start does not fit.
    """
    encoder, count, shape = empty_deep_encoder(config), config.num_virtual_tokens, key_value_shape(base)
    if not has_weights(base):
        return encoder
    if start is not None:
        encoder.start_at(_given_rows(base, start, count, shape))
    elif text_ids is not None:
        encoder.start_at(text_rows(base, text_ids, count, TextTokens(config.init_text_tokens or TextTokens.FIRST)))
    elif isinstance(config, PrefixTuningConfig) and config.init_weights == "zero":
        encoder.start_at_zero()
    else:
        ids = sampled_tokens(int(base.config.get_text_config().vocab_size), count, special_ids)
        rows = rows_of(encode_tokens(base, ids)).cpu()
        if config.init is PromptTuningInit.SAMPLE_VOCAB:
            encoder.start_at(rows)
        else:
            encoder.start_at_random(rows.view(count, 2 * shape.layers, -1).transpose(0, 1).flatten(1).std(dim=1))
    return encoder


def text_rows(base: PreTrainedModel, ids: Sequence[int], count: int, which: TextTokens) -> torch.Tensor:
    """`(P, 2 L H E)`: keys and values of tokens of a text, which is repeated where it has too few.

    Args:
        base: The frozen model.
        ids: The text's `T` tokens.
        count: `P`.
        which: Which of them, where there are more.

    Raises:
        ConfigError: The text has no tokens, or more than the model can read.
    """
    if not ids:
        raise ConfigError("the initial text gives no tokens.", hint="Give a text with at least one word.")
    if which is TextTokens.FIRST or len(ids) <= count:
        return rows_of(encode_tokens(base, list(islice(chain.from_iterable(repeat(ids)), count)))).cpu()
    limit = context_length(base)
    if limit is not None and len(ids) > limit:
        raise ConfigError(
            f"the initial text has {len(ids):,} tokens, more than the model's context of {limit:,}.",
            hint="Shorten it, or take its first tokens (init_text_tokens=first).",
        )
    first = count - len(ids) if counts_distances(base, ids) else 0
    rows = rows_of(encode_tokens(base, ids, first_position=first)).cpu()
    if which is TextTokens.LAST:
        return rows[-count:]
    return rows[torch.linspace(0, len(ids) - 1, count).round().long()]


def _given_rows(base: PreTrainedModel, start: torch.Tensor | Prefix, count: int, shape: KeyValueShape) -> torch.Tensor:
    """`(P, 2 L H E)` of keys and values, or of vectors `(any, D)`."""
    if isinstance(start, torch.Tensor):
        vectors = repeated(start, count).to(device_of(base), embedding_table(base).dtype)
        causal = output_head(base) is not None and not base.config.is_encoder_decoder
        with torch.no_grad(), in_eval_mode(base):
            start = encode_prefix(base, vectors, filler_id=filler_of(base)) if causal else encode_vectors(base, vectors)
    rows = rows_of(start).cpu()
    if rows.shape[1] != shape.numbers:
        raise ConfigError(
            f"the keys and values to start from are {rows.shape[1]:,} numbers a token; the model's {shape.numbers:,}.",
            hint="Start from a prompt of this model.",
        )
    return repeated(rows, count)
