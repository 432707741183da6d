"""P-tuning with an MLP (Liu et al. 2021, "GPT Understands, Too"): a table run through linear layers with ReLU between.

With `num_layers=2` these are PEFT's three linear layers, `D → H → H → D`, with the same parameter names. PEFT ignores
`encoder_num_layers` and `encoder_dropout` for the MLP; here both are honoured.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from ptune.encoders.base import PromptEncoder


class MLPEncoder(PromptEncoder):
    """A table and `num_layers` hidden layers with ReLU, then a linear output layer.

    Args:
        num_virtual_tokens: `P`.
        token_dim: `D`.
        hidden_size: `H`, width of the hidden layers.
        num_layers: Hidden layers; one linear layer more than this in all.
        dropout: Probability of dropping a hidden unit in training, after each ReLU.
    """

    def __init__(
        self, *, num_virtual_tokens: int, token_dim: int, hidden_size: int, num_layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__(num_virtual_tokens=num_virtual_tokens, token_dim=token_dim)
        self.dropout = dropout
        sizes = [token_dim, *[hidden_size] * num_layers]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(sizes):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        self.mlp_head = nn.Sequential(*layers, nn.Linear(hidden_size, token_dim))

    def forward(self) -> torch.Tensor:
        """The encoded table, `(P, D)`."""
        hidden = self.embedding.weight
        for layer in self.mlp_head:
            hidden = layer(hidden)
            if isinstance(layer, nn.ReLU):
                hidden = F.dropout(hidden, self.dropout, self.training)
        return hidden

    def output_layer(self) -> nn.Linear:
        """The last of the linear layers."""
        last = self.mlp_head[-1]
        assert isinstance(last, nn.Linear)
        return last
