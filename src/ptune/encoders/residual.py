"""Residual prompt tuning: each vector plus a shallow MLP of itself.

Razdaibiedina et al. 2023, "Residual Prompt Tuning: Improving Prompt Tuning with Residual Reparameterization".
Differs from the paper in two points. The MLP's last layer starts at zero, so the prompt before training is exactly
the table (a text, say), where the paper starts from a random shift. And layer normalisation stands before the
bottleneck instead of behind it, which keeps that exact start and gives the MLP inputs of unit scale whatever the
model's embeddings are. PEFT has no counterpart.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ptune.encoders.base import PromptEncoder


class ResidualEncoder(PromptEncoder):
    """`vectors + up(relu(down(norm(vectors))))`, the same MLP for every virtual token.

    Args:
        num_virtual_tokens: `P`.
        token_dim: `D`.
        hidden_size: `H`, width of the bottleneck.
        dropout: Dropout on the hidden layer in training.
    """

    def __init__(self, *, num_virtual_tokens: int, token_dim: int, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__(num_virtual_tokens=num_virtual_tokens, token_dim=token_dim)
        self.dropout = dropout
        self.norm = nn.LayerNorm(token_dim)
        self.down = nn.Linear(token_dim, hidden_size)
        self.up = nn.Linear(hidden_size, token_dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self) -> torch.Tensor:
        """The vectors and their learned shift, `(P, D)`."""
        vectors = self.embedding.weight
        hidden = F.dropout(F.relu(self.down(self.norm(vectors))), self.dropout, self.training)
        shifted: torch.Tensor = vectors + self.up(hidden)
        return shifted
