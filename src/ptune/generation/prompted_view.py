"""The frozen model as `generate` sees it: with the prompt in front of every sequence, and no word of it.

`prompted_view` gives a shallow copy of the frozen model (same weights, same modules) whose `forward` puts the prompt
in front: it fills the empty cache with the prefix at the first call, or concatenates embeddings where there is no
such cache, and widens mask and positions. Where nothing is padded it passes neither: positions count on by themselves.

Shapes: `B` rows given by the caller, `B'` rows as `generate` runs them (beams and return sequences included), `P`
virtual tokens, `T` text tokens.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ptune.frozen.cache_argument import cache_argument, cache_in, state_alone
from ptune.frozen.filler_ids import fed
from ptune.padded.concatenation import concatenate, positions
from ptune.prefix.keys_values import RowPrefix

Forward = Callable[..., Any]


def prompted_view(base: PreTrainedModel, forward: Forward) -> PreTrainedModel:
    """A shallow copy of `base` that runs `forward` in place of its own; weights and modules are shared."""
    view = copy.copy(base)
    # Hooks on the model run where `forward` calls it, once.
    view.__dict__.update(_forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
    view.__dict__["forward"] = functools.wraps(base.forward)(forward)
    return view


def prefix_forward(base: PreTrainedModel, prefix: RowPrefix, longest: int | None = None) -> Forward:
    """A forward that starts every sequence from the prefix's keys and values.

    Args:
        base: The frozen model.
        prefix: The prefix of each of the caller's `B` rows.
        longest: Virtual, text and new tokens of the longest row; None where that is not known.
    """
    rows_given = prefix.lengths.shape[0]
    name = cache_argument(base)
    assert name is not None
    padded = True

    def forward(
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        text = input_ids if inputs_embeds is None else inputs_embeds
        assert text is not None
        rows, length = text.shape[:2]
        nonlocal padded
        cache = cache_in(kwargs)
        if cache is None or kwargs.get("use_cache") is False:
            cache = DynamicCache()
            kwargs["use_cache"] = True  # within this call: the text is read behind the prefix
        kwargs[name] = cache
        if cache.get_seq_length() == 0:
            prefix.fill(cache, rows // rows_given, longest=longest)
            # What generate appends later is never padding. Without a mask the model has none to build and to add.
            padded = prefix.mask is not None or _is_padded(attention_mask)
        seen = cache.get_seq_length() - prefix.width
        mask = prefix.attention_mask(attention_mask, rows, seen + length) if padded else None
        if padded and position_ids is not None:
            kwargs["position_ids"] = position_ids + prefix.lengths.repeat_interleave(rows // rows_given)[:, None]
        run = base
        inputs: Mapping[str, Any] = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        if input_ids is not None and inputs_embeds is not None:
            run, inputs = fed(base, inputs_embeds, input_ids)
        return run(attention_mask=mask, **inputs, **kwargs)

    return forward


def concat_forward(
    base: PreTrainedModel, prompts: Sequence[torch.Tensor | None], *, filler_id: int | None = None
) -> Forward:
    """A forward that concatenates prompt and text at the first call and widens the mask at the later ones.

    Args:
        base: The frozen model.
        prompts: For each of the caller's `B` rows its `(P_row, D)` vectors, or None.
        filler_id: The token id that virtual tokens go by; see `Capability`.
    """
    embed = base.get_input_embeddings()
    alike = len({0 if prompt is None else len(prompt) for prompt in prompts}) == 1
    state: dict[str, torch.Tensor] = {}
    # A recurrent state has the padding behind it already; a mask over everything would not fit the new token.
    recurrent = state_alone(base)

    def forward(
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        text = input_ids if inputs_embeds is None else inputs_embeds
        assert text is not None
        rows, length = text.shape[:2]
        if state and kwargs.get("use_cache") is not False and cache_in(kwargs) is not None:
            if not recurrent:
                kwargs |= _behind(state, rows, length, position_ids)
            return base(input_ids=input_ids, **kwargs)
        embeds = embed(input_ids) if inputs_embeds is None else inputs_embeds
        text_mask = text.new_ones(rows, length, dtype=torch.long) if attention_mask is None else attention_mask
        each = [prompt for prompt in prompts for _ in range(rows // len(prompts))]
        joined = concatenate(each, embeds, text_mask)
        state.clear()
        if not alike or _is_padded(attention_mask):
            kwargs["attention_mask"] = joined.mask
            if position_ids is not None:
                kwargs["position_ids"] = positions(joined.mask)
        state["mask"] = joined.mask
        state["padded"] = torch.tensor("attention_mask" in kwargs)
        ids = None
        if filler_id is not None:
            assert input_ids is not None
            ids = input_ids.new_full(joined.mask.shape, filler_id).scatter(1, joined.columns, input_ids)
        model, inputs = fed(base, joined.embeds, ids)
        return model(**inputs, **kwargs)

    return forward


def _behind(
    state: dict[str, torch.Tensor], rows: int, length: int, position_ids: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Mask and position ids of new tokens behind a cache; nothing where no row is padded."""
    state["mask"] = torch.cat([state["mask"], state["mask"].new_ones(rows, length)], dim=1)
    if not state["padded"]:
        return {}
    found = {"attention_mask": state["mask"]}
    if position_ids is not None:
        found["position_ids"] = positions(state["mask"])[:, -length:]
    return found


def _is_padded(mask: torch.Tensor | None) -> bool:
    return mask is not None and not bool(mask.all())
