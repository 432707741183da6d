"""A prompt that is given as keys and values, not computed: PEFT's prefix tuning on ptune's prefix path.

Li & Liang 2021, "Prefix-Tuning". PEFT puts the trained keys and values into the cache as they are, layer after layer,
and lets the text start at position `P`: that is a `Prefix` as ptune's own, so forward and generation take it, whatever
the padding. What it cannot give is virtual-token embeddings. So it is not trained here, rows are not packed with it,
it stands in no concatenation, and it predicts no first token: no hidden state of the last virtual token exists, and
PEFT too leaves out the label of the first token.

Shapes: `P` virtual tokens, `L` layers, `H` key/value heads, `E` head dimension, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.encoders import PromptEncoder
from ptune.errors import PromptError
from ptune.prefix.keys_values import Prefix


class GivenPrefix(PromptEncoder):
    """Keys and values of every layer, as PEFT keeps them: one row of `2 L H E` numbers a virtual token.

    Args:
        values: `(P, 2 L H E)`.
        layers: `L`.
        heads: `H`.
    """

    def __init__(self, values: torch.Tensor, *, layers: int, heads: int) -> None:
        length, width = values.shape
        with torch.device("meta"):
            super().__init__(num_virtual_tokens=length, token_dim=width)
        self.embedding.weight = nn.Parameter(values, requires_grad=False)
        self.layers, self.heads = layers, heads

    def forward(self) -> torch.Tensor:
        """Refused: there are no virtual-token embeddings."""
        raise PromptError(
            "this prompt is prefix tuning of PEFT's: keys and values of every layer, and no virtual-token embeddings. "
            "It cannot be saved, trained on, packed with rows, or concatenated with text (which activation "
            "checkpointing needs, and an answer to rows of different lengths beyond a sliding window).",
            hint="Copy the adapter's folder to save it; for the rest, train a prompt: ptune train.",
        )

    def prefix(self, base: PreTrainedModel, dtype: torch.dtype) -> Prefix:
        """The keys and values in a dtype, as the model's cache holds them; without a prediction."""
        rows = self.embedding.weight.to(dtype)
        parts = rows.view(self.num_virtual_tokens, 2 * self.layers, self.heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
        nothing = rows.new_zeros(1, base.config.get_text_config().vocab_size)
        return Prefix(
            layers=tuple((parts[at], parts[at + 1]) for at in range(0, 2 * self.layers, 2)),
            logits=nothing,
            predicts=False,
        )


def given_prefix_obstacle(encoders: Iterable[nn.Module]) -> str | None:
    """Why batches cannot be packed behind these prompts; None when they can."""
    if any(isinstance(encoder, GivenPrefix) for encoder in encoders):
        return "a prompt is given as keys and values (prefix tuning)"
    return None
