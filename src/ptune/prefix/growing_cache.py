"""Keys and values of one layer in memory with spare room, so that a new token is written and not everything moved.

transformers' `DynamicLayer` concatenates at each step: with every new token it copies the keys and values of all tokens
before it, and a soft prompt makes each of those copies longer. On a CPU that is a third of the time of a step at some
200 positions. `GrowingLayer` keeps them at the front of a larger tensor and gives out views of it. It starts from a
prefix that all rows share; memory of each row's own is taken when the first text comes.

Shapes: `B` rows, `H` key/value heads, `T` positions so far, `C` positions there is room for, `E` head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

LEAST_ROOM = 32
ROOM_SHARE = 8
"""An eighth of what is held: a token is moved eight times at most on average, however long the text."""


@dataclass(eq=False)
class _Room:
    """The memory, and the views of it that were given out last."""

    keys: torch.Tensor
    """`(B, H, C, E)`."""
    values: torch.Tensor
    given_keys: torch.Tensor
    """`(B, H, T, E)`, the front of `keys`."""
    given_values: torch.Tensor


class GrowingLayer(DynamicLayer):
    """A layer of a `DynamicCache`, filled with a prefix.

    Writing in place is right only for whoever wrote last. Everything else that transformers does to a layer (crop,
    select, repeat, a shallow copy that has gone on by itself) leaves keys that are not the views given out last; those
    are copied into new memory first.

    Args:
        keys: `(B, H, T, E)`, of any strides; never written to.
        values: As `keys`.
        longest: Positions there will be at most; None where that is not known.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, longest: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' own
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.longest = longest
        self._room: _Room | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new positions; gives back the keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.requires_grad or value_states.requires_grad:
            # What a graph is recorded of may not be overwritten.
            return super().update(key_states, value_states, *args, **kwargs)
        seen = self.get_seq_length()
        total = seen + key_states.shape[-2]
        room = self._usable(total)
        if room is None:
            room = self._moved(seen, total, key_states, value_states)
        room.keys[..., seen:total, :] = key_states
        room.values[..., seen:total, :] = value_states
        self._give(room, total)
        return room.given_keys, room.given_values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Give each row the keys and values of another, spare room included."""
        room = self._usable(self.get_seq_length())
        if room is None:
            super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # any integer tensor does
            return
        index = beam_idx.to(room.keys.device)
        keys, values = room.keys.index_select(0, index), room.values.index_select(0, index)
        self._give(_Room(keys, values, keys, values), self.get_seq_length())

    def _usable(self, total: int) -> _Room | None:
        """The memory, if it has room for `total` positions, and nothing but this layer has gone on from its views."""
        room = self._room
        if room is None or room.given_keys is not self.keys or room.given_values is not self.values:
            return None
        if room.keys.is_inference() and not torch.is_inference_mode_enabled():
            return None
        return room if total <= room.keys.shape[-2] else None

    def _moved(self, seen: int, total: int, key_states: torch.Tensor, value_states: torch.Tensor) -> _Room:
        """New memory, what was seen so far at its front."""
        capacity = total + max(total // ROOM_SHARE, LEAST_ROOM)
        if self.longest is not None and total <= self.longest:
            capacity = min(capacity, self.longest)
        made = []
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            memory = new.new_empty(*new.shape[:-2], capacity, new.shape[-1])
            if seen:
                assert held is not None
                memory[..., :seen, :] = held
            made.append(memory)
        return _Room(*made, *made)

    def _give(self, room: _Room, total: int) -> None:
        room.given_keys, room.given_values = room.keys[..., :total, :], room.values[..., :total, :]
        self.keys, self.values, self._room = room.given_keys, room.given_values, room
