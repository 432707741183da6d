"""Generation behind a soft prompt, by transformers' own `generate`, which never learns of the virtual tokens.

`prompted_view` gives a shallow copy of the frozen model (same weights, same modules) whose `forward` puts the prompt
in front: it fills the empty cache with the prefix at the first call, or concatenates embeddings where there is no
such cache, and widens mask and positions. `generate` on that view counts, repeats, penalises, streams and returns
text tokens alone. No placeholder token exists that could leak into the output, a repetition penalty, a length limit
or a caller's logits processor. Each call has a view of its own, so concurrent calls with different prompts do not meet.

Shapes: `B` rows given by the caller, `B'` rows as `generate` runs them (beams and return sequences included), `P`
virtual tokens, `T` text tokens.
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
from ptune.model.capability import Capability
from ptune.model.concat import concatenate, positions
from ptune.model.prefix import RowPrefix
from ptune.model.rows import RowPrompts, takes_prefix
from ptune.model.view import ModelView

Forward = Callable[..., Any]
CACHE_NAMES = ("past_key_values", "cache_params")

_REFUSED = ("position_ids", "prefill_chunk_size", "assistant_model", "prompt_lookup_num_tokens")
_DEFAULT_NEW_TOKENS = 20
"""What transformers generates where neither the call nor the model sets a limit."""
# transformers itself reads "hybrid", which old checkpoints carry, as dynamic.
_CACHES = (None, "dynamic", "hybrid")


def generate_behind(
    base: PreTrainedModel,
    view: ModelView,
    capability: Capability,
    limit: int | None,
    prompts: RowPrompts,
    *,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    options: dict[str, Any],
) -> Any:
    """Run `generate` behind the prompts; see `PTunedModel.generate` for the arguments and what comes back.

    Args:
        base: The frozen model.
        view: Of the frozen model, with fused parts.
        capability: What its architecture can do.
        limit: Its context in tokens; None where it has no limit.
        prompts: The prompt of each row.
        input_ids: `(B, T)`; None where `options` hold `inputs_embeds`.
        attention_mask: `(B, T)`; None when nothing is padded, or padding can be told by its token.
        options: Everything else that `generate` takes.
    """
    _check_arguments(base, options)
    embeds = options.get("inputs_embeds")
    text = embeds if input_ids is None else input_ids
    assert text is not None
    if attention_mask is None and input_ids is not None:
        attention_mask = _mask_of_padding(base, options, input_ids)
    if attention_mask is not None:
        order = torch.argsort(attention_mask.to(torch.int8), dim=1, stable=True)
        attention_mask = attention_mask.gather(1, order)
        input_ids = None if input_ids is None else input_ids.gather(1, order)
        if embeds is not None:
            options["inputs_embeds"] = embeds.gather(1, order[:, :, None].expand_as(embeds))
    length = text.shape[1]
    new_tokens = _new_tokens(base, options, length)
    prompts.check_length(limit, length, new_tokens)
    if not prompts.encoders:
        return generator(base).generate(input_ids, attention_mask=attention_mask, **options)
    longest = prompts.width + length + new_tokens
    if takes_prefix(base, capability, attention_mask, longest):
        forward = prefix_forward(view.current(), prompts.prefix(base), longest)
    else:
        forward = concat_forward(view.current(), prompts.each())
    return generator(prompted_view(base, forward)).generate(input_ids, attention_mask=attention_mask, **options)


def generator(base: PreTrainedModel) -> Any:
    """The model as something that generates: transformers mixes `generate` into its causal models, unknown to types."""
    return base


def _setting(base: PreTrainedModel, options: dict[str, Any], name: str) -> Any:
    """A setting as `generate` will see it: from the call, its `generation_config`, or the model's."""
    if name in options:
        return options[name]
    own = getattr(options.get("generation_config"), name, None)
    return getattr(base.generation_config, name, None) if own is None else own


def _new_tokens(base: PreTrainedModel, options: dict[str, Any], given: int) -> int:
    """The most tokens `generate` can add to `given` text tokens."""
    new_tokens = _setting(base, options, "max_new_tokens")
    if new_tokens is not None:
        return int(new_tokens)
    longest = _setting(base, options, "max_length")
    return _DEFAULT_NEW_TOKENS if longest is None else max(int(longest) - given, 0)


