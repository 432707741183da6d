"""One batch of text behind its prompts, by the prefix path or by concatenation: aligned logits, and the loss.

Every row stands at the left, whatever the padding it came with: `[prompt | text | padding]`. In a causal model nothing
sees what comes after it, so the padding needs no mask, and positions count on by themselves. That holds for models
that know neither masks nor position ids, and spares the others the work on them.

Shapes: `B` rows, `T` tokens of the longest row, `N` tokens of all rows, `P` longest prompt, `D` token dimension, `S`
supervised labels, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ptune.batch.text import Text
from ptune.errors import ConfigError, ModelError
from ptune.frozen.cache_argument import CACHE_NAMES, as_cache
from ptune.frozen.filler_ids import fed
from ptune.frozen.transfer import sent
from ptune.padded.padded_loss import Predictors, cross_entropy, find_predictors, head_at
from ptune.prefix.keys_values import RowPrefix


def check_forward_arguments(kwargs: dict[str, Any]) -> None:
    """Refuse what has no meaning behind a soft prompt, and drop what `forward` decides itself.

    Raises:
        ModelError: A cache of the caller's own.
    """
    for name in CACHE_NAMES:
        if kwargs.pop(name, None) is not None:
            raise ModelError(f"forward does not take {name} behind a soft prompt.", hint="Use generate, or model.base.")
    kwargs.pop("use_cache", None)
    kwargs.pop("return_dict", None)


def run_prefixed(
    base: PreTrainedModel,
    prefix: RowPrefix,
    text: Text,
    *,
    filler_id: int | None = None,
    num_items: torch.Tensor | int | None,
    return_logits: bool,
    narrow: bool,
    kwargs: dict[str, Any],
) -> CausalLMOutputWithPast:
    """The text starts from the prefix's keys and values; see `PTunedModel.forward` for arguments and result.

    `narrow` runs the LM head on supervised positions alone; there are no logits to return then.
    """
    predictors = None if text.labels is None else find_predictors(text, prefix.predicting, None)
    with _narrowed(base, predictors, narrow):
        output = prefixed_output(base, prefix, text, filler_id, kwargs)
    loss = None
    if predictors is not None:
        loss = cross_entropy(_at(output.logits, predictors, narrow), prefix.logits, predictors, num_items)
    return _as_it_came(output, loss, text, text.flat, return_logits=return_logits, width=prefix.width)


def prefixed_output(
    model: PreTrainedModel, prefix: RowPrefix, text: Text, filler_id: int | None, kwargs: dict[str, Any]
) -> Any:
    """What a model, or its layers alone, make of the rows behind the prefix: `(B, T, …)`."""
    if prefix.mask is not None:
        kwargs["position_ids"] = torch.arange(text.longest, device=text.device) + prefix.lengths[:, None]
    if text.ids is not None and text.inside is None:
        run, inputs = model, {"input_ids": text.padded(text.ids)}
    else:
        beside = None if filler_id is None or text.ids is None else text.padded(text.ids_by(filler_id), filler_id)
        run, inputs = fed(model, text.padded_embeddings(model), beside)
    return run(
        **inputs,
        attention_mask=prefix.attention_mask(None, text.rows, text.longest),
        **as_cache(model, prefix.cache()),
        use_cache=True,
        **kwargs,
    )


def run_concatenated(
    base: PreTrainedModel,
    prompts: Sequence[torch.Tensor | None],
    text: Text,
    *,
    filler_id: int | None,
    num_items: torch.Tensor | int | None,
    return_logits: bool,
    narrow: bool,
    kwargs: dict[str, Any],
) -> CausalLMOutputWithPast:
    """Prompt and text go through the model together; see `run_prefixed` for arguments and result.

    Raises:
        ConfigError: The model needs token ids, and the text is given as embeddings.
    """
    sizes = _sizes(prompts)
    predictors = None if text.labels is None else find_predictors(text, [size > 0 for size in sizes], sizes)
    with _narrowed(base, predictors, narrow):
        output = concatenated_output(base, prompts, text, filler_id, kwargs)
    loss = None
    if predictors is not None:
        loss = cross_entropy(_at(output.logits, predictors, narrow), None, predictors, num_items)
    return _as_it_came(output, loss, text, text_of(prompts, text), return_logits=return_logits)


def concatenated_output(
    model: PreTrainedModel,
    prompts: Sequence[torch.Tensor | None],
    text: Text,
    filler_id: int | None,
    kwargs: dict[str, Any],
) -> Any:
    """What a model, or its layers alone, make of prompts and rows: `(B, P + T, …)`."""
    rows = torch.split(text.embeddings(model), list(text.lengths))
    parts = [
        row if prompt is None else torch.cat([prompt.to(row.dtype), row])
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    embeds, ids = pad_sequence(parts, batch_first=True), None
    if filler_id is not None:
        if text.ids is None:
            raise ConfigError("this model makes more of token ids than their embeddings.", hint="Pass input_ids.")
        columns = _columns(prompts, text)
        ids = text.ids.new_full((text.rows, columns.shape[1] + embeds.shape[1]), filler_id)
        ids = ids.scatter(1, columns, text.padded(text.ids_by(filler_id), filler_id))[:, : embeds.shape[1]]
    run, inputs = fed(model, embeds, ids)
    return run(**inputs, use_cache=False, **kwargs)


def text_of(prompts: Sequence[torch.Tensor | None], text: Text) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that takes the text's part, `(N, …)`, out of what `concatenated_output` gives."""
    row, column = text.rows_and_columns
    rows, columns = sent(torch.stack([row, column + torch.tensor(_sizes(prompts))[row]]), text.device)
    return lambda states: states[rows, columns]


def _sizes(prompts: Sequence[torch.Tensor | None]) -> list[int]:
    """Virtual tokens of each row."""
    return [0 if prompt is None else len(prompt) for prompt in prompts]


def _columns(prompts: Sequence[torch.Tensor | None], text: Text) -> torch.Tensor:
    """`(B, T)`: where each text token stands behind its prompt."""
    return sent(torch.arange(text.longest) + torch.tensor(_sizes(prompts))[:, None], text.device)


def _as_it_came(
    output: Any,
    loss: torch.Tensor | None,
    text: Text,
    flat: Callable[[torch.Tensor], torch.Tensor],
    *,
    return_logits: bool,
    width: int | None = None,
) -> CausalLMOutputWithPast:
    """The output of a run, where the text's tokens stood; attention weights where the text stood as it does here."""

    def back(states: torch.Tensor) -> torch.Tensor:
        return text.as_it_came(flat(states))

    hidden = output.hidden_states
    kept = width is not None and text.slots is None and text.places is None
    return CausalLMOutputWithPast(
        loss=loss,
        logits=back(output.logits) if return_logits else None,
        hidden_states=None if hidden is None else tuple(back(one) for one in hidden),
        attentions=output.attentions if kept else None,
    )


def _narrowed(base: PreTrainedModel, predictors: Predictors | None, narrow: bool) -> Any:
    """`head_at` where only the loss is wanted, nothing otherwise."""
    return head_at(base, predictors.rows, predictors.columns) if narrow and predictors is not None else nullcontext()


def _at(logits: torch.Tensor, predictors: Predictors, narrow: bool) -> torch.Tensor:
    """`(S, V)`: the logits that predict the labels, from narrowed `(1, S, V)` or full `(B, T, V)` logits."""
    return logits[0] if narrow else logits[predictors.rows, predictors.columns]
