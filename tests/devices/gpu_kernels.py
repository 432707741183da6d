"""Kernels that every GPU has and the CPU has not, computed on the CPU in float32."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.attention.varlen  # registers its operators

aten = torch.ops.aten


def _lstm_cell(input_gates, hidden_gates, cx, input_bias=None, hidden_bias=None):
    gates = input_gates + hidden_gates
    for bias in (input_bias, hidden_bias):
        gates = gates if bias is None else gates + bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(grad_hy, grad_cy, cx, cy, workspace, has_bias):
    i, f, g, o = workspace.chunk(4, 1)
    tanh = cy.tanh()
    grad_hy = torch.zeros_like(cy) if grad_hy is None else grad_hy
    through = grad_hy * o * (1 - tanh * tanh) + (0 if grad_cy is None else grad_cy)
    gates = torch.cat(
        [
            through * g * i * (1 - i),
            through * cx * f * (1 - f),
            through * i * (1 - g * g),
            grad_hy * tanh * o * (1 - o),
        ],
        1,
    )
    return gates, through * f, gates.sum(0) if has_bias else None


FLASH = [torch.float16, torch.bfloat16]


def _spans(ends):
    ends = ends.tolist()
    return list(pairwise(ends))


def _hidden(queries, keys, causal, left, right):
    """What flash attention masks: it counts from the last key."""
    at = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if causal or (right is not None and right >= 0):
        hidden |= key > at + (right or 0)
    if left is not None and left >= 0:
        hidden |= key < at - left
    return hidden


def _flash_forward(
    query,
    key,
    value,
    query_ends,
    key_ends,
    most_q,
    most_k,
    dropout,
    causal,
    debug,
    *,
    scale=None,
    window_size_left=None,
    window_size_right=None,
    **rest,
):
    assert query.dtype in FLASH, f"FlashAttention only support fp16 and bf16 data type, not {query.dtype}"
    assert (query_ends.dtype == key_ends.dtype == torch.int32 and query.shape[-1] % 8 == 0) or query.shape[-1] < 8
    assert dropout == 0
    assert all(one.stride(-1) == 1 for one in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    out, lse = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
    for (q0, q1), (k0, k1) in zip(_spans(query_ends), _spans(key_ends), strict=True):
        k, v = (one[k0:k1].float().repeat_interleave(groups, 1) for one in (key, value))
        scores = torch.einsum("qhe,khe->hqk", query[q0:q1].float(), k) * scale
        scores.masked_fill_(_hidden(q1 - q0, k1 - k0, causal, window_size_left, window_size_right), float("-inf"))
        lse[:, q0:q1] = scores.logsumexp(-1)
        out[q0:q1] = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v).to(out.dtype)
    return out, lse, torch.zeros(2, dtype=torch.int64), torch.zeros(0), torch.zeros(0)


def _flash_backward(
    grad,
    query,
    key,
    value,
    out,
    lse,
    query_ends,
    key_ends,
    most_q,
    most_k,
    dropout,
    causal,
    seed,
    offset,
    *,
    scale=None,
    window_size_left=None,
    window_size_right=None,
):
    groups = query.shape[1] // key.shape[1]
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for (q0, q1), (k0, k1) in zip(_spans(query_ends), _spans(key_ends), strict=True):
        q, o, g = (one[q0:q1].float() for one in (query, out, grad))
        k, v = (one[k0:k1].float().repeat_interleave(groups, 1) for one in (key, value))
        scores = torch.einsum("qhe,khe->hqk", q, k) * scale
        scores.masked_fill_(_hidden(q1 - q0, k1 - k0, causal, window_size_left, window_size_right), float("-inf"))
        share = (scores - lse[:, q0:q1, None]).exp()
        inner = share * (torch.einsum("qhe,khe->hqk", g, v) - (g * o).sum(-1).t()[..., None]) * scale
        dq[q0:q1] = torch.einsum("hqk,khe->qhe", inner, k).to(dq.dtype)
        for into, from_ in ((dk, torch.einsum("hqk,qhe->khe", inner, q)), (dv, torch.einsum("hqk,qhe->khe", share, g))):
            into[k0:k1] = from_.unflatten(1, (-1, groups)).sum(2).to(into.dtype)
    return dq, dk, dv


def _varlen(  # the operator's own order
    query: Any, key: Any, value: Any, query_ends: Any, key_ends: Any, most_q: int, most_k: int, causal: bool = False,
    scale: Any = None, window: Any = None, *_: Any,
) -> Any:  # fmt: skip
    left, right = window or (-1, -1)
    out, lse, *_rest = _flash_forward(
        query, key, value, query_ends, key_ends, most_q, most_k, 0.0, causal, False,
        scale=scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def _varlen_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, query_ends: Any, key_ends: Any, most_q: int,
    most_k: int, causal: bool, rng: Any, scale: Any = None, window: Any = None,
) -> Any:  # fmt: skip
    left, right = window or (-1, -1)
    return _flash_backward(
        grad, query, key, value, out, lse, query_ends, key_ends, most_q, most_k, 0.0, causal, rng, rng,
        scale=scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip


INSTEAD = {
    aten._flash_attention_forward.default: _flash_forward,
    aten._flash_attention_backward.default: _flash_backward,
    torch.ops.torch_attn._varlen_attn.default: _varlen,
    torch.ops.torch_attn._varlen_attn_backward.default: _varlen_backward,
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_backward,
}
"""The operator on the device → what computes it here."""
