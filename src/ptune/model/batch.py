"""One batch of text behind its prompts, by the prefix path or by concatenation: aligned logits, and the loss.

Every row is moved to the left, whatever the padding it came with: `[prompt | text | padding]`. In a causal model
nothing sees what comes after it, so the padding needs no mask, and positions count on by themselves. That holds for
models that know neither masks nor position ids, and spares the others the work on them. What comes back is put where
the text stood.

Shapes: `B` rows, `T` text tokens as they came, `T'` of the longest row, `P` longest prompt, `D` token dimension,
`S` supervised labels, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ptune.errors import ConfigError, ModelError
from ptune.model.loss import IGNORE_INDEX, Predictors, cross_entropy, find_predictors, head_at
from ptune.model.prefix import RowPrefix
from ptune.model.token_ids import fed


@dataclass(frozen=True)
class TextBatch:
    """The text of a batch, before any prompt, every row at the left."""

    input_ids: torch.Tensor | None
    """`(B, T')`."""
    inputs_embeds: torch.Tensor | None
    """`(B, T', D)`."""
    labels: torch.Tensor | None
    """`(B, T')`, `IGNORE_INDEX` at padding."""
    order: torch.Tensor | None
    """`(B, T)`: the columns that a row's tokens came from, then those of its padding; None when nothing is padded."""
    rows: int
    length: int
    """`T'`."""
    device: torch.device

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> TextBatch:
        """Check what a caller passed, and move its rows to the left.

        Raises:
            ConfigError: Neither or both of ids and embeddings, or shapes that do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("pass exactly one of input_ids and inputs_embeds.")
        text = input_ids if inputs_embeds is None else inputs_embeds
        assert text is not None
        rows, length = text.shape[:2]
        for name, value in (("attention_mask", attention_mask), ("labels", labels)):
            if value is not None and tuple(value.shape) != (rows, length):
                raise ConfigError(f"{name} has shape {tuple(value.shape)}, the text {(rows, length)}.")
        if attention_mask is None or bool(attention_mask.all()):
            return cls(input_ids, inputs_embeds, labels, None, rows, length, text.device)
        mask = attention_mask.bool()
        order = (~mask).to(torch.int8).argsort(dim=1, stable=True)
        longest = max(int(mask.sum(dim=1).max()), 1)
        moved = order[:, :longest]
        if labels is not None:
            labels = labels.masked_fill(~mask, IGNORE_INDEX).gather(1, moved)
        if input_ids is not None:
            input_ids = input_ids.gather(1, moved)
        if inputs_embeds is not None:
            inputs_embeds = inputs_embeds.gather(1, moved[:, :, None].expand(-1, -1, inputs_embeds.shape[-1]))
        return cls(input_ids, inputs_embeds, labels, order, rows, longest, text.device)

    def embeddings(self, base: PreTrainedModel) -> torch.Tensor:
        """`(B, T', D)` of the text."""
        if self.inputs_embeds is not None:
            return self.inputs_embeds
        embeds: torch.Tensor = base.get_input_embeddings()(self.input_ids)
        return embeds

    def as_it_came(self, columns: torch.Tensor, *, dim: int = 1) -> torch.Tensor:
        """A tensor with `T'` text columns in dimension `dim`, with `T` of them, where the tokens stood before.

        What stands at padding has no meaning.
        """
        if self.order is None:
            return columns
        place = self.order.argsort(dim=1).clamp_max(self.length - 1)
        shape = [1] * columns.dim()
        shape[0], shape[dim] = place.shape
        return columns.take_along_dim(place.view(shape), dim=dim)


def check_forward_arguments(kwargs: dict[str, Any]) -> None:
    """Refuse what has no meaning behind a soft prompt, and drop what `forward` decides itself.

    Raises:
        ModelError: A cache or position ids of the caller's own.
    """
    for name in ("past_key_values", "cache_params", "position_ids"):
        if kwargs.pop(name, None) is not None:
            raise ModelError(f"forward does not take {name} behind a soft prompt.", hint="Use generate, or model.base.")
    kwargs.pop("use_cache", None)
    kwargs.pop("return_dict", None)


def run_prefixed(
    base: PreTrainedModel,
    prefix: RowPrefix,
    batch: TextBatch,
    *,
    num_items: torch.Tensor | int | None,
    return_logits: bool,
    narrow: bool,
    kwargs: dict[str, Any],
) -> CausalLMOutputWithPast:
    """The text starts from the prefix's keys and values; see `PTunedModel.forward` for arguments and result.

    `narrow` runs the LM head on supervised positions alone; there are no logits to return then.
    """
    if prefix.mask is not None:
        kwargs["position_ids"] = torch.arange(batch.length, device=batch.device) + prefix.lengths[:, None]
    predictors = None
    if batch.labels is not None:
        predictors = find_predictors(batch.labels, prefix.predicting, None)
    with _narrowed(base, predictors, narrow):
        output = base(
            input_ids=batch.input_ids,
            inputs_embeds=batch.inputs_embeds,
            attention_mask=prefix.attention_mask(None, batch.rows, batch.length),
            past_key_values=prefix.cache(),
            use_cache=True,
            **kwargs,
        )
    loss = None
    if predictors is not None:
        loss = cross_entropy(_at(output.logits, predictors, narrow), prefix.logits, predictors, num_items)
    attentions = output.attentions
    if attentions is not None and batch.order is not None:
        attentions = tuple(_attention_as_it_came(weights, batch, prefix.width) for weights in attentions)
    return CausalLMOutputWithPast(
        loss=loss,
        logits=batch.as_it_came(output.logits) if return_logits else None,
        hidden_states=_each(output.hidden_states, batch.as_it_came),
        attentions=attentions,
    )


def _attention_as_it_came(weights: torch.Tensor, batch: TextBatch, width: int) -> torch.Tensor:
    """`(B, H, T, P + T)` of `(B, H, T', P + T')`."""
    queries = batch.as_it_came(weights, dim=2)
    return torch.cat([queries[..., :width], batch.as_it_came(queries[..., width:], dim=3)], dim=3)


def run_concatenated(
    base: PreTrainedModel,
    prompts: Sequence[torch.Tensor | None],
    batch: TextBatch,
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
    text = batch.embeddings(base)
    lengths = torch.tensor([0 if prompt is None else len(prompt) for prompt in prompts], device=batch.device)
    embeds = pad_sequence(
        [
            row if prompt is None else torch.cat([prompt.to(row.dtype), row])
            for prompt, row in zip(prompts, text, strict=True)
        ],
        batch_first=True,
    )
    columns = torch.arange(batch.length, device=batch.device) + lengths[:, None]
    model, inputs = fed(base, embeds, _ids(batch, columns, embeds.shape[1], filler_id))
    predictors = None
    if batch.labels is not None:
        predictors = find_predictors(batch.labels, lengths, columns)
    with _narrowed(base, predictors, narrow):
        output = model(**inputs, use_cache=False, **kwargs)
    loss = (
        None
        if predictors is None
        else cross_entropy(_at(output.logits, predictors, narrow), None, predictors, num_items)
    )
    row = torch.arange(batch.rows, device=batch.device)[:, None]

    def of_the_text(states: torch.Tensor) -> torch.Tensor:
        return batch.as_it_came(states[row, columns])

    return CausalLMOutputWithPast(
        loss=loss,
        logits=of_the_text(output.logits) if return_logits else None,
        hidden_states=_each(output.hidden_states, of_the_text),
        attentions=None,
    )


def _ids(batch: TextBatch, columns: torch.Tensor, length: int, filler_id: int | None) -> torch.Tensor | None:
    """`(B, P + T')`: the text's ids among fillers, for a model that needs them."""
    if filler_id is None:
        return None
    if batch.input_ids is None:
        raise ConfigError("this model makes more of token ids than their embeddings.", hint="Pass input_ids.")
    return batch.input_ids.new_full((batch.rows, length), filler_id).scatter(1, columns, batch.input_ids)


def _each(states: Any, change: Any) -> Any:
    """Every one of a tuple of tensors, changed; None stays None."""
    return None if states is None else tuple(change(one) for one in states)


def _narrowed(base: PreTrainedModel, predictors: Predictors | None, narrow: bool) -> Any:
    """`head_at` where only the loss is wanted, nothing otherwise."""
    return head_at(base, predictors.rows, predictors.columns) if narrow and predictors is not None else nullcontext()


def _at(logits: torch.Tensor, predictors: Predictors, narrow: bool) -> torch.Tensor:
    """`(S, V)`: the logits that predict the labels, from narrowed `(1, S, V)` or full `(B, T, V)` logits."""
    return logits[0] if narrow else logits[predictors.rows, predictors.columns]
