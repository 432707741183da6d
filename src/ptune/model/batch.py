"""One batch of text behind its prompts, by the prefix path or by concatenation: aligned logits, and the loss.

Shapes: `B` rows, `T` text tokens, `P` longest prompt, `D` token dimension, `S` supervised labels, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ptune.errors import ConfigError, ModelError
from ptune.model.capability import Capability
from ptune.model.concat import concatenate, first_tokens, positions
from ptune.model.loss import Predictors, cross_entropy, find_predictors, head_at
from ptune.model.prefix import RowPrefix


@dataclass(frozen=True)
class TextBatch:
    """The text of a batch, before any prompt."""

    input_ids: torch.Tensor | None
    """`(B, T)`."""
    inputs_embeds: torch.Tensor | None
    """`(B, T, D)`."""
    mask: torch.Tensor | None
    """`(B, T)`; None when nothing is padded."""
    labels: torch.Tensor | None
    """`(B, T)`."""
    rows: int
    length: int
    device: torch.device

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> TextBatch:
        """Check what a caller passed.

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
        mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask
        return cls(input_ids, inputs_embeds, mask, labels, rows, length, text.device)

    def first(self) -> torch.Tensor:
        """`(B,)`, column of each row's first real token."""
        if self.mask is None:
            return torch.zeros(self.rows, dtype=torch.long, device=self.device)
        return first_tokens(self.mask)


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
    capability: Capability,
    prefix: RowPrefix,
    batch: TextBatch,
    *,
    num_items: torch.Tensor | int | None,
    return_logits: bool,
    kwargs: dict[str, Any],
) -> CausalLMOutputWithPast:
    """The text starts from the prefix's keys and values; see `PTunedModel.forward` for arguments and result."""
    if capability.takes_position_ids:
        inside = (
            torch.arange(batch.length, device=batch.device).expand(batch.rows, -1)
            if batch.mask is None
            else positions(batch.mask)
        )
        kwargs["position_ids"] = inside + prefix.lengths[:, None]
    predictors = None
    if batch.labels is not None:
        predictors = find_predictors(batch.labels, batch.first(), prefix.predicting, None)
    with _narrowed(base, predictors, return_logits):
        output = base(
            input_ids=batch.input_ids,
            inputs_embeds=batch.inputs_embeds,
            attention_mask=prefix.attention_mask(batch.mask, batch.rows, batch.length),
            past_key_values=prefix.cache(),
            use_cache=True,
            **kwargs,
        )
    loss = None
    if predictors is not None:
        loss = cross_entropy(_at(output.logits, predictors, not return_logits), prefix.logits, predictors, num_items)
    return CausalLMOutputWithPast(
        loss=loss,
        logits=output.logits if return_logits else None,
        hidden_states=output.hidden_states,
        attentions=output.attentions,
    )


def run_concatenated(
    base: PreTrainedModel,
    capability: Capability,
    prompts: Sequence[torch.Tensor | None],
    batch: TextBatch,
    *,
    num_items: torch.Tensor | int | None,
    return_logits: bool,
    kwargs: dict[str, Any],
) -> CausalLMOutputWithPast:
    """Prompt and text go through the model together; see `PTunedModel.forward` for arguments and result."""
    embeds = base.get_input_embeddings()(batch.input_ids) if batch.inputs_embeds is None else batch.inputs_embeds
    text_mask = torch.ones(batch.rows, batch.length, device=batch.device) if batch.mask is None else batch.mask
    joined = concatenate(prompts, embeds, text_mask)
    if capability.takes_position_ids:
        kwargs["position_ids"] = positions(joined.mask)
    predictors = None
    if batch.labels is not None:
        lengths = torch.tensor([0 if prompt is None else prompt.shape[0] for prompt in prompts], device=batch.device)
        predictors = find_predictors(batch.labels, batch.first(), lengths, joined.columns)
    with _narrowed(base, predictors, return_logits):
        output = base(inputs_embeds=joined.embeds, attention_mask=joined.mask, use_cache=False, **kwargs)
    loss = (
        None
        if predictors is None
        else cross_entropy(_at(output.logits, predictors, not return_logits), None, predictors, num_items)
    )
    row = torch.arange(batch.rows, device=batch.device)[:, None]
    hidden = output.hidden_states
    return CausalLMOutputWithPast(
        loss=loss,
        logits=output.logits[row, joined.columns] if return_logits else None,
        hidden_states=None if hidden is None else tuple(states[row, joined.columns] for states in hidden),
        attentions=None,
    )


def _narrowed(base: PreTrainedModel, predictors: Predictors | None, return_logits: bool) -> Any:
    """`head_at` where only the loss is wanted, nothing otherwise."""
    if predictors is None or return_logits:
        return nullcontext()
    return head_at(base, predictors.rows, predictors.columns)


def _at(logits: torch.Tensor, predictors: Predictors, narrowed: bool) -> torch.Tensor:
    """`(S, V)`: the logits that predict the labels, from narrowed `(1, S, V)` or full `(B, T, V)` logits."""
    return logits[0] if narrowed else logits[predictors.rows, predictors.columns]
