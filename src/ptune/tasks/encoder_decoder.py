"""Encoder-decoders behind prompts: vectors before the text that is read, or keys and values before the answer.

Prompt tuning and P-tuning put virtual tokens before the encoder's text (Lester et al. 2021 with T5). A deep prompt is
keys and values of every layer of the decoder's self-attention, before the answer, as in PEFT: an answer of any text
sees them, and they are the same in every row.

Shapes: `B` rows, `T` tokens of the longest row, `P` virtual tokens, `D` token dimension, `R` beams of a row.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from ptune.errors import ModelError
from ptune.frozen.cache_argument import as_cache, cache_argument
from ptune.frozen.shards import shallow_copy
from ptune.prefix.keys_values import RowPrefix


def answer_inputs(model: PreTrainedModel, prefix: RowPrefix, given: dict[str, Any]) -> dict[str, Any]:
    """The decoder's cache, filled with a deep prompt, and the mask of what stands in it.

    Args:
        model: The model.
        prefix: The keys and values before each row's answer.
        given: Arguments of `forward`; `decoder_attention_mask` is taken out and comes back wider.

    Raises:
        ModelError: Rows behind prompts of different lengths, whose answers would begin at different positions.
    """
    if prefix.mask is not None:
        raise ModelError(
            "rows of an encoder-decoder cannot stand behind deep prompts of different lengths.",
            hint="Put rows with prompts of one length into a batch.",
        )
    mask = given.pop("decoder_attention_mask", None)
    inputs = as_cache(model, _filled(prefix, EncoderDecoderCache(DynamicCache(), DynamicCache()), 1))
    if mask is not None:
        inputs["decoder_attention_mask"] = torch.cat([mask.new_ones(len(mask), prefix.width), mask], dim=1)
    return {**inputs, "use_cache": True}


def _filled(prefix: RowPrefix, cache: EncoderDecoderCache, repeats: int) -> EncoderDecoderCache:
    own = cache.self_attention_cache
    assert isinstance(own, DynamicCache)
    prefix.fill(own, repeats)
    return cache


def answering_behind(model: PreTrainedModel, prefix: RowPrefix) -> PreTrainedModel:
    """A shallow copy of a model whose answers begin behind a deep prompt, for `generate`.

    `generate` brings an empty cache to the first step; it is filled there, and every later step finds it so.
    """
    twin, name = shallow_copy(model), cache_argument(model)
    assert name is not None

    @wraps(type(model).forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get(name)
        if not isinstance(cache, EncoderDecoderCache):
            raise ModelError(
                "an answer behind keys and values needs a cache, and generate was told to do without.",
                hint="Leave use_cache out.",
            )
        if not _length(cache.self_attention_cache):
            asked = kwargs.get("decoder_input_ids")
            assert asked is not None
            _filled(prefix, cache, len(asked) // len(prefix.lengths))
        if kwargs.get("decoder_attention_mask") is not None:
            mask = kwargs["decoder_attention_mask"]
            kwargs["decoder_attention_mask"] = torch.cat([mask.new_ones(len(mask), prefix.width), mask], dim=1)
        return type(model).forward(twin, *args, **kwargs)

    twin.__dict__["forward"] = forward
    assert isinstance(twin, PreTrainedModel)
    return twin


def _length(cache: Cache) -> int:
    return int(cache.get_seq_length())
