"""Keys and values of the rows of a running batch: rows come and go, and the others stay where they are.

All rows end in the same column, that of the token being read, so one step writes one column for all of them. A row of
length `l` takes the last `l` columns, without a gap; what stands before them belongs to nobody and is masked:

    row 0   . . . . p p p t t t t n n          p  virtual tokens, from the prompt's prefix
    row 1   p p p p p t t t t t t t n          t  text
    row 2   . . . . . . . . . p t t n          n  new tokens

A row that joins is written into a free row of memory, one that leaves gives its place to the last one: the cost is one
row's. Memory has spare columns on the right, and doubles with the rows; everything moves only when a column or a row
too many is needed. Rows without a gap are also what models need that know positions by distances alone (ALiBi).

Shapes: `N` rows, `R` rows there is memory for, `H` key/value heads, `C` columns there is memory for, `W` columns in
use, `E` head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

KeysValues = tuple[torch.Tensor, torch.Tensor]
LEAST_ROOM = 64
ROOM_SHARE = 8
"""Columns that are spare when memory is taken: 64, or an eighth of those in use."""


@dataclass(frozen=True)
class NewRow:
    """A row of a filled cache that is to join."""

    row: int
    """Where it is among the rows of that cache."""
    spans: tuple[tuple[int, int], ...]
    """Its columns there, from and to, in order; what lies between them is padding."""

    @property
    def length(self) -> int:
        """Positions of the row."""
        return sum(end - start for start, end in self.spans)


class _Layer(DynamicLayer):
    """One layer of the batch, as transformers' attention sees it."""

    def __init__(self, whole: BatchCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' own
        self.whole = whole
        self.memory: KeysValues = (keys, values)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the column of a step, `(N, H, 1, E)`; gives back the keys and values in use, `(N, H, W + 1, E)`."""
        rows, start, end = len(self.whole.lengths), self.whole.start, self.whole.end
        given = []
        for memory, new in zip(self.memory, (key_states, value_states), strict=True):
            memory[:rows, :, end] = new[:, :, 0]
            given.append(memory[:rows, :, start : end + 1])
        return given[0], given[1]

    def get_seq_length(self) -> int:
        """`W`."""
        return self.whole.width


class BatchCache:
    """The memory of a running batch; empty without rows."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        """Positions of each of the `N` rows."""
        self.end = 0
        """The column that the next step writes."""
        self._rows = self._columns = 0
        self._layers: list[_Layer] = []

    @property
    def width(self) -> int:
        """`W`: positions of the longest row."""
        return max(self.lengths, default=0)

    @property
    def start(self) -> int:
        """The first column in use."""
        return self.end - self.width

    @property
    def held_bytes(self) -> int:
        """Memory that is taken."""
        return sum(part.nbytes for layer in self._layers for part in layer.memory)

    def as_cache(self) -> DynamicCache:
        """What the model is given for a step, for which there is room; `stepped` follows it."""
        self._make_room(len(self.lengths), self.width, spare=1)
        cache = DynamicCache()
        cache.layers = list(self._layers)
        return cache

    def stepped(self) -> None:
        """A step has written its column: it belongs to every row now."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def mask(self, device: torch.device) -> torch.Tensor | None:
        """`(N, W + 1)`: 1 where a row's own positions are, that of the next step included; None where all are."""
        width = self.width
        if min(self.lengths) == width:
            return None
        lengths = torch.tensor(self.lengths, device=device)
        return (torch.arange(width + 1, device=device) >= width - lengths[:, None]).long()

    def join(self, filled: Sequence[KeysValues], rows: Sequence[NewRow]) -> None:
        """Put rows of a filled cache behind those that are here.

        Args:
            filled: Keys and values of each layer, `(any, H, any, E)`.
            rows: Which rows; one may come several times.
        """
        if not self._layers:
            self._layers = [_Layer(self, keys[:0, :, :0], values[:0, :, :0]) for keys, values in filled]
        first = len(self.lengths)
        self._make_room(first + len(rows), max(self.width, *(row.length for row in rows)))
        for layer, parts in zip(self._layers, filled, strict=True):
            for memory, source in zip(layer.memory, parts, strict=True):
                for at, row in enumerate(rows, start=first):
                    column = self.end - row.length
                    for start, end in row.spans:
                        memory[at, :, column : column + end - start] = source[row.row, :, start:end]
                        column += end - start
        self.lengths += [row.length for row in rows]

    def leave(self, row: int, *, scrub: bool = False) -> None:
        """Drop a row; the last one takes its number.

        Args:
            row: Its number.
            scrub: Whether it may hold what is no number, which would reach rows that come to its memory.
        """
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        for layer in self._layers if scrub or row != last else ():
            for memory in layer.memory:
                if scrub:
                    memory[row] = 0
                if row != last:
                    memory[row, :, self.end - length : self.end] = memory[last, :, self.end - length : self.end]
        if row != last:
            self.lengths[row] = length
        if not self.lengths:
            self.clear()

    def clear(self) -> None:
        """Drop all rows and the memory."""
        self.lengths, self._layers = [], []
        self.end = self._rows = self._columns = 0

    def _make_room(self, rows: int, width: int, spare: int = 0) -> None:
        """Room for so many rows, `width` columns up to the end and `spare` behind it."""
        if rows <= self._rows and width <= self.end and self.end + spare <= self._columns:
            return
        self._rows = 1 << (rows - 1).bit_length()
        self._columns = width + max(width // ROOM_SHARE, LEAST_ROOM)
        here, start, end, kept = len(self.lengths), self.start, self.end, self.width

        def moved(memory: torch.Tensor) -> torch.Tensor:
            # Zeros: a masked position counts nothing, unless it holds NaN.
            made = memory.new_zeros(self._rows, memory.shape[1], self._columns, memory.shape[3])
            made[:here, :, width - kept : width] = memory[:here, :, start:end]
            return made

        for layer in self._layers:
            layer.memory = _both(moved, layer.memory)
        self.end = width


def _both(change: Callable[[torch.Tensor], torch.Tensor], parts: KeysValues) -> KeysValues:
    return change(parts[0]), change(parts[1])
