"""What every prompt encoder has in common: a trainable table of `P` vectors and an output of shape `(P, D)`.

Shapes: `P` virtual tokens, `D` token dimension of the frozen model, `H` hidden size of the encoder.

The output depends on no input, so an encoder is called without arguments and gives one `(P, D)` tensor, not one copy
a row: a soft prompt is the same for every row of a batch. Parameter names follow PEFT's `PromptEncoder`
(`embedding`, `mlp_head`, `lstm_head`), so weights move between the two without renaming.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import override


class PromptEncoder(nn.Module):
    """Base of the prompt encoders.

    Args:
        num_virtual_tokens: `P`, rows of the table.
        token_dim: `D`, size of a token embedding of the frozen model.
        table: Rows and columns of the table, where these are others than `P` and `D`.
    """

    dropout = 0.0
    """Probability of dropping a hidden unit in training; an encoder that has it sets it."""

    def __init__(self, *, num_virtual_tokens: int, token_dim: int, table: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.num_virtual_tokens = num_virtual_tokens
        self.token_dim = token_dim
        self.embedding = nn.Embedding(*(table or (num_virtual_tokens, token_dim)))
        self.head: nn.ModuleDict | None = None

    def put_head(self, head: nn.ModuleDict | None) -> None:
        """Let the modules that read what the model makes of a text (a classifier) train and be saved with the prompt.

        Args:
            head: By their names in the frozen model; None where its own are used.
        """
        self.head = None if head is None else head.to(self.embedding.weight.device, torch.float32)

    def forward(self) -> torch.Tensor:
        """The virtual-token embeddings, `(P, D)`."""
        raise NotImplementedError

    @override
    def __call__(self) -> Any:
        """`forward`, with the module's hooks, in the encoder's own precision: autocast is for the frozen model."""
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            return super().__call__()

    @torch.no_grad()
    def baked(self) -> torch.Tensor:
        """The `(P, D)` vectors as they are saved and answer: without dropout, without gradients."""
        was_training = self.training
        self.eval()
        vectors = self()
        self.train(was_training)
        assert isinstance(vectors, torch.Tensor)
        return vectors.detach()

    def output_layer(self) -> nn.Linear | None:
        """The last linear layer, which sets where the output starts; None where the output starts at the table."""
        return None
