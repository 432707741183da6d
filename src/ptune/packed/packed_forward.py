"""One packed batch behind its prompts: one run through the layers, the head on supervised positions, the loss.

Shapes: `B` rows, `T` padded length, `N` text tokens of all rows, `P` virtual tokens, `Q` positions, `S` supervised
labels, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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
from ptune.prefix.keys_values import Prefix, RowPrefix, keys_and_values


@dataclass(frozen=True)
class Packed:
    """A batch run through the layers."""

    hidden: torch.Tensor
    """`(Q, D)`."""
    rows: PackedRows
    shared: RowPrefix | None
    """The prompt's keys and values, where it is not part of the sequence."""

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
        prompts: The prompt of each row. Where micro-batches share one as keys and values, it is not run again;
            otherwise prompts are run with the text.
        num_items: By which the summed loss is divided; the number of supervised labels when None.
        return_logits: True computes the logits of all text tokens, None when they are read, False never.
    """
    made, loss = through_the_layers(view, text, prompts), None
    if text.labels is not None:
        found, shared = find_packed_predictors(text.labels, made.rows, made.hidden.device), made.shared
        total = summed_cross_entropy(FrozenHead(view), made.hidden[found.positions], found.targets)
        if shared is not None and found.from_prefix.numel():
            wide = shared.logits.to(total.dtype).expand(found.from_prefix.numel(), -1)
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
    shared = prompts.shared_prefix(view, partial(encode_alone, view, filler_id=filler))
    leading = prompts.leading
    choice = prompts.choice(list(leading))
    rows = PackedRows.of(
        [length for length in text.lengths if length],
        [len(vectors) for vectors in leading.values()],
        [one for one, length in zip(choice, text.lengths, strict=True) if length],
        inside=shared is None,
    )
    embeds, ids = text.embeddings(view), text.ids_by(filler or 0)
    if shared is None:
        embeds = torch.cat([*leading.values(), embeds])
        ids = with_fillers(ids, len(embeds) - len(ids), filler or 0)
    cache = None if shared is None else shared.cache()
    return Packed(_run_layers(view, embeds, None if filler is None else ids, rows, cache), rows, shared)


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


def find_packed_predictors(labels: torch.Tensor, rows: PackedRows, device: torch.device) -> PackedPredictors:
    """Match labels `(N,)`, the host's, to the positions that predict them; the result is on a device.

    See `ptune.padded.padded_loss.find_predictors`.
    """
    first_token = rows.rows[0].start
    predicted_by = torch.arange(first_token - 1, first_token - 1 + labels.numel())
    outside: list[int] = []
    for span in rows.rows:
        at = span.start - first_token
        if span.prefix_length and rows.key_offset == 0:
            predicted_by[at] = span.prefix_start + span.prefix_length - 1
        else:
            predicted_by[at] = -1
            if span.prefix_length:
                outside.append(at)
    counted = torch.nonzero((labels != IGNORE_INDEX) & (predicted_by >= 0)).squeeze(1)
    positions, targets = sent(torch.stack([predicted_by[counted], labels[counted]]), device)
    beyond = labels[outside]
    return PackedPredictors(positions, targets, from_prefix=sent(beyond[beyond != IGNORE_INDEX], device))
