"""One packed batch behind its prompts: one run through the layers, the head on supervised positions, the loss.

Shapes: `B` rows, `T` padded length, `N` text tokens of all rows, `P` virtual tokens, `Q` positions, `S` supervised
labels, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ptune.batch.row_prompts import RowPrompts
from ptune.batch.text import Text
from ptune.data.labels import IGNORE_INDEX
from ptune.frozen.cache_argument import as_cache
from ptune.frozen.filler_ids import fed, with_fillers
from ptune.frozen.parts import layers_of
from ptune.frozen.transfer import sent
from ptune.packed.chunked_loss import summed_cross_entropy
from ptune.packed.head import FrozenHead, head_logits
from ptune.packed.layout import PackedRows
from ptune.packed.lazy_output import LazyOutput
from ptune.prefix.keys_values import Prefix, filled_cache, keys_and_values


@dataclass(frozen=True)
class Packed:
    """A batch run through the layers."""

    hidden: torch.Tensor
    """`(Q, D)`."""
    rows: PackedRows
    outside: tuple[Prefix, ...]
    """The prompts as keys and values, where they are not part of the sequence."""

    @property
    def of_the_text(self) -> torch.Tensor:
        """`(N, D)`."""
        return self.hidden[self.rows.rows[0].start :]


def run_packed(
    view: PreTrainedModel,
    text: Text,
    prompts: RowPrompts,
    *,
    num_items: torch.Tensor | int | None,
    return_logits: bool | None,
) -> CausalLMOutputWithPast:
    """Loss and logits of a packed batch; logits as the text came.

    Args:
        view: The model's packed view.
        text: The rows.
        prompts: The prompt of each row. Where one is deep, or micro-batches share one, prompts are keys and values
            before the sequence; otherwise they are run with the text.
        num_items: By which the summed loss is divided; the number of supervised labels when None.
        return_logits: True computes the logits of all text tokens, None when they are read, False never.
    """
    made, loss = through_the_layers(view, text, prompts), None
    if text.labels is not None:
        found = find_packed_predictors(text.labels, made.rows, made.hidden.device, made.outside)
        total = summed_cross_entropy(FrozenHead(view), made.hidden[found.positions], found.targets)
        if found.from_prefix.numel():
            wide = torch.cat([prefix.logits for prefix in made.outside]).to(total.dtype)[found.prefixes]
            total = total + F.cross_entropy(wide, found.from_prefix, reduction="sum")
        count = max(found.targets.numel() + found.from_prefix.numel(), 1) if num_items is None else num_items
        loss = total / (count.to(total.device) if isinstance(count, torch.Tensor) else count)

    def logits() -> torch.Tensor:
        return text.as_it_came(head_logits(view, made.of_the_text))

    if return_logits is None and loss is not None:
        return LazyOutput.of(loss, logits)
    return CausalLMOutputWithPast(loss=loss, logits=None if return_logits is False else logits())


def through_the_layers(view: PreTrainedModel, text: Text, prompts: RowPrompts) -> Packed:
    """The hidden states of all rows, and of the prompts where they are part of the sequence."""
    assert text.ids is not None
    filler = prompts.filler_id
    has_text = [length > 0 for length in text.lengths]
    outside = prompts.outside(view, partial(encode_alone, view, filler_id=filler), has_text)
    lengths = {name: one.length for name, one in outside.items()} or {
        name: len(vectors) for name, vectors in prompts.leading.items()
    }
    choice = prompts.choice(list(lengths))
    rows = PackedRows.of(
        [length for length in text.lengths if length],
        list(lengths.values()),
        [one for one, length in zip(choice, text.lengths, strict=True) if length],
        inside=not outside,
    )
    embeds, ids = text.embeddings(view), text.ids_by(filler or 0)
    if not outside:
        embeds = torch.cat([*prompts.leading.values(), embeds])
        ids = with_fillers(ids, len(embeds) - len(ids), filler or 0)
    prefixes = tuple(outside.values())
    cache = filled_cache(_one_behind_the_other(prefixes)) if prefixes else None
    return Packed(_run_layers(view, embeds, None if filler is None else ids, rows, cache), rows, prefixes)


def _one_behind_the_other(prefixes: tuple[Prefix, ...]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values `(1, H, K, E)` of each layer, `K` virtual tokens of all prompts."""
    for parts in zip(*(prefix.layers for prefix in prefixes), strict=True):
        keys, values = zip(*parts, strict=True)
        yield (keys[0], values[0]) if len(parts) == 1 else (torch.cat(keys, dim=2), torch.cat(values, dim=2))


