"""What encoders of deep prompts have in common: they give keys and values of every layer, not virtual-token embeddings.

Li & Liang 2021, "Prefix-Tuning", and Liu et al. 2022, "P-Tuning v2", put trained keys and values before those of the
text in every layer of the frozen model; nothing of the prompt runs through the model. A row of the output is a virtual
token, laid out as PEFT keeps it: layer after layer, keys before values, head after head. Keys are as the model's cache
holds them, turned by their position where a model does that.

Shapes: `P` virtual tokens, `L` layers, `H` key/value heads, `E` head dimension.
"""

from __future__ import annotations

import torch

from ptune.encoders.base import PromptEncoder


class DeepEncoder(PromptEncoder):
    """Base of the encoders whose output is `(P, 2 L H E)`.

    Args:
        num_virtual_tokens: `P`.
        token_dim: `H E`, the size of a layer's keys of one token. PEFT calls it so.
        layers: `L`.
        heads: `H`.
        table: As for `PromptEncoder`.
    """

    def __init__(
        self,
        *,
        num_virtual_tokens: int,
        token_dim: int,
        layers: int,
        heads: int,
        table: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(num_virtual_tokens=num_virtual_tokens, token_dim=token_dim, table=table)
        self.layers, self.heads = layers, heads

    def start_at(self, rows: torch.Tensor) -> None:
        """Set the parameters so that the output is `rows`, `(P, 2 L H E)`.

        Raises:
            ConfigError: The encoder cannot give these rows.
        """
        raise NotImplementedError

    def start_at_random(self, deviations: torch.Tensor) -> None:
        """Set the parameters so that the output is random, of given standard deviations.

        Args:
            deviations: `(2 L,)`, of each layer's keys and values in turn.
        """
        raise NotImplementedError

    def start_at_zero(self) -> None:
        """Set the parameters so that the output is zero, as PEFT's `init_weights="zero"` does."""
        raise NotImplementedError
