"""Attention of packed rows in one call of PyTorch's variable-length flash attention.

The keys of a row's prompt are put before the row's own. Flash attention counts causality from the last key, so a row
sees its whole prompt, and itself up to each token; sliding windows and grouped heads come with the kernel.

Shapes: `S` spans, `H` heads, `H'` key/value heads, `Q` positions, `K` keys, `E` head dimension, `A` keys of all rows,
each with those of its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from torch.nn.attention.varlen import varlen_attn

from ptune.packed.gathering import Places, gathered, key_places
from ptune.packed.layout import PackedRows

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
    keys, values = (gathered(part.squeeze(0).transpose(0, 1), plan.keys) for part in (key, value))
    output = varlen_attn(
        query.squeeze(0).transpose(0, 1),
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
    keys: Places
    query_ends: torch.Tensor
    """`(S + 1,)` int32: where each span's queries end, from 0."""
    key_ends: torch.Tensor
    """`(S + 1,)` int32: the same of its keys among `A`."""
    most_queries: int
    most_keys: int


def _plan(rows: PackedRows, device: torch.device) -> _Plan:
    query_ends, key_ends = (
        [0, *accumulate(sizes)] for sizes in ([span.length for span in rows.spans], [span.reach for span in rows.spans])
    )
    at = torch.cat([rows.keys_of(span) for span in rows.spans])
    keys, ends = key_places(rows, at, key_ends[:-1], device, torch.tensor(query_ends), torch.tensor(key_ends))
    return _Plan(
        keys=keys,
        query_ends=ends[0].to(torch.int32),
        key_ends=ends[1].to(torch.int32),
        most_queries=max(span.length for span in rows.spans),
        most_keys=rows.reach,
    )
