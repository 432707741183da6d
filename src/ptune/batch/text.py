"""The text of a batch, row after row without padding, and the way back to how it came.

Callers give rows in one of three forms: padded on either side with an attention mask; packed, one after another in one
sequence, told apart by `row_lengths`, by `cu_seq_lens_q`, or by position ids that start again at 0 (`PackingCollator`,
transformers' `DataCollatorWithFlattening`, TRL's packing); or of one length. Here all are one: `N` tokens and the
length of each row. The ways through the model take them packed or padded as they need them, and `as_it_came` puts what
comes out where the tokens stood.

Shapes: `B` rows, `N` tokens of all rows, `T` tokens of the longest row, `D` token dimension; `(A, C)` is the form in
which the text came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from ptune.batch.inside import Inside, real_ids
from ptune.data.labels import IGNORE_INDEX
from ptune.errors import ConfigError, ModelError, shown
from ptune.frozen.transfer import sent
from ptune.internals import changes_output

_FLATTENED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What flattening collators give beside the tokens; the first says where rows begin."""


@dataclass(frozen=True)
class Text:
    """The rows of a batch, before any prompt."""

    ids: torch.Tensor | None
    """`(N,)`."""
    embeds: torch.Tensor | None
    """`(N, D)`, in place of ids."""
    labels: torch.Tensor | None
    """`(N,)`, `IGNORE_INDEX` where not supervised. On the host, which looks for those that are: it waits for them
    here, where the device has no work of this batch yet."""
    lengths: tuple[int, ...]
    """Tokens of each of the `B` rows."""
    came_as: tuple[int, int]
    """`(A, C)`."""
    places: torch.Tensor | None
    """`(N,)`: where each token stood among the `A · C` of them; None where they stood in this order without a gap."""
    inside: Inside | None = None
    """The vectors of virtual tokens inside the text, which `ids` has below 0."""

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        row_lengths: Sequence[int] | None = None,
        position_ids: torch.Tensor | None = None,
        device: torch.device | None = None,
    ) -> Text:
        """Check what a caller passed.

        Args:
            input_ids: `(A, C)`.
            inputs_embeds: `(A, C, D)`, in place of ids.
            attention_mask: `(A, C)`, 0 at padding.
            labels: `(A, C)`.
            row_lengths: Of rows in one sequence: `A` is 1.
            position_ids: `(A, C)`, from 0 in each row; a row ends where they start again at 0.
            device: Where the model takes it, which a trainer may not know; where it is by default.

        Raises:
            ConfigError: Neither or both of ids and embeddings, or shapes that do not fit.
            ModelError: Position ids that say anything else than where rows begin.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("pass exactly one of input_ids and inputs_embeds.")
        text = input_ids if inputs_embeds is None else inputs_embeds
        assert text is not None
        form = (int(text.shape[0]), int(text.shape[1]))
        if row_lengths is not None and form != (1, sum(row_lengths)):
            raise ConfigError(
                f"the text has shape {form}, but row_lengths add up to {sum(row_lengths)}.",
                hint="Pass a packed batch as PackingCollator makes it: (1, N) tokens and the rows' lengths.",
            )
        if position_ids is not None and tuple(position_ids.shape) == (1, form[1]):
            position_ids = position_ids.expand(form)
        named = (("attention_mask", attention_mask), ("labels", labels), ("position_ids", position_ids))
        for name, value in named:
            if value is not None and tuple(value.shape) != form:
                raise ConfigError(f"{name} has shape {tuple(value.shape)}, the text {form}.")
        lengths, known = [form[1]] * form[0], None
        if attention_mask is not None and not bool((mask := attention_mask.cpu()).all()):
            if row_lengths is not None:
                raise ConfigError("row_lengths and padding exclude each other.", hint="Leave attention_mask out.")
            known = mask.reshape(-1).nonzero().squeeze(1)
            lengths = mask.bool().sum(dim=1).tolist()
        if position_ids is not None:
            lengths = _rows_of(_flat(position_ids.cpu(), known), lengths, row_lengths)
        elif row_lengths is not None:
            lengths = list(row_lengths)
        device = text.device if device is None else device
        places = None if known is None else sent(known, device)
        ids, embeds = (None if one is None else _flat(sent(one, device), places) for one in (input_ids, inputs_embeds))
        answers = None if labels is None else _flat(labels.cpu(), known)
        return cls(ids, embeds, answers, tuple(lengths), form, places)

    @property
    def rows(self) -> int:
        """`B`."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """`T`; at least 1."""
        return max((1, *self.lengths))

    @property
    def is_packed(self) -> bool:
        """Whether it came with several rows in one sequence."""
        return self.rows != self.came_as[0]

    @property
    def device(self) -> torch.device:
        """Where the text is."""
        text = self.ids if self.embeds is None else self.embeds
        assert text is not None
        return text.device

    def embeddings(self, model: PreTrainedModel) -> torch.Tensor:
        """`(N, D)`, as the model embeds them; virtual tokens by their vectors."""
        if self.embeds is not None:
            return self.embeds
        assert self.ids is not None
        layer = model.get_input_embeddings()
        if changes_output(layer):
            # Noise on embeddings (NEFTune) goes by the length of the padded rows.
            return self.flat(self.padded_embeddings(model))
        embeds: torch.Tensor = layer(self.ids_by(0)[None])[0]
        return embeds if self.inside is None else self.inside.placed(embeds, self.ids, self.lengths)

    def padded_embeddings(self, model: PreTrainedModel) -> torch.Tensor:
        """`(B, T, D)`: the same, every row at the left."""
        if self.embeds is not None:
            return self.padded(self.embeds)
        assert self.ids is not None
        ids = self.padded(self.ids)
        if self.inside is None:
            embeds: torch.Tensor = model.get_input_embeddings()(ids)
            return embeds
        return self.inside.placed(model.get_input_embeddings()(real_ids(ids, 0)), ids)

    def ids_by(self, filler: int) -> torch.Tensor:
        """`(N,)`: ids of the vocabulary, a filler for every virtual token."""
        assert self.ids is not None
        return self.ids if self.inside is None else real_ids(self.ids, filler)

    def without_virtual(self, rows: Sequence[bool]) -> Text:
        """The same without the virtual tokens of some rows, which take no part. The host waits for a device."""
        assert self.ids is not None
        lengths = torch.tensor(self.lengths)
        chosen = torch.tensor(rows).repeat_interleave(lengths)
        known = ((self.ids.cpu() >= 0) | ~chosen).nonzero().squeeze(1)
        row = torch.arange(self.rows).repeat_interleave(lengths)[known]
        keep = sent(known, self.device)
        return replace(
            self,
            ids=self.ids[keep],
            labels=None if self.labels is None else self.labels[known],
            lengths=tuple(torch.bincount(row, minlength=self.rows).tolist()),
            places=keep if self.places is None else self.places[keep],
        )

    @cached_property
    def rows_and_columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`(N,)` each: the row of each token and its place in it. On the host."""
        rows = [torch.full((length,), row) for row, length in enumerate(self.lengths)]
        return torch.cat(rows), torch.cat([torch.arange(length) for length in self.lengths])

    @cached_property
    def slots(self) -> torch.Tensor | None:
        """`(N,)`: where each token stands among the `B · T` of padded rows; None where all rows are of one length."""
        if len(set(self.lengths)) == 1 and self.lengths[0]:
            return None
        row, column = self.rows_and_columns
        return sent(row * self.longest + column, self.device)

    def padded(self, values: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """`(B, T, …)` of `(N, …)`: every row at the left, `fill` behind the shorter ones."""
        if self.slots is not None:
            made = values.new_full((self.rows * self.longest, *values.shape[1:]), fill)
            values = made.index_copy(0, self.slots, values)
        return values.view(self.rows, self.longest, *values.shape[1:])

    def flat(self, rows: torch.Tensor) -> torch.Tensor:
        """`(N, …)` of `(B, T, …)`."""
        every = rows.reshape(-1, *rows.shape[2:])
        return every if self.slots is None else every.index_select(0, self.slots)

    def as_it_came(self, values: torch.Tensor) -> torch.Tensor:
        """`(A, C, …)` of `(N, …)`, zeros where there was no token."""
        if self.places is not None:
            empty = values.new_zeros(self.came_as[0] * self.came_as[1], *values.shape[1:])
            values = empty.index_put((self.places,), values)
        return values.reshape(*self.came_as, *values.shape[1:])


def check_ids(model: PreTrainedModel, ids: torch.Tensor, *, virtual: int = 0) -> None:
    """Raise `ModelError` for a token that the model has no embedding for.

    Args:
        model: The model.
        ids: Of any shape.
        virtual: So many ids below 0 are those of virtual tokens inside the text.
    """
    table: Any = model.get_input_embeddings().weight
    rows = int(table.shape[0])
    if not ids.numel() or type(ids) is not torch.Tensor:  # tensors without data are kinds of their own
        return
    least, most = (int(one) for one in torch.aminmax(ids))
    if least < -virtual or most >= rows:
        raise ModelError(
            f"the text holds token {least if least < -virtual else most}, but the model's embedding has {rows} rows.",
            hint="Use the model's own tokenizer, and give padding a token of the vocabulary.",
        )


def followed_by(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text `(B, T)` with labels `(B, A)` that are its answers: ids, mask and labels `(B, T + A)`.

    It is how `Seq2SeqTrainer` measures what it generates: prompts alone, and the answers beside them.
    """
    known = labels != IGNORE_INDEX
    before = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return (
        torch.cat([input_ids, labels.masked_fill(~known, 0)], dim=1),
        torch.cat([before, known.to(before.dtype)], dim=1),
        torch.cat([torch.full_like(input_ids, IGNORE_INDEX), labels], dim=1),
    )


def take_flattened(kwargs: dict[str, Any]) -> list[int] | None:
    """Row lengths from what a flattening collator adds to a batch, which is taken out of `kwargs`; None without it."""
    found = {name: kwargs.pop(name) for name in _FLATTENED if name in kwargs}
    starts = found.get("cu_seq_lens_q")
    return None if starts is None else starts.diff().tolist()


def _flat(values: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """`(N, …)` of `(A, C, …)`: what stands at the places, or everything."""
    every = values.flatten(0, 1)
    return every if places is None else every.index_select(0, places)


def _rows_of(position_ids: torch.Tensor, lengths: Sequence[int], told: Sequence[int] | None) -> list[int]:
    """The lengths of rows that begin wherever position ids are 0, within rows of the lengths given.

    Raises:
        ConfigError: They are other rows than `row_lengths` has told.
        ModelError: The position ids say anything else than where rows begin.
    """
    count = len(position_ids)
    at = torch.arange(count, device=position_ids.device)
    starts = (position_ids == 0).nonzero().squeeze(1)
    begun = torch.searchsorted(starts, at, right=True) - 1
    counted = bool((begun >= 0).all()) and torch.equal(at - starts[begun.clamp_min(0)], position_ids)
    firsts = torch.tensor([0, *lengths], device=at.device).cumsum(0)[:-1]
    if not counted or not bool(torch.isin(firsts[firsts < count], starts).all()):
        raise ModelError(
            "forward takes position_ids behind a soft prompt only to tell rows apart: from 0 to the end of each row.",
            hint="Leave them out; positions count on behind the prompt.",
        )
    found: list[int] = torch.cat([starts, starts.new_tensor([count])]).diff().tolist()
    if told is not None and found != list(told):
        raise ConfigError(
            f"row_lengths tells rows of {shown(list(told))} tokens, position_ids rows of {shown(found)}.",
            hint="Give one of them.",
        )
    return found
