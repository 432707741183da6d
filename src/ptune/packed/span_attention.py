"""Attention of packed rows on the CPU, span by span.

Each span runs through PyTorch's flash kernel on its own, causally, without a mask; the rows' attention to their prompt
is one more call for all of them at once. The two parts are joined by their log-sum-exp, as flash attention (Dao et al.
2022) joins the blocks of one row: with the joint log-sum-exp, the backward of each part is independent of the other. An
attention sink is one more such part, with a score and no value. Where a sliding window cuts a row, or ALiBi adds to the
scores, each span sees prompt and itself in one call with its own small bias.

Grouped heads share their keys by stride, without a copy.

Shapes: `H` heads, `H'` key/value heads, `G = H / H'`, `Q` positions, `K` keys, `E` head dimension, `P` virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ptune.internals import CPU_FLASH, CPU_FLASH_BACKWARD
from ptune.packed.layout import PackedRows, Span, span_bias

_flash: Any = CPU_FLASH
_flash_backward: Any = CPU_FLASH_BACKWARD


def takes_spans(query: torch.Tensor) -> bool:
    """Whether this build of PyTorch has the kernels for it."""
    return query.device.type == "cpu" and None not in (_flash, _flash_backward)


def span_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    *,
    scale: float,
    window: int | None = None,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`(1, Q, H, E)`; see `ptune.packed.attention.attend`."""
    found: torch.Tensor = _SpanAttention.apply(query, key, value, rows, scale, window, slopes, sinks)  # type: ignore[no-untyped-call]
    return found


class _SpanAttention(torch.autograd.Function):
    """Forward and backward span by span."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes arguments by position
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rows: PackedRows,
        scale: float,
        window: int | None,
        slopes: torch.Tensor | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        grouped, keys, values = _grouped(query, key.shape[1]), key[0].unsqueeze(1), value[0].unsqueeze(1)
        heads, groups, length, width = grouped.shape
        output = query.new_empty(length, heads, groups, width)
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = torch.empty(heads, groups, length, dtype=wide)
        into = output.permute(1, 2, 0, 3)
        bias = _biases(rows, window, slopes, grouped)
        for span in rows.spans:
            at = slice(span.start, span.stop)
            own, options = _span_keys(rows, span, bias)
            part, part_lse = _flash(
                grouped[:, :, at], own(keys, groups), own(values, groups), 0.0, bias is None, scale=scale, **options
            )
            into[:, :, at], lse[:, :, at] = part, part_lse
        for run in rows.runs if bias is None else ():
            at, prompt = slice(run.start, run.stop), slice(run.prefix_start, run.prefix_start + run.prefix_length)
            part, part_lse = _flash(
                grouped[:, :, at], _share(keys[:, :, prompt], groups), _share(values[:, :, prompt], groups), scale=scale
            )
            weight = torch.sigmoid(part_lse - lse[:, :, at]).unsqueeze(-1)
            into[:, :, at].lerp_(part, weight.to(part.dtype))
            lse[:, :, at] = torch.logaddexp(lse[:, :, at], part_lse)
        if sinks is not None:
            whole = torch.logaddexp(lse, sinks.detach().to(wide).view(heads, groups, 1))
            into *= (lse - whole).exp_().unsqueeze(-1).to(into.dtype)
            lse = whole
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout = rows, scale, bias
        return output.view(1, length, heads * groups, width)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, output, lse = ctx.saved_tensors
        rows, scale, bias = ctx.layout
        grouped, keys, values = _grouped(query, key.shape[1]), key[0].unsqueeze(1), value[0].unsqueeze(1)
        heads, groups, length, width = grouped.shape
        grad = grad.reshape(length, heads, groups, width).permute(1, 2, 0, 3)
        output = output.permute(1, 2, 0, 3)
        grad_query = torch.empty_like(output)
        wide = torch.promote_types(query.dtype, torch.float32)
        # Prompts gather gradients from all their rows: in float32, whatever the model's dtype.
        grad_key, grad_value = (torch.zeros(heads, part.shape[2], width, dtype=wide) for part in (keys, values))

        def back(at: slice, own: Callable[[torch.Tensor, int], torch.Tensor], **options: Any) -> Any:
            return _flash_backward(
                grad[:, :, at],
                grouped[:, :, at],
                own(keys, groups),
                own(values, groups),
                output[:, :, at],
                lse[:, :, at].contiguous(),
                0.0,
                options.pop("causal", False),
                scale=scale,
                **options,
            )

        for span in rows.spans:
            at, mine = slice(span.start, span.stop), rows.own_keys(span)
            own, options = _span_keys(rows, span, bias)
            part, part_key, part_value = back(at, own, causal=bias is None, **options)
            grad_query[:, :, at] = part
            for total, piece in ((grad_key, part_key.sum(1)), (grad_value, part_value.sum(1))):
                total[:, mine] += piece[:, -span.length :]
                if piece.shape[1] > span.length:
                    prompt = slice(span.prefix_start, span.prefix_start + span.prefix_length)
                    total[:, prompt] += piece[:, : span.prefix_length]
        for run in rows.runs if bias is None else ():
            prompt = slice(run.prefix_start, run.prefix_start + run.prefix_length)
            part, part_key, part_value = back(slice(run.start, run.stop), _share_of(prompt))
            grad_query[:, :, run.start : run.stop] += part
            grad_key[:, prompt] += part_key.sum(1)
            grad_value[:, prompt] += part_value.sum(1)
        return (
            grad_query.reshape(1, heads * groups, length, width),
            grad_key.to(key.dtype).unsqueeze(0),
            grad_value.to(value.dtype).unsqueeze(0),
            *[None] * 5,
        )


def _grouped(query: torch.Tensor, key_heads: int) -> torch.Tensor:
    """`(H', G, Q, E)` of `(1, H, Q, E)`: the heads that share a key/value head together."""
    heads, length, width = query.shape[1:]
    return query[0].view(key_heads, heads // key_heads, length, width)


def _share(part: torch.Tensor, groups: int) -> torch.Tensor:
    """`(H', G, n, E)` of `(H', 1, n, E)`, without a copy."""
    return part.expand(-1, groups, -1, -1)


def _share_of(which: slice) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """`_share` of the keys at `which`."""
    return lambda part, groups: _share(part[:, :, which], groups)


def _biases(
    rows: PackedRows, window: int | None, slopes: torch.Tensor | None, grouped: torch.Tensor
) -> dict[Span, torch.Tensor] | None:
    """The bias `(H' or 1, G or 1, length, keys)` of every span; None where causal calls without one will do."""
    if window is None and slopes is None:
        return None
    shape = grouped.shape[:2] if slopes is not None else (1, 1)
    return {
        span: bias.view(*shape, *bias.shape[1:])
        for span in rows.spans
        for bias in [span_bias(span, window, slopes, device=grouped.device, dtype=grouped.dtype)]
    }


def _span_keys(
    rows: PackedRows, span: Span, bias: dict[Span, torch.Tensor] | None
) -> tuple[Callable[[torch.Tensor, int], torch.Tensor], dict[str, Any]]:
    """What a span's call attends to: its own keys, or with a bias those of its prompt too."""
    mine = rows.own_keys(span)
    prompt = slice(span.prefix_start, span.prefix_start + span.prefix_length)

    def own(part: torch.Tensor, groups: int) -> torch.Tensor:
        chosen = part[:, :, mine]
        if bias is not None and span.prefix_length:
            chosen = torch.cat([part[:, :, prompt], chosen], dim=2)
        return _share(chosen, groups)

    return own, {} if bias is None else {"attn_mask": bias[span]}
