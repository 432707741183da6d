"""Generation behind a soft prompt, by transformers' own `generate`, which never learns of the virtual tokens.

`prompted_view` gives a shallow copy of the frozen model (same weights, same modules) whose `forward` puts the prompt in front: it fills the
empty cache with the prefix at the first call, or concatenates embeddings where there is no such cache, and widens mask and positions.
`generate` on that view counts, repeats, penalises, streams and returns text tokens alone. No placeholder token exists that could leak into
the output, a repetition penalty, a length limit or a caller's logits processor. Each call has a view of its own, so concurrent calls with
different prompts do not meet.

Shapes: `B` rows given by the caller, `B'` rows as `generate` runs them (beams and return sequences included), `P` virtual tokens, `T` text tokens.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from ptune.errors import ModelError
from ptune.model.concat import concatenate
from ptune.model.prefix import RowPrefix

Forward = Callable[..., Any]
CACHE_NAMES = ("past_key_values", "cache_params")


def check_arguments(kwargs: dict[str, Any]) -> None:
    """Refuse what would give a wrong answer without a word.

    Raises:
        ModelError: A filled cache of the caller's own, a cache kind that cannot start with a prefix, or position ids.
    """
    for name in CACHE_NAMES:
        cache = kwargs.get(name)
        if cache is not None and (not isinstance(cache, Cache) or cache.get_seq_length() > 0):
            raise ModelError(
                f"generate got {name} that already holds tokens; ptune cannot know which prompt they were computed behind.",
                hint="Pass the whole text as input_ids and leave the cache to ptune, or use the bare model: model.base.",
            )
    config = kwargs.get("generation_config")
    implementation = kwargs.get("cache_implementation", getattr(config, "cache_implementation", None))
    if implementation not in (None, "dynamic", "dynamic_full"):
        raise ModelError(
            f"cache_implementation={implementation!r} cannot start with a soft prompt.", hint="Leave it out (dynamic)."
        )
    for name in ("position_ids", "prefill_chunk_size", "assistant_model", "prompt_lookup_num_tokens"):
        if kwargs.get(name) is not None:
            raise ModelError(f"generate does not take {name} together with a soft prompt.", hint=f"Leave {name} out.")


def left_padded(input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with their padding moved to the left, ids and mask `(B, T)`; rows already so come back unchanged."""
    order = torch.argsort(mask.to(torch.int8), dim=1, stable=True)
    return input_ids.gather(1, order), mask.gather(1, order)


def prompted_view(base: PreTrainedModel, forward: Forward) -> PreTrainedModel:
    """A shallow copy of `base` that runs `forward` in place of its own; weights and modules are shared."""
    view = copy.copy(base)
    view._forward_hooks = OrderedDict()
    view._forward_pre_hooks = OrderedDict()
    view.__dict__["forward"] = functools.wraps(base.forward)(forward)
    return view


def prefix_forward(base: PreTrainedModel, prefix: RowPrefix) -> Forward:
    """A forward that starts every sequence from the prefix's keys and values.

    Args:
        base: The frozen model.
        prefix: The prefix of each of the caller's `B` rows.
    """
    rows_given = prefix.lengths.shape[0]
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters

    def forward(
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        text = input_ids if inputs_embeds is None else inputs_embeds
        assert text is not None
        rows, length = text.shape[:2]
        if past_key_values is None or kwargs.get("use_cache") is False:
            past_key_values = prefix.cache() if rows == rows_given else prefix.fill(DynamicCache(), rows // rows_given)
        elif past_key_values.get_seq_length() == 0:
            prefix.fill(past_key_values, rows // rows_given)
        seen = past_key_values.get_seq_length() - prefix.width
        mask = prefix.attention_mask(attention_mask, rows, seen + length)
        if takes_positions:
            shift = prefix.lengths.repeat_interleave(rows // rows_given)[:, None]
            if position_ids is None:
                position_ids = torch.arange(seen, seen + length, device=text.device).expand(rows, -1)
            kwargs["position_ids"] = position_ids + shift
        return base.forward(
            input_ids=input_ids,
            attention_mask=mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    return forward


def concat_forward(base: PreTrainedModel, prompts: Sequence[torch.Tensor | None]) -> Forward:
    """A forward that concatenates prompt and text at the first call and widens the mask at the later ones.

    Args:
        base: The frozen model.
        prompts: For each of the caller's `B` rows its `(P_row, D)` vectors, or None.
    """
    embed = base.get_input_embeddings()
    state: dict[str, torch.Tensor] = {}

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
        if state and length == 1 and any(kwargs.get(name) is not None for name in CACHE_NAMES):
            state["mask"] = torch.cat([state["mask"], state["mask"].new_ones(rows, 1)], dim=1)
            if position_ids is not None:
                kwargs["position_ids"] = state["mask"].sum(dim=1, keepdim=True) - 1
            # A recurrent state has the padding behind it already; a mask over the whole sequence would not fit the one new token.
            mask = None if "cache_params" in kwargs else state["mask"]
            return base.forward(input_ids=input_ids, attention_mask=mask, **kwargs)
        embeds = embed(input_ids) if inputs_embeds is None else inputs_embeds
        text_mask = text.new_ones(rows, length, dtype=torch.long) if attention_mask is None else attention_mask
        each = [prompt for prompt in prompts for _ in range(rows // len(prompts))]
        joined = concatenate(each, embeds, text_mask)
        state["mask"] = joined.mask
        if position_ids is not None:
            kwargs["position_ids"] = (joined.mask.cumsum(dim=1) - 1).clamp_min(0)
        return base.forward(inputs_embeds=joined.embeds, attention_mask=joined.mask, **kwargs)

    return forward
