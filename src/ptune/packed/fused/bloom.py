"""BLOOM in packed form.

BLOOM has ALiBi, a bias on key positions (Press et al. 2022), and an attention of its own that transformers cannot
exchange. Only distances between positions count, since a constant added to all scores of a query changes nothing in the
softmax. So each row may count its keys from its prompt's first token, wherever it stands in the packed sequence.

Shapes: `Q` positions, `H` heads, `E` head dimension, `D` hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomModel, build_alibi_tensor
from typing_extensions import override

from ptune.frozen.cache_argument import cache_in
from ptune.packed.attention import attend
from ptune.packed.layout import PackedRows


class PackedBloomModel(BloomModel):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """BLOOM's layers over one packed sequence."""

    @override
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        packed_rows: PackedRows | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states `(1, Q, D)`; without `packed_rows` BLOOM's own forward."""
        if packed_rows is None:
            return super().forward(
                input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                **kwargs,
            )
        assert inputs_embeds is not None
        hidden = self.word_embeddings_layernorm(inputs_embeds)
        for block in self.h:
            hidden = block(
                hidden, layer_past=cache_in(kwargs), attention_mask=attention_mask, alibi=packed_rows, use_cache=False
            )[0]
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden))


class PackedBloomAttention(BloomAttention):
    """BLOOM's attention; `alibi` is the layout of a packed batch."""

    @override
    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        alibi: torch.Tensor | PackedRows,
        attention_mask: torch.Tensor,
        layer_past: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states `(1, Q, D)`, and None for the weights; BLOOM's own forward for another `alibi`."""
        if not isinstance(alibi, PackedRows):
            return super().forward(hidden_states, residual, alibi, attention_mask, layer_past, **kwargs)
        fused = self.query_key_value(hidden_states).unflatten(2, (self.num_heads, 3, self.head_dim))
        # Not by `_reshape`: each of its three selections has a gradient of the size of the whole.
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(3))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        context = attend(
            query,
            key,
            value,
            alibi,
            scaling=self.inv_norm_factor,
            dropout=self.attention_dropout.p if self.training else 0.0,
            slopes=alibi.kept(("slopes", query.device), lambda: alibi_slopes(self.num_heads, query.device)),
        )
        output = self.dense(context.flatten(2))
        return F.dropout(output, self.hidden_dropout, self.training) + residual, None


def alibi_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """`(H,)`: each head's slope, as transformers builds its bias."""
    two = torch.ones(1, 2, device=device)
    return build_alibi_tensor(two, heads, torch.float32)[:, 0, 1]
