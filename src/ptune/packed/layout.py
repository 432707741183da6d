"""Rows of different length in one sequence without padding: which token stands where, and what it may attend to.

A packed batch is one sequence of `Q` positions. For a prompt of 3 and rows of 4 and 2 tokens:

    sequence    p0 p1 p2 | a0 a1 a2 a3 | b0 b1
    position     0  1  2 |  3  4  5  6 |  3  4
    a2 sees      ✓  ✓  ✓ |  ✓  ✓  ✓  · |  ·  ·
    b1 sees      ✓  ✓  ✓ |  ·  ·  ·  · |  ✓  ✓
    predicts     ·  · a0 | a1 a2 a3  · | b1  ·      (p2 predicts b0 as well)

Every row attends to the prompt before
it and to itself, causally; positions restart at the prompt's length in each row, so that a row is computed exactly as
if it stood alone behind the prompt. The prompt's own positions stand in the same sequence: it runs through the model
once, together with the text, and autograd sums what the rows send back to it.

When the prompt's keys and values are there already (one prefix for several micro-batches), it is not part of the
sequence: its keys then precede those of the sequence.

Shapes: `B` rows, `N` text tokens of all rows, `P` virtual tokens, `Q` positions of the sequence, `K` keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

from ptune.frozen.transfer import sent

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """A prompt or a row inside the sequence."""

    start: int
    """Its first position."""
    length: int
    prefix_start: int = 0
    """First key of the prompt it stands behind."""
    prefix_length: int = 0
    """Virtual tokens of that prompt; 0 for a prompt itself and for a row without one."""

    @property
    def stop(self) -> int:
        """The position behind its last."""
        return self.start + self.length

    @property
    def reach(self) -> int:
        """Positions from the first virtual token to the last token."""
        return self.prefix_length + self.length


@dataclass(frozen=True)
class Run:
    """Neighbouring spans behind the same prompt, which attend to it together."""

    start: int
    stop: int
    prefix_start: int
    prefix_length: int


@dataclass(frozen=True)
class PackedRows:
    """Where prompts and rows stand."""

    spans: tuple[Span, ...]
    """Prompts (where they are part of the sequence) and rows, in order; together they cover it."""
    key_offset: int
    """Keys before the sequence's own: virtual tokens whose keys and values are there already."""
    first_row: int
    """Index of the first row among the spans."""

    @classmethod
    def of(
        cls, row_lengths: Sequence[int], prompt_lengths: Sequence[int], choice: Sequence[int | None], *, inside: bool
    ) -> PackedRows:
        """Lay out a batch.

        Args:
            row_lengths: Tokens of each of the `B` rows.
            prompt_lengths: Virtual tokens of each different prompt.
            choice: For each row the index of its prompt, or None for no prompt.
            inside: Whether the prompts are part of the sequence; their keys and values precede it otherwise.
        """
        starts, at = [], 0
        for length in prompt_lengths:
            starts.append(at)
            at += length
        spans = [Span(start, length) for start, length in zip(starts, prompt_lengths, strict=True)] if inside else []
        first_row, offset = len(spans), 0 if inside else at
        at -= offset
        for length, prompt in zip(row_lengths, choice, strict=True):
            prefix = (0, 0) if prompt is None else (starts[prompt], prompt_lengths[prompt])
            spans.append(Span(at, length, *prefix))
            at += length
        return cls(spans=tuple(spans), key_offset=offset, first_row=first_row)

    @property
    def rows(self) -> tuple[Span, ...]:
        """The rows alone."""
        return self.spans[self.first_row :]

    @property
    def length(self) -> int:
        """`Q`."""
        return self.spans[-1].stop

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The rows that have a prompt, neighbours behind the same prompt together."""
        runs: list[Run] = []
        for span in self.spans:
            if not span.prefix_length:
                continue
            last = runs[-1] if runs else None
            if last is not None and last.stop == span.start and last.prefix_start == span.prefix_start:
                runs[-1] = Run(last.start, span.stop, last.prefix_start, last.prefix_length)
            else:
                runs.append(Run(span.start, span.stop, span.prefix_start, span.prefix_length))
        return tuple(runs)

    @cached_property
    def reach(self) -> int:
        """The longest prompt and row together: what a sliding window must hold to have no effect."""
        return max(span.reach for span in self.spans)

    def position_ids(self, device: torch.device) -> torch.Tensor:
        """`(1, Q)`: each prompt from 0, each row from the length of its prompt."""
        parts = [torch.arange(span.prefix_length, span.reach) for span in self.spans]
        return sent(torch.cat(parts), device).unsqueeze(0)

    def kept(self, name: Hashable, make: Callable[[], T]) -> T:
        """What all layers of a forward share, made by the first one."""
        kept: dict[Hashable, T] = self.__dict__.setdefault("_kept", {})
        if name not in kept:
            kept[name] = make()
        return kept[name]

    def own_keys(self, span: Span) -> slice:
        """Where a span's own keys stand among all `K`."""
        return slice(self.key_offset + span.start, self.key_offset + span.stop)

    def keys_of(self, span: Span) -> torch.Tensor:
        """`(reach,)`: the keys that a span attends to, those of its prompt first."""
        mine, prompt = self.own_keys(span), span.prefix_start
        return torch.cat([torch.arange(prompt, prompt + span.prefix_length), torch.arange(mine.start, mine.stop)])


def span_bias(
    span: Span, window: int | None, slopes: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """What is added to the attention scores of a span: `(1 or H, length, prefix_length + length)`.

    Minus infinity at what a token may not see: what comes later, and what lies outside a sliding window. With ALiBi
    (Press et al. 2022) a head's slope times the key's position, as BLOOM has it.

    Args:
        span: The span; its keys are those of its prompt and then its own.
        window: Positions a token sees, itself included; None for all.
        slopes: `(H,)`, ALiBi's; None without.
        device: Of the result.
        dtype: Of the result.
    """
    keys = torch.arange(span.reach, device=device)
    queries = keys[span.prefix_length :, None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    bias = torch.zeros(1, *hidden.shape, device=device, dtype=dtype)
    if slopes is not None:
        bias = bias + slopes.to(dtype)[:, None, None] * keys.to(dtype)
    return bias.masked_fill(hidden, float("-inf"))