def _mask_of_padding(base: PreTrainedModel, options: dict[str, Any], input_ids: torch.Tensor) -> torch.Tensor | None:
    """The mask that `generate` would work out from the padding token; None where it would not."""
    pad, eos = _setting(base, options, "pad_token_id"), _setting(base, options, "eos_token_id")
    if pad is None or pad in (eos if isinstance(eos, (list, tuple)) else [eos]):
        return None
    mask = input_ids.ne(pad).long()
    return None if bool(mask.all()) else mask


def _check_arguments(base: PreTrainedModel, options: dict[str, Any]) -> None:
    """Refuse what would give a wrong answer without a word.

    Raises:
        ModelError: A filled cache of the caller's own, a cache kind that cannot start with a prefix, or position ids.
    """
    for name in CACHE_NAMES:
        cache = options.get(name)
        if cache is None:
            continue
        if not isinstance(cache, Cache) or cache.get_seq_length() > 0:
            raise ModelError(
                f"generate got {name} that already holds tokens; which prompt they stand behind cannot be known.",
                hint="Pass the whole text as input_ids and leave the cache out, or use the bare model: model.base.",
            )
        if type(cache) is not DynamicCache:
            raise ModelError(
                f"{name}={type(cache).__name__} cannot start with a soft prompt.", hint="Use DynamicCache."
            )
    implementation = _setting(base, options, "cache_implementation")
    if implementation not in _CACHES:
        raise ModelError(
            f"cache_implementation={implementation!r} cannot start with a soft prompt.", hint="Leave it out (dynamic)."
        )
    for name in _REFUSED:
        if _setting(base, options, name) is not None:
            raise ModelError(f"generate does not take {name} together with a soft prompt.", hint=f"Leave {name} out.")


def prompted_view(base: PreTrainedModel, forward: Forward) -> PreTrainedModel:
    """A shallow copy of `base` that runs `forward` in place of its own; weights and modules are shared."""
    view = copy.copy(base)
    # Hooks on the model run where `forward` calls it, once.
    view.__dict__.update(_forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
    view.__dict__["forward"] = functools.wraps(base.forward)(forward)
    return view


def prefix_forward(base: PreTrainedModel, prefix: RowPrefix, longest: int) -> Forward:
    """A forward that starts every sequence from the prefix's keys and values.

    Args:
        base: The frozen model.
        prefix: The prefix of each of the caller's `B` rows.
        longest: Virtual, text and new tokens of the longest row.
    """
    rows_given = prefix.lengths.shape[0]
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    padded = True

    def forward(
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        text = input_ids if inputs_embeds is None else inputs_embeds
        assert text is not None
        rows, length = text.shape[:2]
        nonlocal padded
        if past_key_values is None or kwargs.get("use_cache") is False:
            past_key_values = DynamicCache()
        if past_key_values.get_seq_length() == 0:
            prefix.fill(past_key_values, rows // rows_given, longest=longest)
            # What generate appends later is never padding. Without a mask the model has none to build and to add.
            padded = prefix.mask is not None or (attention_mask is not None and not bool(attention_mask.all()))
        seen = past_key_values.get_seq_length() - prefix.width
        mask = prefix.attention_mask(attention_mask, rows, seen + length) if padded else None
        if takes_positions:
            shift = prefix.lengths.repeat_interleave(rows // rows_given)[:, None]
            if position_ids is None:
                position_ids = torch.arange(seen, seen + length, device=text.device).expand(rows, -1)
            kwargs["position_ids"] = position_ids + shift
        return base(
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
            # A recurrent state has the padding behind it already; a mask over everything would not fit the new token.
            mask = None if "cache_params" in kwargs else state["mask"]
            return base(input_ids=input_ids, attention_mask=mask, **kwargs)
        embeds = embed(input_ids) if inputs_embeds is None else inputs_embeds
        text_mask = text.new_ones(rows, length, dtype=torch.long) if attention_mask is None else attention_mask
        each = [prompt for prompt in prompts for _ in range(rows // len(prompts))]
        joined = concatenate(each, embeds, text_mask)
        state["mask"] = joined.mask
        if position_ids is not None:
            kwargs["position_ids"] = positions(joined.mask)
        return base(inputs_embeds=joined.embeds, attention_mask=joined.mask, **kwargs)

    return forward
