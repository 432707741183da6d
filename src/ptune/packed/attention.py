"""Attention of packed rows: every row to its prompt and to itself, by the kernel that suits device and dtype.

| way | where | what it computes |
| --- | --- | --- |
| `spans` | the CPU | each row by itself, the prompt for all its rows at once |
| `varlen` | CUDA from Ampere on, float16 and bfloat16 | rows of any length in one call |
| `padded` | everywhere | rows as a padded batch, for the attention alone |

ALiBi and attention sinks take no `varlen`, dropout on the attention weights takes `padded` alone. All other layers stay
packed whatever the way. The first batch logs it, and `PTUNE_PACKED_ATTENTION=padded` asks for the plainest.

Shapes: `H` heads, `H'` key/value heads, `Q` positions, `K` keys, `E` head dimension (`E'` of the values).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptune.errors import ConfigError, ModelError, shown
from ptune.packed.layout import PackedRows
from ptune.packed.padded_attention import padded_attention
from ptune.packed.span_attention import span_attention, takes_spans
from ptune.packed.varlen_attention import takes_varlen, varlen_attention

PACKED = "ptune_packed"
"""The name under which transformers finds `packed_attention`."""
CHOICE = "PTUNE_PACKED_ATTENTION"
"""The environment variable that asks for one of `WAYS`."""
WAYS = ("spans", "varlen", "padded")
_log = logging.getLogger("ptune")
_UNKNOWN = ("softcap", "position_bias", "cache")
_AS_ON_CUDA: ContextVar[bool] = ContextVar("_AS_ON_CUDA", default=False)


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Take the way of a CUDA device from Ampere on: for a forecast, whose tensors have no data on any device."""
    before = _AS_ON_CUDA.set(True)
    try:
        yield
    finally:
        _AS_ON_CUDA.reset(before)


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
    way = _way(query, dropout=dropout, biased=slopes is not None or sinks is not None)
    _say(way, query.device.type, query.dtype)
    if way == "varlen":
        found = varlen_attention(query, key, value, rows, scale=scale, window=cut)
    elif way == "spans":
        found = span_attention(query, key, value, rows, scale=scale, window=cut, slopes=slopes, sinks=sinks)
    else:
        options: dict[str, Any] = {"scale": scale, "dropout": dropout, "window": cut, "slopes": slopes, "sinks": sinks}
        found = padded_attention(query, key, value, rows, **options)
    return found[..., :width]


def _way(query: torch.Tensor, *, dropout: float, biased: bool) -> str:
    """Which of `WAYS` a layer takes: the one asked for where it can be, or the first that can."""
    asked = os.environ.get(CHOICE)
    if asked not in (None, "", *WAYS):
        raise ConfigError(f"{CHOICE}={shown(asked)} is no attention of packed rows.", hint=f"Use {', '.join(WAYS)}.")
    forecast = _AS_ON_CUDA.get()
    can = {
        "spans": not dropout and not forecast and takes_spans(query),
        "varlen": not dropout and not biased and takes_varlen(query, forecast=forecast),
        "padded": True,
    }
    return asked if asked and can[asked] else next(way for way in WAYS if can[way])


@cache
def _say(way: str, device: str, dtype: torch.dtype) -> None:
    """Log once what is chosen for a device and dtype."""
    _log.info("packed rows attend by %s attention (%s, %s)", way, device, str(dtype).removeprefix("torch."))
