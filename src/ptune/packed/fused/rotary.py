"""Attention with rotary positions (Su et al. 2021) for models built like Llama, on packed rows.

The layer is transformers' own but for two things: heads are turned where they lie, `(Q, H, E)`, in two passes over
memory, and the packed attention is called directly. The turn is a rotation, so its backward is the turn the other way
and needs the angles alone.

Shapes: `Q` positions, `H` heads, `E` head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MistralConfig
from typing_extensions import override

from ptune.frozen.cache_argument import cache_in
from ptune.frozen.product import suits
from ptune.packed.attention import attend
from ptune.packed.layout import PackedRows


def _turn(x: torch.Tensor, cos: torch.Tensor, sines: tuple[torch.Tensor, ...], direction: int) -> torch.Tensor:
    """`x` turned forwards (1) or backwards (-1); a sine for each half, `(…, E / 2)`."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sines[0], value=-direction)
    turned[..., half:].addcmul_(x[..., :half], sines[1], value=direction)
    return turned


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        sines = sin.chunk(2, dim=-1)
        # Each half was turned by its own sine into the other; on the way back those change places.
        ctx.angles = cos, sines[::-1]
        return _turn(x, cos, sines, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        cos, sines = ctx.angles
        return _turn(grad, cos, sines, -1), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`(1, Q, H, E)` turned by the angles of their positions, `cos` and `sin` being `(1, Q, E)`."""
    turned: torch.Tensor = _Rotate.apply(x, cos.unsqueeze(2), sin.unsqueeze(2))  # type: ignore[no-untyped-call]
    return turned


class FrozenRotaryAttention(nn.Module):
    """Stands in for Llama's attention and those like it; built by `packed.fused.replacements` from one of them."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    head_dim: int
    scaling: float
    attention_dropout: float
    layer_idx: int

    @override
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states `(1, Q, D)`, and None for the weights."""
        rows: PackedRows | None = kwargs.get("packed_rows")
        if rows is None or position_embeddings is None or not suits(hidden_states):
            return super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **kwargs,
            )
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = rotate(self.heads(self.q_proj(hidden_states).view(shape), "q"), *position_embeddings).transpose(1, 2)
        key = rotate(self.heads(self.k_proj(hidden_states).view(shape), "k"), *position_embeddings).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if (cache := cache_in(kwargs)) is not None:
            key, value = cache.update(key, value, self.layer_idx)
        output = attend(
            query,
            key,
            value,
            rows,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            window=self.window(),
        )
        return self.o_proj(output.flatten(2)), None

    def heads(self, projected: torch.Tensor, which: str) -> torch.Tensor:
        """What a model does to its query (`q`) and key (`k`) heads before they are turned: nothing, in Llama."""
        del which
        return projected

    def window(self) -> int | None:
        """The layer's sliding window: none, in Llama."""
        return None


class FrozenConfigWindowAttention(FrozenRotaryAttention):
    """As Mistral has it: one sliding window for all layers."""

    config: MistralConfig

    @override
    def window(self) -> int | None:
        return self.config.sliding_window


class FrozenWindowAttention(FrozenRotaryAttention):
    """As Qwen 2 has it: some layers have a sliding window."""

    sliding_window: int | None

    @override
    def window(self) -> int | None:
        return self.sliding_window


class FrozenNormedAttention(FrozenWindowAttention):
    """As Qwen 3 has it: query and key heads are normalised."""

    q_norm: nn.Module
    k_norm: nn.Module

    @override
    def heads(self, projected: torch.Tensor, which: str) -> torch.Tensor:
        normed: torch.Tensor = (self.q_norm if which == "q" else self.k_norm)(projected)
        return normed