def encode_alone(view: PreTrainedModel, vectors: torch.Tensor, *, filler_id: int | None = None) -> Prefix:
    """`encode_prefix` through the packed view."""
    cache = DynamicCache()
    ids = None if filler_id is None else torch.full((len(vectors),), filler_id, device=vectors.device)
    hidden = _run_layers(view, vectors, ids, PackedRows.of([vectors.shape[0]], [], [None], inside=True), cache)
    return Prefix(layers=keys_and_values(cache), logits=head_logits(view, hidden[-1:]))


def _run_layers(
    view: PreTrainedModel,
    embeds: torch.Tensor,
    ids: torch.Tensor | None,
    rows: PackedRows,
    cache: DynamicCache | None,
) -> torch.Tensor:
    """Hidden states `(Q, D)` of the sequence's embeddings `(Q, D)`, and ids `(Q,)` where the model needs them."""
    layers = layers_of(view)
    assert isinstance(layers, PreTrainedModel)
    model, inputs = fed(layers, embeds.unsqueeze(0), None if ids is None else ids.unsqueeze(0))
    hidden: torch.Tensor = model(
        **inputs,
        position_ids=rows.position_ids(embeds.device),
        **as_cache(layers, cache),
        use_cache=cache is not None,
        # transformers takes a mask of four dimensions as it is; who sees whom is for packed_rows to say.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device),
        packed_rows=rows,
    ).last_hidden_state
    return hidden[0]


@dataclass(frozen=True)
class PackedPredictors:
    """Where the prediction of each supervised label comes from."""

    positions: torch.Tensor
    """`(S,)`, positions of the sequence."""
    targets: torch.Tensor
    """`(S,)`, the labels they predict."""
    from_prefix: torch.Tensor
    """Labels of rows' first tokens that a prompt outside the sequence predicts."""
    prefixes: torch.Tensor
    """For each of these the number of that prompt."""


def find_packed_predictors(
    labels: torch.Tensor, rows: PackedRows, device: torch.device, outside: Sequence[Prefix] = ()
) -> PackedPredictors:
    """Match labels `(N,)`, the host's, to the positions that predict them; the result is on a device.

    See `ptune.padded.padded_loss.find_predictors`.

    Args:
        labels: The labels.
        rows: The layout.
        device: Of the result.
        outside: The prompts, where they are not part of the sequence.
    """
    first_token = rows.rows[0].start
    predicted_by = torch.arange(first_token - 1, first_token - 1 + labels.numel())
    firsts: list[tuple[int, int]] = []
    for span, number in zip(rows.rows, first_predictors(rows, outside), strict=True):
        at = span.start - first_token
        if span.prefix_length and not outside:
            predicted_by[at] = span.prefix_start + span.prefix_length - 1
            continue
        predicted_by[at] = -1
        if number >= 0:
            firsts.append((at, number))
    counted = torch.nonzero((labels != IGNORE_INDEX) & (predicted_by >= 0)).squeeze(1)
    positions, targets = sent(torch.stack([predicted_by[counted], labels[counted]]), device)
    if not firsts:  # looked for nowhere else: a simulated step has no values to look at
        none = positions.new_empty(0)
        return PackedPredictors(positions, targets, none, none)
    places, prefixes = torch.tensor(firsts).T
    beyond = torch.stack([labels[places], prefixes])[:, labels[places] != IGNORE_INDEX]
    return PackedPredictors(positions, targets, *sent(beyond, device))


def first_predictors(rows: PackedRows, outside: Sequence[Prefix]) -> list[int]:
    """For each row the number of the prompt outside the sequence that predicts its first token; -1 where none does."""
    starts = accumulate((one.length for one in outside), initial=0)
    numbers = {start: number for number, (start, one) in enumerate(zip(starts, outside, strict=False)) if one.predicts}
    return [numbers.get(span.prefix_start, -1) if span.prefix_length else -1 for span in rows.rows]
