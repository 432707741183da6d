"""Attention of packed rows as a padded batch, for one call of PyTorch's SDPA.

What stands where is planned once a batch. Fillers are the sequence's first query and key; no result of theirs is used.

Shapes: `S` spans, `H` heads, `H'` key/value heads, `Q` positions, `K` keys, `E` head dimension; of the padded batch
`q` queries and `k` keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ptune.packed.gathering import Places, gathered, key_places
from ptune.packed.layout import PackedRows

_MULTIPLE = 8
"""Of a bias's last dimension, as CUDA's kernels want it."""


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    *,
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`(1, Q, H, E)`; see `ptune.packed.attention.attend`."""
    groups, spans = query.shape[1] // key.shape[1], len(rows.spans)
    name = ("padded", query.device, query.dtype, window, slopes is not None)
    plan = rows.kept(name, lambda: _plan(rows, query.device, query.dtype, window, slopes))
    bias = plan.bias

    def padded(part: torch.Tensor, places: Places) -> torch.Tensor:
        """`(S, heads, n, E)` of `(1, heads, positions, E)`."""
        found = gathered(part.squeeze(0).transpose(0, 1), places)
        return found.view(spans, -1, *found.shape[1:]).transpose(1, 2)

    queries, keys, values = padded(query, plan.queries), padded(key, plan.keys), padded(value, plan.keys)
    if groups > 1:
        # With a mask, SDPA's own sharing of keys has no kernel but the plainest.
        keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
    if sinks is not None:
        keys, values = (F.pad(part, (0, 0, 0, 1)) for part in (keys, values))
        scores = sinks.detach().to(bias.dtype).view(1, -1, 1, 1).expand(spans, -1, queries.shape[2], 1)
        bias = torch.cat([bias.expand(-1, scores.shape[1], -1, -1), scores], dim=3)
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout, scale=scale)
    packed: torch.Tensor = _Unpadded.apply(output.transpose(1, 2).flatten(0, 1), plan.queries.own)  # type: ignore[no-untyped-call]
    return packed.unsqueeze(0)


class _Unpadded(torch.autograd.Function):
    """`(Q, H, E)` of `(S q, H, E)`: the results at some places; those of fillers have no gradient."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        ctx.own, ctx.places = own, len(output)
        return output.index_select(0, own)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, ctx.own, grad), None


@dataclass(frozen=True)
class _Plan:
    queries: Places
    """Of `S q`."""
    keys: Places
    """Of `S k`."""
    bias: torch.Tensor
    """`(S, 1 or H, q, k)`, added to the scores: minus infinity at what a query may not see."""


def _plan(
    rows: PackedRows, device: torch.device, dtype: torch.dtype, window: int | None, slopes: torch.Tensor | None
) -> _Plan:
    spans, most = rows.spans, max(span.length for span in rows.spans)
    width = -(-rows.reach // _MULTIPLE) * _MULTIPLE
    key_at = pad_sequence([rows.keys_of(span) for span in spans], batch_first=True)
    query_at = pad_sequence([torch.arange(span.start, span.stop) for span in spans], batch_first=True)
    keys, (queries, own, length, prefix) = key_places(
        rows,
        F.pad(key_at, (0, width - rows.reach)).flatten(),
        range(0, len(spans) * width, width),
        device,
        query_at.flatten(),
        torch.cat([torch.arange(span.length) + number * most for number, span in enumerate(spans)]),
        torch.tensor([span.length for span in spans]),
        torch.tensor([span.prefix_length for span in spans]),
    )
    query, key = torch.arange(most, device=device)[:, None], torch.arange(width, device=device)
    place = prefix[:, None, None] + query  # of a query among its span's keys
    hidden = key > place
    if window is not None:
        hidden |= key <= place - window
    # A filler sees one key: a softmax over nothing is NaN.
    hidden = torch.where(query >= length[:, None, None], key > 0, hidden).unsqueeze(1)
    bias = torch.zeros(hidden.shape, device=device, dtype=dtype)
    if slopes is not None:
        bias = bias + slopes.to(dtype)[:, None, None] * key.to(dtype)
    return _Plan(Places(queries, own), keys, bias.masked_fill(hidden, float("-inf")))
