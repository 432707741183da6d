"""Text behind its prompts in an encoder, whose tokens attend both ways: `[prompt | text | padding]`, with a mask.

Virtual tokens see the text too, so nothing of them can be computed ahead; a prompt of vectors is concatenated in every
row. Keys and values of every layer (Liu et al. 2022, "P-Tuning v2") are the same for every row, and stand before those
of the text; its positions count on behind them, as they do in PEFT.

Poolers read the first position. What an encoder with a pooler of its own hands to it is the text alone, so that it
finds the text's own [CLS] there; PEFT's reads virtual token 0.

Shapes: `B` rows, `T` tokens of the longest row, `P` virtual tokens, `N` tokens of all rows, `D` token dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ptune.frozen.cache_argument import as_cache
from ptune.frozen.capability import positions_before_the_first
from ptune.frozen.filler_ids import filler_of
from ptune.frozen.shards import shallow_copy
from ptune.internals import children_of, record_outputs
from ptune.padded.padded_forward import text_of
from ptune.prefix.keys_values import RowPrefix
from ptune.tasks.lined_up import LinedUp, read_inputs

Taken = Callable[[torch.Tensor], torch.Tensor]


def concatenated(
    encoder: PreTrainedModel,
    prompts: Sequence[torch.Tensor | None],
    rows: LinedUp,
    token_types: torch.Tensor | None,
    options: dict[str, Any],
) -> Any:
    """What an encoder gives for the text of rows, each with its prompt's vectors before it.

    Args:
        encoder: The part of the model that reads text.
        prompts: `(P, D)` of each row, or None.
        rows: The texts.
        token_types: `(N,)`, where the caller gave any; virtual tokens are of type 0.
        options: For the encoder's `forward`.

    Returns:
        The encoder's output; `last_hidden_state` and `hidden_states` `(B, T, D)`.
    """
    text, of_the_text = rows.text, text_of(prompts, rows.text)

    def taken(states: torch.Tensor) -> torch.Tensor:
        return text.padded(of_the_text(states))

    return _text_alone(encoder, taken, _inputs(encoder, prompts, rows, token_types) | options)


def with_virtual(
    encoder: PreTrainedModel,
    prompts: Sequence[torch.Tensor | None],
    rows: LinedUp,
    token_types: torch.Tensor | None,
    options: dict[str, Any],
) -> tuple[Any, torch.Tensor]:
    """The same with the virtual tokens, as a pooler of PEFT's sees them, and the mask `(B, P + T)` of both."""
    inputs = _inputs(encoder, prompts, rows, token_types)
    return encoder(**inputs, **options), inputs["attention_mask"]


def _inputs(
    encoder: PreTrainedModel,
    prompts: Sequence[torch.Tensor | None],
    rows: LinedUp,
    token_types: torch.Tensor | None,
) -> dict[str, Any]:
    inputs = read_inputs(encoder, prompts, rows)
    if token_types is not None:
        parts = torch.split(token_types, list(rows.text.lengths))
        before = [0 if prompt is None else len(prompt) for prompt in prompts]
        kinds = [torch.cat([part.new_zeros(size), part]) for size, part in zip(before, parts, strict=True)]
        inputs["token_type_ids"] = pad_sequence(kinds, batch_first=True)
    return inputs


def behind_keys(
    encoder: PreTrainedModel,
    prefix: RowPrefix,
    rows: LinedUp,
    token_types: torch.Tensor | None,
    options: dict[str, Any],
) -> Any:
    """The same with keys and values of every layer before the text; arguments and result as for `concatenated`."""
    text = rows.text
    first = positions_before_the_first(encoder) + prefix.lengths
    inputs: dict[str, Any] = {"position_ids": first[:, None] + torch.arange(text.longest, device=text.device)}
    if text.ids is None:
        inputs["inputs_embeds"] = text.padded_embeddings(encoder)
    else:
        inputs["input_ids"] = text.padded(text.ids, filler_of(encoder))
    if token_types is not None:
        inputs["token_type_ids"] = text.padded(token_types)
    inputs["attention_mask"] = prefix.attention_mask(rows.mask, text.rows, text.longest)
    return encoder(**inputs, **as_cache(encoder, prefix.cache()), **options)


def _text_alone(encoder: PreTrainedModel, taken: Taken, inputs: dict[str, Any]) -> Any:
    """An encoder's output without the virtual tokens, which its own pooler does not see either."""
    children = children_of(encoder)
    if children.get("pooler") is None or children.get("encoder") is None:
        output = encoder(**inputs)
        output["last_hidden_state"] = taken(output["last_hidden_state"])
    else:
        if inputs.get("output_hidden_states") or inputs.get("output_attentions"):
            record_outputs(encoder)
        output = _with_layers(encoder, taken)(**inputs)
    if output.get("hidden_states") is not None:
        last = output["last_hidden_state"]  # the text's alone already; behind a pooler's layers it is among the others
        every = output["hidden_states"]
        output["hidden_states"] = tuple(states if states is last else taken(states) for states in every)
    return output


def _with_layers(encoder: PreTrainedModel, taken: Taken) -> PreTrainedModel:
    """A shallow copy of an encoder whose layers give the text's hidden states alone."""
    layers = children_of(encoder)["encoder"]
    assert layers is not None
    twin, shortened = shallow_copy(encoder), shallow_copy(layers)

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = layers(*args, **kwargs)
        output["last_hidden_state"] = taken(output["last_hidden_state"])
        return output

    shortened.__dict__["forward"] = forward
    twin.__dict__["_modules"] = {**children_of(encoder), "encoder": shortened}
    assert isinstance(twin, PreTrainedModel)
    return twin
