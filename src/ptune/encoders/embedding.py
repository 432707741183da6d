"""Prompt tuning: the trainable table is the prompt.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning". PEFT's counterpart is `PromptEmbedding`.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from ptune.encoders.base import PromptEncoder


class EmbeddingEncoder(PromptEncoder):
    """`P × D` trainable numbers and nothing else."""

    @classmethod
    def holding(cls, vectors: torch.Tensor) -> Self:
        """One that gives these vectors `(P, D)`, in their dtype, and does not train. Nothing is drawn at random."""
        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        encoder.num_virtual_tokens, encoder.token_dim = vectors.shape
        encoder.embedding = nn.Embedding.from_pretrained(vectors)  # type: ignore[no-untyped-call]  # PyTorch's own
        return encoder

    def forward(self) -> torch.Tensor:
        """The table itself, `(P, D)`."""
        return self.embedding.weight
