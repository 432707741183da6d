"""Rows' keys and values behind those of their prompt: a gather whose backward is a gather too.

PyTorch's own backward adds into zeros, one element after the other: two kernels, in an order that changes from run to
run, and a rounding for every row in half precision. Here each gradient is fetched from the one place it stands at, and
what all rows send to their prompt is one sum, in float32 inside.

Shapes: `K` keys, those of the sequence being the last of them, `A` places, `n` positions, `H` heads, `E` head
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ptune.frozen.transfer import sent
from ptune.packed.layout import PackedRows


@dataclass(frozen=True)
class Places:
    """Which of several tensors stands at each of `A` places, and where each is found again."""

    at: torch.Tensor
    """`(A,)`."""
    own: torch.Tensor
    """`(n,)`: the place of each of the last `n` tensors."""
    shares: tuple[tuple[int, int, torch.Tensor], ...] = ()
    """Of each prompt its first key, its length, and every place where its keys stand, one row after the other."""


def gathered(part: torch.Tensor, places: Places) -> torch.Tensor:
    """`(A, H, E)` of `(K, H, E)`."""
    found: torch.Tensor = _Gather.apply(part, places)  # type: ignore[no-untyped-call]
    return found


def key_places(
    rows: PackedRows, at: torch.Tensor, starts: Sequence[int], device: torch.device, *more: torch.Tensor
) -> tuple[Places, tuple[torch.Tensor, ...]]:
    """The places of keys and values, on a device; `more` index tensors go there in the same copy.

    Args:
        rows: The layout.
        at: `(A,)`, which key stands where.
        starts: For each span the first of its places: its prompt's keys stand there, its own behind them.
        device: Where to.
        more: Each `(n,)`.
    """
    own: list[torch.Tensor] = []
    shares: dict[tuple[int, int], list[torch.Tensor]] = {}
    for number, (span, start) in enumerate(zip(rows.spans, starts, strict=True)):
        own.append(torch.arange(start + span.prefix_length, start + span.reach))
        if number < rows.first_row:
            shares[span.start, span.length] = [own[-1]]  # a prompt of the sequence attends to itself too
        elif span.prefix_length:
            behind = shares.setdefault((span.prefix_start, span.prefix_length), [])
            behind.append(torch.arange(start, start + span.prefix_length))
    parts = [at, torch.cat(own), *(torch.cat(each) for each in shares.values()), *more]
    found = torch.split(sent(torch.cat(parts), device), [len(part) for part in parts])
    of_prompts = found[2 : 2 + len(shares)]
    places = Places(found[0], found[1], tuple((*key, each) for key, each in zip(shares, of_prompts, strict=True)))
    return places, found[2 + len(shares) :]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, places: Places) -> torch.Tensor:
        ctx.places, ctx.keys = places, len(part)
        return part.index_select(0, places.at)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        places: Places = ctx.places
        before = ctx.keys - len(places.own)
        total = grad.new_empty(ctx.keys, *grad.shape[1:])
        torch.index_select(grad, 0, places.own, out=total[before:])
        for start, length, at in places.shares:
            rows = grad.index_select(0, at).view(-1, length, *grad.shape[1:])
            torch.sum(rows, dim=0, out=total[start : start + length])
        return total, None
