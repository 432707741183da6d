"""Attention of packed rows on the CPU, span by span.

Each span runs through PyTorch's flash kernel on its own, causally, without a mask; the rows' attention to their prompt
is one more call for all of them at once, or for a prompt of few tokens some small products. The two parts are joined by
their log-sum-exp, as flash attention (Dao et al. 2022) joins the blocks of one row: with the joint log-sum-exp, the
backward of each part is independent of the other. An attention sink is one more such part, with a score and no value.
Where a sliding window cuts a row, or ALiBi adds to the scores, each span sees prompt and itself in one call with its
own small bias.

Grouped heads share their keys by stride, without a copy. Half precisions are computed in float32, between inputs and an
output in the model's dtype: the kernel's backward takes twice as long in bfloat16, and prompts gather gradients from
all their rows.

Shapes: `H` heads, `H'` key/value heads, `G = H / H'`, `Q` positions, `K` keys, `E` head dimension, `P` virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ptune.internals import CPU_FLASH, CPU_FLASH_BACKWARD
from ptune.packed.layout import PackedRows, Span, span_bias

_FEW_KEYS = 32
"""Virtual tokens up to which small products take a prompt's part: for so few keys the kernel takes twice as long."""
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
    """Forward and backward span by span; autocast, which would round in between, is off."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
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
        grouped, keys, values = _wide(query, key, value)
        heads, groups, length, width = grouped.shape
        output = grouped.new_empty(length, heads, groups, width)
        lse = grouped.new_empty(heads, groups, length)
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
            if run.prefix_length <= _FEW_KEYS:
                few = _FewKeys(grouped[:, :, at], keys[:, 0, prompt], values[:, 0, prompt], scale)
                _join(few, into[:, :, at], lse[:, :, at])
                continue
            part, part_lse = _flash(
                grouped[:, :, at], _share(keys[:, :, prompt], groups), _share(values[:, :, prompt], groups), scale=scale
            )
            weight = torch.sigmoid(part_lse - lse[:, :, at]).unsqueeze(-1)
            into[:, :, at].lerp_(part, weight)
            lse[:, :, at] = torch.logaddexp(lse[:, :, at], part_lse)
        if sinks is not None:
            whole = torch.logaddexp(lse, sinks.detach().to(lse.dtype).view(heads, groups, 1))
            into *= (lse - whole).exp_().unsqueeze(-1)
            lse = whole
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout = rows, scale, bias
        return output.view(1, length, heads * groups, width)

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, output, lse = ctx.saved_tensors
        rows, scale, bias = ctx.layout
        grouped, keys, values = _wide(query, key, value)
        heads, groups, length, width = grouped.shape
        grad = grad.to(grouped.dtype).reshape(length, heads, groups, width).permute(1, 2, 0, 3)
        output = output.to(grouped.dtype).permute(1, 2, 0, 3)
        grad_query = torch.empty_like(output)
        grad_key, grad_value = (grouped.new_zeros(heads, part.shape[2], width) for part in (keys, values))

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
            at, prompt = slice(run.start, run.stop), slice(run.prefix_start, run.prefix_start + run.prefix_length)
            if run.prefix_length <= _FEW_KEYS:
                few = _FewKeys(grouped[:, :, at], keys[:, 0, prompt], values[:, 0, prompt], scale)
                part_key, part_value = _join_back(few, *(part[:, :, at] for part in (output, lse, grad, grad_query)))
                grad_key[:, prompt] += part_key
                grad_value[:, prompt] += part_value
                continue
            part, part_key, part_value = back(at, _share_of(prompt))
            grad_query[:, :, at] += part
            grad_key[:, prompt] += part_key.sum(1)
            grad_value[:, prompt] += part_value.sum(1)
        return (
            grad_query.to(query.dtype).reshape(1, heads * groups, length, width),
            grad_key.to(key.dtype).unsqueeze(0),
            grad_value.to(value.dtype).unsqueeze(0),
            *[None] * 5,
        )


def _join(part: _FewKeys, output: torch.Tensor, lse: torch.Tensor) -> None:
    """Add to output and log-sum-exp of a run, in place, what its queries take from the few keys of their prompt."""
    scores = part.scores()
    own = lse.flatten(0, 1)
    joint = torch.logaddexp(own, scores.logsumexp(1))
    weights = scores.sub_(joint.unsqueeze(1)).exp_()
    _flat(output).mul_((own - joint).exp_().unsqueeze(-1)).baddbmm_(
        weights.transpose(1, 2), part.for_heads(part.values)
    )
    lse.copy_(joint.view_as(lse))


def _join_back(
    part: _FewKeys, output: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor, grad_query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The backward of `_join`: adds to the queries' gradient, and gives those of keys and values `(H', P, E)`."""
    weights = part.scores().sub_(lse.flatten(0, 1).unsqueeze(1)).exp_()
    grad = _flat(grad)
    grad_value = torch.bmm(weights, grad)
    along = torch.bmm(part.for_heads(part.values), grad.transpose(1, 2))
    along.sub_(torch.linalg.vecdot(grad, _flat(output)).unsqueeze(1)).mul_(weights)
    _flat(grad_query).baddbmm_(along.transpose(1, 2), part.for_heads(part.keys), alpha=part.scale)
    grad_key = torch.bmm(along, _flat(part.query)).mul_(part.scale)
    shape = (len(part.keys), part.query.shape[1], *part.keys.shape[1:])
    return grad_key.view(shape).sum(1), grad_value.view(shape).sum(1)


@dataclass(frozen=True)
class _FewKeys:
    """Neighbouring rows and the few keys of their prompt."""

    query: torch.Tensor
    """`(H', G, n, E)`."""
    keys: torch.Tensor
    """`(H', P, E)`."""
    values: torch.Tensor
    scale: float

    def scores(self) -> torch.Tensor:
        """`(H, P, n)`."""
        return torch.bmm(self.for_heads(self.keys) * self.scale, _flat(self.query).transpose(1, 2))

    def for_heads(self, part: torch.Tensor) -> torch.Tensor:
        """`(H, P, E)` of `(H', P, E)`."""
        return part.repeat_interleave(self.query.shape[1], 0)


def _flat(part: torch.Tensor) -> torch.Tensor:
    """`(H, Q, E)` of `(H', G, Q, E)`, without a copy."""
    return part.view(-1, *part.shape[2:])


def _wide(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float32 or wider: queries `(H', G, Q, E)`, keys and values `(H', 1, K, E)`."""
    query, key, value = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (query, key, value))
    return query[0].view(key.shape[1], -1, *query.shape[2:]), key[0].unsqueeze(1), value[0].unsqueeze(1)


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
