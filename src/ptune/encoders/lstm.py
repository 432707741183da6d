"""P-tuning with an LSTM (Liu et al. 2021, "GPT Understands, Too"): a table, a bidirectional LSTM and a two-layer MLP.

Layers, sizes and parameter names are those of PEFT's `PromptEncoder` with `LSTM`: `D → 2H` by the LSTM, then
`2H → 2H → D` by the MLP. As in PyTorch, dropout acts between LSTM layers, so with one layer there is none.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from ptune.encoders.base import PromptEncoder


class LSTMEncoder(PromptEncoder):
    """A table, a bidirectional LSTM over its `P` rows, and a two-layer MLP.

    Args:
        num_virtual_tokens: `P`, the length of the sequence the LSTM reads.
        token_dim: `D`.
        hidden_size: `H`, width of each direction of the LSTM.
        num_layers: Stacked LSTM layers.
        dropout: Dropout between LSTM layers in training; without effect (and warned about) with one layer.
    """

    def __init__(
        self, *, num_virtual_tokens: int, token_dim: int, hidden_size: int, num_layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__(num_virtual_tokens=num_virtual_tokens, token_dim=token_dim)
        if dropout and num_layers == 1:
            warnings.warn(
                f"encoder_dropout={dropout} has no effect on an LSTM of one layer: it acts between layers.",
                stacklevel=2,
            )
        self.dropout = dropout if num_layers > 1 else 0.0
        self.lstm_head = nn.LSTM(
            input_size=token_dim,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=self.dropout,
            bidirectional=True,
            batch_first=True,
        )
        self.mlp_head = nn.Sequential(
            nn.Linear(2 * hidden_size, 2 * hidden_size), nn.ReLU(), nn.Linear(2 * hidden_size, token_dim)
        )

    def forward(self) -> torch.Tensor:
        """The encoded table, `(P, D)`."""
        states, _ = self.lstm_head(self.embedding.weight)
        encoded: torch.Tensor = self.mlp_head(states)
        return encoded

    def output_layer(self) -> nn.Linear:
        """The second layer of the MLP."""
        last = self.mlp_head[-1]
        assert isinstance(last, nn.Linear)
        return last
