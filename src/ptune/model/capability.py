"""What a frozen model can do: how long its context is, and whether it takes the prompt as keys and values.

The prefix path (see `prefix`) hands every row of a batch an already filled key/value cache. That is right for a decoder
whose layers keep plain keys and values, with or without a sliding window. State-space models, models with layers that
share or compress their cache, and models whose code comes from the hub get the concatenation path instead, which is
always right and slower.

Everything here is read from the configuration and from `forward`'s signature; nothing is run.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
_ALIBI_MODELS = ("bloom",)
_REMOTE_CODE = "transformers_modules"


@dataclass(frozen=True)
class Capability:
    """How an architecture can be given a soft prompt."""

    prefix: bool
    """True when `forward` takes a filled key/value cache; False leaves the concatenation path."""
    sliding_window: int | None
    """The smallest attention window among the layers, in tokens; None when every layer sees the whole text."""
    takes_position_ids: bool
    """True when `forward` has an argument `position_ids`."""
    reason: str
    """Why, in words for the user."""


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens, virtual ones included, that the model's positions reach.

    None where the architecture has no such limit: ALiBi (BLOOM, Falcon with it), state-space models. A sliding window
    is no limit. MPT has one in spite of its ALiBi: its bias is built for `max_seq_len` positions.
    """
    config = model.config.get_text_config(decoder=True)
    if config.model_type in _ALIBI_MODELS or getattr(config, "alibi", False):
        return None
    for name in _LENGTH_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def prefix_capability(model: PreTrainedModel) -> Capability:
    """Whether `model` takes the prompt as a filled cache, with the reason."""
    arguments = inspect.signature(model.forward).parameters
    takes_position_ids = "position_ids" in arguments
    obstacle = _obstacle(model, takes_cache="past_key_values" in arguments)
    if obstacle is not None:
        return Capability(
            prefix=False,
            sliding_window=_declared_window(model),
            takes_position_ids=takes_position_ids,
            reason=f"{type(model).__name__} {obstacle}; the prompt is concatenated to the text instead",
        )
    layers = _cache_of(model).layers
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return Capability(
        prefix=True,
        sliding_window=min(windows, default=None),
        takes_position_ids=takes_position_ids,
        reason=f"{type(model).__name__} keeps plain keys and values in its {len(layers)} layers",
    )


def _cache_of(model: PreTrainedModel) -> DynamicCache:
    """An empty cache with the layers that the model's configuration asks for."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _obstacle(model: PreTrainedModel, *, takes_cache: bool) -> str | None:
    """What keeps the model from the prefix path, as a verb phrase; None when nothing does."""
    config = model.config.get_text_config(decoder=True)
    if getattr(model, "_is_stateful", False):
        return "keeps a running state rather than keys and values"
    if not takes_cache:
        return "takes no past_key_values"
    if type(model).__module__.startswith(_REMOTE_CODE):
        return "runs code from its repository, whose cache may differ"
    if model.config.is_encoder_decoder:
        return "is an encoder-decoder"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "attends within chunks"
    try:
        layers = _cache_of(model).layers
    except KeyError as fault:
        return f"has layers of the kind {fault}, whose cache is not known"
    other = sorted(
        {type(item).__name__ for item in layers if type(item) not in (DynamicLayer, DynamicSlidingWindowLayer)}
    )
    return f"has layers with another cache ({', '.join(other)})" if other else None


def _declared_window(model: PreTrainedModel) -> int | None:
    """The window named by the configuration, for models off the prefix path."""
    window = getattr(model.config.get_text_config(decoder=True), "sliding_window", None)
    return window if isinstance(window, int) else None
