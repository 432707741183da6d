"""Rows written by a template as token ids: words around the text, virtual tokens inside it, the gap of a masked model.

The text between two places for virtual tokens is tokenized as one piece, its gap as the tokenizer's mask token in it.
Every token knows what it is of, by its characters: what does not fit is cut from the end of the longer text of the row,
and never from the template's own words, virtual tokens or gap. A tokenizer that cannot say which characters a token is
of tokenizes every part of a piece by itself.

A mask token stands for a word and the blank before it, in vocabularies where words begin with their blank; so blanks
before the gap are not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptune.data.blocks import Block
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_templates import Place, TaskTemplate
from ptune.data.text_ids import ids_of, special_frame
from ptune.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Cell = tuple[int, Place | None]
"""A token id, and the place of the template that it fills; None for the template's own words and virtual tokens."""


@dataclass
class _Piece:
    """Text between virtual tokens."""

    text: str = ""
    spans: list[tuple[int, int, Place]] = field(default_factory=list)
    """First character and the one behind the last of what fills a place."""

    def write(self, text: str, place: Place | None) -> None:
        """Add what fills a place, or words of the template."""
        if place is Place.MASK:
            self.text = self.text.rstrip()
            self.spans = [(start, min(end, len(self.text)), one) for start, end, one in self.spans]
        if place is not None:
            self.spans.append((len(self.text), len(self.text) + len(text), place))
        self.text += text

    def parts(self) -> Iterator[tuple[str, Place | None]]:
        """What was written, in order."""
        end = 0
        for start, stop, place in self.spans:
            yield self.text[end:start], None
            yield self.text[start:stop], place
            end = stop
        yield self.text[end:], None

    def place_of(self, start: int, end: int) -> Place | None:
        """The place that characters belong to, if only in part."""
        return next((place for first, stop, place in self.spans if start < stop and end > first), None)


@dataclass(frozen=True)
class WrittenRow:
    """Token ids of a row within a length."""

    input_ids: list[int]
    mask_at: int | None
    """The column of the gap."""
    cut: bool
    """Whether text was left out."""
    empty: bool
    """Whether no token of the row's texts is there."""


class RowWriter:
    """Writes rows by a template.

    Args:
        template: The template.
        tokenizer: Makes the tokens.
        max_length: Tokens a row at most, special tokens among them, virtual tokens not.
    """

    def __init__(self, template: TaskTemplate, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.template, self.tokenizer, self.max_length = template, tokenizer, max_length
        self.parts = template.parts()
        self.leading, self.trailing = special_frame(tokenizer)

    def rows(self, examples: Sequence[TaskExample]) -> list[WrittenRow]:
        """Token ids of each example.

        Raises:
            ConfigError: A row has a text that the template has no place for, or the template alone is too long.
            DataError: The gap of a row is not one token.
        """
        for example in examples:
            self.template.check(example)
        written = [self._pieces(example) for example in examples]
        cells = iter(self._cells([piece for row in written for piece in row if isinstance(piece, _Piece)]))
        rows = []
        for example, row in zip(examples, written, strict=True):
            made: list[Cell] = []
            for piece in row:
                made += next(cells) if isinstance(piece, _Piece) else [(one, None) for one in piece.ids]
            rows.append(self._row(made, example))
        return rows

    def _pieces(self, example: TaskExample) -> list[_Piece | Block]:
        """The text of a row, cut at the virtual tokens inside it."""
        values = {
            Place.TEXT: example.text,
            Place.TEXT2: example.second or "",
            Place.MASK: str(self.tokenizer.mask_token or ""),
        }
        pieces: list[_Piece | Block] = []
        piece = _Piece()
        for part in self.parts:
            if isinstance(part, Block):
                pieces += [piece, part]
                piece = _Piece()
            elif isinstance(part, Place):
                piece.write(values[part], part)
            else:
                piece.write(part, None)
        return [*pieces, piece]

    def _cells(self, pieces: Sequence[_Piece]) -> Iterator[list[Cell]]:
        """The tokens of each piece."""
        if not self.tokenizer.is_fast:
            yield from (self._cells_by_part(piece) for piece in pieces)
            return
        encoded: Any = self.tokenizer(
            [piece.text for piece in pieces],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for piece, ids, offsets in zip(pieces, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield [(one, piece.place_of(start, end)) for one, (start, end) in zip(ids, offsets, strict=True)]

    def _cells_by_part(self, piece: _Piece) -> list[Cell]:
        cells: list[Cell] = []
        for text, place in piece.parts():
            ids = ids_of([text], self.tokenizer)[0] if place is not Place.MASK else [int(self.tokenizer.mask_token_id)]
            cells += [(one, place) for one in ids]
        return cells

    def _row(self, cells: list[Cell], example: TaskExample) -> WrittenRow:
        """A row within `max_length`, between the special tokens."""
        virtual = sum(one < 0 for one, _ in cells)
        over = len(cells) + len(self.leading) + len(self.trailing) - virtual - self.max_length
        kept = self._cut(cells, over, example) if over > 0 else cells
        ids = [*self.leading, *(one for one, _ in kept), *self.trailing]
        return WrittenRow(
            input_ids=ids,
            mask_at=self._mask_at(kept, example) if Place.MASK in self.parts else None,
            cut=over > 0,
            empty=not any(place in (Place.TEXT, Place.TEXT2) for _, place in kept),
        )

    def _cut(self, cells: list[Cell], over: int, example: TaskExample) -> list[Cell]:
        """The tokens without the last ones of the longer text."""
        counts = {place: sum(one is place for _, one in cells) for place in (Place.TEXT, Place.TEXT2)}
        if over >= sum(counts.values()):
            alone = self.max_length + over - sum(counts.values())
            where = f"{example.source}: " if example.source else ""
            raise ConfigError(
                f"{where}no token of the text fits into max_length {self.max_length}: the template "
                f"{shown(self.template.text, 60)} alone has {alone}.",
                hint="Raise max_length, or take a shorter template.",
            )
        left = dict(counts)
        for _ in range(over):
            longer = Place.TEXT if left[Place.TEXT] >= left[Place.TEXT2] else Place.TEXT2
            left[longer] -= 1
        kept: list[Cell] = []
        for one, place in cells:
            if place in left:
                left[place] -= 1
                if left[place] < 0:
                    continue
            kept.append((one, place))
        return kept

    def _mask_at(self, cells: list[Cell], example: TaskExample) -> int:
        found = [at for at, (_, place) in enumerate(cells) if place is Place.MASK]
        if len(found) != 1 or cells[found[0]][0] != self.tokenizer.mask_token_id:
            place = f"{example.source}: " if example.source else ""
            raise DataError(
                f"{place}the gap of the template {shown(self.template.text, 60)} is {len(found)} tokens, not one "
                f"{self.tokenizer.mask_token}.",
                hint="Write a blank before and behind {mask}.",
            )
        return len(self.leading) + found[0]
