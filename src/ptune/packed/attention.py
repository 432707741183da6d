"""Attention of packed rows: every row to its prompt and to itself, and nothing else is computed.

On the CPU each span runs through PyTorch's flash kernel on its own, causally, without a mask; the rows' attention to
their prompt is one more call for all of them at once. The two parts are joined by their log-sum-exp, as flash
attention (Dao et al. 2022) joins the blocks of one row: with the joint log-sum-exp, the backward of each part is
independent of the other. An attention sink is one more such part, with a score and no value. Where a sliding window
cuts a row, or ALiBi adds to the scores, each span sees prompt and itself in one call with its own small bias.
Elsewhere (a GPU, dropout inside the attention) rows are gathered into a padded batch for the attention alone; all
other layers stay packed.

Grouped heads share their keys by stride, without a copy.

Shapes: `H` heads, `H'` key/value heads, `G = H / H'`, `Q` positions, `K` keys, `E` head dimension (`E'` of the
values), `P` virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptune.errors import ModelError
from ptune.internals import CPU_FLASH, CPU_FLASH_BACKWARD
from ptune.packed.layout import PackedRows, Span, span_bias

PACKED = "ptune_packed"
"""The name under which transformers finds `packed_attention`."""
_flash: Any = CPU_FLASH
_flash_backward: Any = CPU_FLASH_BACKWARD
_by_spans = None not in (CPU_FLASH, CPU_FLASH_BACKWARD)
_UNKNOWN = ("softcap", "position_bias", "cache")


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_rows: PackedRows | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers, for a batch of one packed sequence.

    Args:
        module: The layer.
        query: `(1, H, Q, E)`.
        key: `(1, H', K, E)`.
        value: `(1, H', K, E')`.
        attention_mask: The one of a single number that `packed_forward` gives; `packed_rows` says who sees whom.
        packed_rows: The layout.
        scaling: Of the scores; `E ** -0.5` when None.
        dropout: On the attention weights.
        sliding_window: Positions a token sees, itself included.
        s_aux: `(H,)`, attention sinks (gpt-oss): scores of a key that every token sees and that has no value.
        kwargs: What other attention functions take.

    Returns:
        `(1, Q, H, E')`, and None for the weights.

    Raises:
        ModelError: The model does not hand the layout on to its layers, or a layer asks for something that changes the
            scores and is not known here.
    """
    name = type(module).__name__
    if packed_rows is None:
        raise ModelError(f"{name} was not told how its rows are packed.", hint="Turn packing off.")
    if asked := [name for name in _UNKNOWN if kwargs.get(name) is not None]:
        raise ModelError(f"this model's attention uses {asked[0]}, which cannot be packed.", hint="Turn packing off.")
    if attention_mask is None or attention_mask.numel() > 1:
        raise ModelError(f"{name} has a mask of its own making.", hint="Turn packing off.")
    if sliding_window is None and _slides(module):
        raise ModelError(f"{name} has a sliding window by mask alone.", hint="Turn packing off.")
    options: dict[str, Any] = {"scaling": scaling, "dropout": dropout, "window": sliding_window, "sinks": s_aux}
    return attend(query, key, value, packed_rows, **options), None


def _slides(module: nn.Module) -> bool:
    """Whether the configuration gives a layer a sliding window that is shorter than the context."""
    config: Any = getattr(module, "config", None)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not isinstance(window, int) or window >= getattr(config, "max_position_embeddings", window):
        return False
    index = getattr(module, "layer_idx", None)
    return kinds is None or index is None or "sliding" in kinds[index]


ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`(1, Q, H, E')`: the attention of packed rows, `slopes` `(H,)` ALiBi's; the rest as for `packed_attention`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    cut = window if window is not None and window < rows.reach else None
    if torch.is_autocast_enabled(query.device.type):
        # Rotary angles leave queries and keys in float32; autocast would bring all to one dtype for PyTorch's own.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    width, missing = value.shape[-1], query.shape[-1] - value.shape[-1]
    # Latent attention (DeepSeek) has values narrower than keys, and the kernels want one width: zeros add nothing.
    if missing > 0:
        value = F.pad(value, (0, missing))
    elif missing < 0:
        query, key = F.pad(query, (0, -missing)), F.pad(key, (0, -missing))
    if query.device.type == "cpu" and not dropout and _by_spans:
        found: torch.Tensor = _SpanAttention.apply(query, key, value, rows, scale, cut, slopes, sinks)  # type: ignore[no-untyped-call]
    else:
        options: dict[str, Any] = {"scale": scale, "dropout": dropout, "window": cut, "slopes": slopes, "sinks": sinks}
        found = _gathered_attention(query, key, value, rows, **options)
    return found[..., :width]


class _SpanAttention(torch.autograd.Function):
    """The CPU's way; forward and backward span by span."""

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


def _gathered_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    *,
    scale: float,
    dropout: float,
    window: int | None,
    slopes: torch.Tensor | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The spans as a padded batch, for one call of PyTorch's SDPA."""
    device, groups = query.device, query.shape[1] // key.shape[1]
    queries = max(span.length for span in rows.spans)
    query_at = torch.zeros(len(rows.spans), queries, dtype=torch.long)
    key_at = torch.zeros(len(rows.spans), rows.reach, dtype=torch.long)
    slots, bias = [], query.new_full((len(rows.spans), 1, queries, rows.reach), float("-inf"))
    if slopes is not None:
        bias = bias.repeat(1, len(slopes), 1, 1)
    for index, span in enumerate(rows.spans):
        own = rows.own_keys(span)
        query_at[index, : span.length] = torch.arange(span.start, span.stop)
        key_at[index, : span.prefix_length] = torch.arange(span.prefix_start, span.prefix_start + span.prefix_length)
        key_at[index, span.prefix_length : span.reach] = torch.arange(own.start, own.stop)
        bias[index, :, : span.length, : span.reach] = span_bias(span, window, slopes, device=device, dtype=query.dtype)
        bias[index, :, span.length :, 0] = 0  # a filler query sees one key: a softmax over nothing is not a number
        slots.append(torch.arange(span.length) + index * queries)

    def gather(tensor: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """`(spans, heads, n, E)` of `(1, heads, positions, E)`."""
        return tensor[0][:, at.to(device)].transpose(0, 1)

    keys, values = (gather(part, key_at).repeat_interleave(groups, dim=1) for part in (key, value))
    if sinks is not None:
        keys, values = (F.pad(part, (0, 0, 0, 1)) for part in (keys, values))
        scores = sinks.detach().to(bias.dtype).view(1, -1, 1, 1).expand(len(bias), -1, queries, 1)
        bias = torch.cat([bias.expand(-1, scores.shape[1], -1, -1), scores], dim=3)
    output = F.scaled_dot_product_attention(
        gather(query, query_at), keys, values, attn_mask=bias, dropout_p=dropout, scale=scale
    )
    flat = output.transpose(1, 2).flatten(0, 1)
    return flat[torch.cat(slots).to(device)].unsqueeze(0)
