"""Prefix tuning with its reparameterization: a small table, and an MLP that makes keys and values of it.

Li & Liang 2021, "Prefix-Tuning", found the table alone hard to train at high rates. Layers, sizes and parameter names
are those of PEFT's `PrefixEncoder` with `prefix_projection`: `H E → M → 2 L H E`, with a tanh between.

Shapes: `P` virtual tokens, `L` layers, `H` key/value heads, `E` head dimension, `M` hidden size of the encoder.
"""

from __future__ import annotations

import torch
from torch import nn

from ptune.encoders.deep import DeepEncoder
from ptune.encoders.initialise import solve_output


class PrefixMLPEncoder(DeepEncoder):
    """A table of `P` rows of `H E`, a linear layer, a tanh, and a linear layer to keys and values of every layer.

    Args:
        num_virtual_tokens: `P`.
        token_dim: `H E`.
        layers: `L`.
        heads: `H`.
        hidden_size: `M`.
    """

    def __init__(self, *, num_virtual_tokens: int, token_dim: int, layers: int, heads: int, hidden_size: int) -> None:
        super().__init__(num_virtual_tokens=num_virtual_tokens, token_dim=token_dim, layers=layers, heads=heads)
        self.transform = nn.Sequential(
            nn.Linear(token_dim, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 2 * layers * token_dim)
        )

    def forward(self) -> torch.Tensor:
        """The projected table, `(P, 2 L H E)`."""
        rows: torch.Tensor = self.transform(self.embedding.weight)
        return rows

    def output_layer(self) -> nn.Linear:
        """The second linear layer."""
        last = self.transform[-1]
        assert isinstance(last, nn.Linear)
        return last

    @torch.no_grad()
    def start_at(self, rows: torch.Tensor) -> None:
        """Solve the last layer for the rows; see `DeepEncoder`."""
        solve_output(self, self.output_layer(), rows)

    @torch.no_grad()
    def start_at_random(self, deviations: torch.Tensor) -> None:
        """Scale the last layer, part by part; see `DeepEncoder`."""
        output, parts = self.output_layer(), len(deviations)
        own = self.baked().view(self.num_virtual_tokens, parts, -1).transpose(0, 1).flatten(1).std(dim=1)
        ratios = (deviations.to(own.device) / own.clamp_min(1e-8)).repeat_interleave(self.token_dim)
        output.weight.mul_(ratios[:, None])
        output.bias.mul_(ratios)

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """A last layer of zeros."""
        nn.init.zeros_(self.output_layer().weight)
        nn.init.zeros_(self.output_layer().bias)
