"""Prompt tuning: the trainable table is the prompt.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning". PEFT's counterpart is `PromptEmbedding`.
"""

from __future__ import annotations

import torch

from ptune.encoders.base import PromptEncoder


class EmbeddingEncoder(PromptEncoder):
    """`P × D` trainable numbers and nothing else."""

    def forward(self) -> torch.Tensor:
        """The table itself, `(P, D)`."""
        return self.embedding.weight
