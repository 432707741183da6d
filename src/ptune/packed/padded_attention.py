"""Attention of packed rows as a padded batch, for one call of PyTorch's SDPA.

The plan (which position goes where, and who sees whom) is made once a batch, on the device, from four numbers a span.

Shapes: `S` spans, `H` heads, `H'` key/value heads, `Q` positions, `K` keys, `E` head dimension; of the padded batch
`q` queries and `k` keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ptune.packed.layout import PackedRows, sent

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

    def gather(tensor: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """`(S, heads, n, E)` of `(1, heads, positions, E)`."""
        found = tensor[0].index_select(1, at)
        return found.view(len(found), spans, -1, tensor.shape[-1]).transpose(0, 1)

    queries, bias = gather(query, plan.query_at), plan.bias
    keys, values = (gather(part, plan.key_at) for part in (key, value))
    if groups > 1:
        # With a mask, SDPA's own sharing of keys has no kernel but the plainest.
        keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
    if sinks is not None:
        keys, values = (F.pad(part, (0, 0, 0, 1)) for part in (keys, values))
        scores = sinks.detach().to(bias.dtype).view(1, -1, 1, 1).expand(spans, -1, queries.shape[2], 1)
        bias = torch.cat([bias.expand(-1, scores.shape[1], -1, -1), scores], dim=3)
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout, scale=scale)
    return output.transpose(1, 2).flatten(0, 1).index_select(0, plan.back).unsqueeze(0)


@dataclass(frozen=True)
class _Plan:
    query_at: torch.Tensor
    """`(S q,)`: the position of each query of the padded batch; a filler has its span's last."""
    key_at: torch.Tensor
    """`(S k,)`: the key of each."""
    back: torch.Tensor
    """`(Q,)`: where in the padded batch each position's result stands."""
    bias: torch.Tensor
    """`(S, 1 or H, q, k)`, added to the scores: minus infinity at what a query may not see."""


def _plan(
    rows: PackedRows, device: torch.device, dtype: torch.dtype, window: int | None, slopes: torch.Tensor | None
) -> _Plan:
    most, spans = max(span.length for span in rows.spans), rows.spans
    numbers = torch.tensor([(span.start, span.length, span.prefix_start, span.prefix_length) for span in spans])
    back = torch.cat([torch.arange(span.length) + index * most for index, span in enumerate(spans)])
    whole = sent(torch.cat([numbers.t().flatten(), back]), device)
    start, length, prefix_start, prefix = whole[: 4 * len(spans)].view(4, -1, 1)
    query = torch.arange(most, device=device)
    key = torch.arange(-(-rows.reach // _MULTIPLE) * _MULTIPLE, device=device)
    own = rows.key_offset + start + torch.minimum(key - prefix, length - 1)
    key_at = torch.where(key < prefix, prefix_start + key, own)
    place = (prefix + query)[..., None]  # of a query among its span's keys
    hidden = key > place
    if window is not None:
        hidden |= key <= place - window
    # A filler query sees one key: a softmax over nothing is NaN.
    hidden = torch.where((query >= length)[..., None], key > 0, hidden).unsqueeze(1)
    bias = torch.zeros(hidden.shape, device=device, dtype=dtype)
    if slopes is not None:
        bias = bias + slopes.to(dtype)[:, None, None] * key.to(dtype)
    return _Plan(
        query_at=(start + torch.minimum(query, length - 1)).flatten(),
        key_at=key_at.flatten(),
        back=whole[4 * len(spans) :],
        bias=bias.masked_fill(hidden, float("-inf")),
    )
