"""Attention of packed rows in one call of PyTorch's variable-length flash attention.

The keys of a row's prompt are put before the row's own. Flash attention counts causality from the last key, so a row
sees its whole prompt, and itself up to each token; sliding windows and grouped heads come with the kernel. The prompt's
keys are gathered once for each of its rows, and what the rows send back to them is summed in float32.

Shapes: `H` heads, `H'` key/value heads, `Q` positions, `K` keys, `E` head dimension, `A` keys of all rows, each with
those of its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from ptune.packed.layout import PackedRows, sent

_HALF = (torch.float16, torch.bfloat16)
_AMPERE = (8, 0)
_WIDEST, _MULTIPLE = 256, 8
"""What the kernel takes as a head dimension."""


def takes_varlen(query: torch.Tensor, *, forecast: bool = False) -> bool:
    """Whether the kernel takes such queries; on their own device, or (`forecast`) on one that has it."""
    width = query.shape[-1]
    fits = query.dtype in _HALF and width <= _WIDEST and width % _MULTIPLE == 0
    return fits and (forecast or has_kernel(query.device))


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether a device has flash attention: CUDA from Ampere on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    *,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """`(1, Q, H, E)`; see `ptune.packed.attention.attend`."""
    plan: _Plan = rows.kept(("varlen", query.device), lambda: _plan(rows, query.device))
    keys, values = (_BehindPrompts.apply(part[0].transpose(0, 1), plan) for part in (key, value))  # type: ignore[no-untyped-call]
    output = varlen_attn(
        query[0].transpose(0, 1),
        keys,
        values,
        plan.query_ends,
        plan.key_ends,
        plan.most_queries,
        plan.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0)


@dataclass(frozen=True)
class _Plan:
    key_at: torch.Tensor
    """`(A,)`: which of the `K` keys stands where."""
    query_ends: torch.Tensor
    """`(S + 1,)` int32: where each span's queries end, from 0."""
    key_ends: torch.Tensor
    """`(S + 1,)` int32: the same of its keys among `A`."""
    own: torch.Tensor
    """`(Q,)`: where among `A` each position's own key stands."""
    shares: tuple[tuple[int, int, torch.Tensor], ...]
    """Of each prompt its first key, its length, and where among `A` its keys stand, row after row."""
    most_queries: int
    most_keys: int


class _BehindPrompts(torch.autograd.Function):
    """`(A, H', E)` of `(K, H', E)`: every row's keys behind those of its prompt."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, plan: _Plan) -> torch.Tensor:
        ctx.plan, ctx.keys = plan, len(part)
        return part.index_select(0, plan.key_at)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        plan: _Plan = ctx.plan
        own = grad.index_select(0, plan.own)
        before = ctx.keys - len(own)
        total = torch.cat([own.new_zeros(before, *own.shape[1:]), own]) if before else own
        for start, length, at in plan.shares:
            rows = grad.index_select(0, at).view(-1, length, *grad.shape[1:])
            prompt = total[start : start + length]
            prompt.copy_(prompt.float() + rows.sum(0, dtype=torch.float32))
        return total, None


def _plan(rows: PackedRows, device: torch.device) -> _Plan:
    key_at, own, start = [], [], 0
    shares: dict[tuple[int, int], list[torch.Tensor]] = {}
    for span in rows.spans:
        mine = rows.own_keys(span)
        prompt = torch.arange(span.prefix_start, span.prefix_start + span.prefix_length)
        key_at += [prompt, torch.arange(mine.start, mine.stop)]
        own.append(torch.arange(start + span.prefix_length, start + span.reach))
        if span.prefix_length:
            place = (span.prefix_start, span.prefix_length)
            shares.setdefault(place, []).append(torch.arange(start, start + span.prefix_length))
        start += span.reach
    lengths = torch.tensor([[span.length for span in rows.spans], [span.reach for span in rows.spans]])
    ends = torch.nn.functional.pad(lengths.cumsum(1), (1, 0))
    parts = [torch.cat(key_at), torch.cat(own), *(torch.cat(each) for each in shares.values()), *ends]
    # One copy for all.
    found = torch.split(sent(torch.cat(parts).to(torch.int32), device), [len(part) for part in parts])
    return _Plan(
        key_at=found[0],
        own=found[1],
        shares=tuple((*place, at) for place, at in zip(shares, found[2:-2], strict=True)),
        query_ends=found[-2],
        key_ends=found[-1],
        most_queries=max(span.length for span in rows.spans),
        most_keys=rows.reach,
    )
