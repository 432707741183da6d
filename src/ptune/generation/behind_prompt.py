"""Generation behind a soft prompt, by transformers' own `generate`, which never learns of the virtual tokens.

`generate` runs on a view of the frozen model that puts the prompt in front (see `prompted_view`). It counts, repeats,
penalises, streams and returns text tokens alone. No placeholder token exists that could leak into the output, a
repetition penalty, a length limit or a caller's logits processor. Each call has a view of its own, so concurrent calls
with different prompts do not meet.

Shapes: `B` rows, `T` text tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from ptune.batch.path import Way, choose_path, fits_the_window
from ptune.batch.row_prompts import RowPrompts
from ptune.errors import ModelError
from ptune.frozen.cache_argument import CACHE_NAMES
from ptune.frozen.capability import Capability
from ptune.frozen.view import ModelView
from ptune.generation.by_length import answer_by_length
from ptune.generation.inside_text import WholeRows
from ptune.generation.prompted_view import concat_forward, prefix_forward, prompted_view

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
    virtual: bool,
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
        attention_mask: `(B, T)`; without it padding is told by its token, where that is not the end token too.
        virtual: Whether `input_ids` hold virtual tokens, of this model's prompts, inside the text.
        options: Everything else that `generate` takes.
    """
    _check_arguments(base, options)
    if capability.answer_obstacle is not None and prompts.encoders:
        raise ModelError(f"{capability.answer_obstacle}.", hint="Choose another model to answer with.")
    fill = _fill(base, options)
    input_ids, attention_mask = _padded_left(base, options, prompts, input_ids, attention_mask, virtual=virtual)
    length = attention_mask.shape[1]
    text_length = length
    if virtual and input_ids is not None:
        text_length = WholeRows.of(input_ids, attention_mask, fill).text_ids.shape[1]
    new_tokens = _new_tokens(base, options, text_length)
    prompts.check_length(limit, length, new_tokens)
    beams = int(_setting(base, options, "num_beams") or 1) > 1
    if not capability.cached_decoding or (beams and not capability.beams_share):
        options["use_cache"] = False
    fits = fits_the_window(capability, attention_mask, prompts.width + length + new_tokens)

    def answer(own: RowPrompts, ids: torch.Tensor | None, mask: torch.Tensor, given: dict[str, Any]) -> Any:
        whole = WholeRows.of(ids, mask, fill) if virtual and ids is not None else None
        read, seen = (ids, mask) if whole is None else (whole.text_ids, whole.text_mask)
        model = base
        if own.encoders or not capability.left_padding:
            chosen = choose_path(
                base, capability, own, unpacked="answers are not packed", padding_fits=fits or bool(mask.all())
            )
            if chosen.way is Way.PREFIX:
                forward = prefix_forward(view.current(), own.prefix(base), prompts.width + length + new_tokens)
            else:
                forward = concat_forward(view.current(), own.each(), filler_id=capability.filler_id)
            if whole is not None and own.inside is not None:
                forward = whole.around(forward, view.current(), own.inside, capability.filler_id)
            model = prompted_view(base, forward)
        out = generator(model).generate(read, attention_mask=seen, **given)
        return out if whole is None else whole.back(out)

    padded = prompts.differ or not bool(attention_mask.all())
    concatenates = capability.concat_padding and not prompts.deep
    if not padded or (capability.left_padding and (fits or concatenates)):
        return answer(prompts, input_ids, attention_mask, options)
    return answer_by_length(
        lambda rows, ids, mask, given: answer(prompts.of(rows), ids, mask, given),
        input_ids=input_ids,
        mask=attention_mask,
        sizes=prompts.sizes(),
        options=_limits_on_new_tokens(base, options, text_length, new_tokens),
        fill=fill,
    )


def _padded_left(
    base: PreTrainedModel,
    options: dict[str, Any],
    prompts: RowPrompts,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    *,
    virtual: bool,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Ids and mask with every row at the right, checked; `inputs_embeds` among the options are put so too.

    To a row without a prompt virtual tokens are padding.
    """
    embeds = options.get("inputs_embeds")
    text = embeds if input_ids is None else input_ids
    assert text is not None
    if attention_mask is None:
        attention_mask = _mask_of_padding(base, options, text, input_ids)
    if virtual:
        bare = torch.tensor([name is None for name in prompts.names], device=text.device)[:, None]
        attention_mask = attention_mask.masked_fill(bare & (text < 0), 0)
        input_ids = text.masked_fill((attention_mask == 0) & (text < 0), _fill(base, options))
    order = torch.argsort(attention_mask.to(torch.int8), dim=1, stable=True)
    attention_mask = attention_mask.gather(1, order)
    if embeds is not None:
        options["inputs_embeds"] = embeds.gather(1, order[:, :, None].expand_as(embeds))
    if input_ids is None:
        return None, attention_mask
    input_ids = input_ids.gather(1, order)
    prompts.check_ids(base, input_ids)
    if prompts.in_text:
        real = attention_mask.bool()
        prompts.check_inside(input_ids[real], real.sum(dim=1).tolist())
    return input_ids, attention_mask


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


def _limits_on_new_tokens(
    base: PreTrainedModel, options: dict[str, Any], given: int, new_tokens: int
) -> dict[str, Any]:
    """The options, where limits that count text and new tokens together are ones on new tokens alone."""
    least = int(_setting(base, options, "min_length") or 0)
    own = {**options, "max_new_tokens": new_tokens}
    if least > given and _setting(base, options, "min_new_tokens") is None:
        own["min_new_tokens"] = least - given
    return {name: value for name, value in own.items() if name not in ("max_length", "min_length")}


def _fill(base: PreTrainedModel, options: dict[str, Any]) -> int:
    """What stands behind an answer that ended before others: the padding token, or an end token where there is none."""
    for name in ("pad_token_id", "eos_token_id"):
        value = _setting(base, options, name)
        value = value[0] if isinstance(value, (list, tuple)) else value
        if value is not None:
            return int(value)
    return 0


def _mask_of_padding(
    base: PreTrainedModel, options: dict[str, Any], text: torch.Tensor, input_ids: torch.Tensor | None
) -> torch.Tensor:
    """The mask that `generate` would work out from the padding token; all ones where it would not."""
    pad, eos = _setting(base, options, "pad_token_id"), _setting(base, options, "eos_token_id")
    if input_ids is None or pad is None or pad in (eos if isinstance(eos, (list, tuple)) else [eos]):
        return torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
    return input_ids.ne(pad).long()


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
