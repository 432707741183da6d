"""Answers to no text at all: the prompt alone begins them.

`generate` wants something to begin with. So the last virtual token of each row is its text, given as an embedding,
behind a prompt of the others: to a causal model that is the same sequence.

Shapes: `B` rows, `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ptune.batch.row_prompts import RowPrompts, no_embeddings
from ptune.encoders import PromptEncoder, build_encoder
from ptune.errors import ModelError
from ptune.prefix.across_calls import PrefixCache


def last_token_apart(prompts: RowPrompts) -> tuple[RowPrompts, torch.Tensor]:
    """The prompts without their last virtual tokens, and these, `(B, 1, D)`.

    Raises:
        ModelError: A row has no prompt either, or one of keys and values, or the model makes more of token ids than
            their embeddings.
        ConfigError: A prompt has virtual tokens inside the text.
    """
    if prompts.in_text:
        raise no_embeddings(prompts)
    if None in prompts.names or prompts.deep or prompts.filler_id is not None:
        raise ModelError("generate needs at least one token of text here.", hint="Pass input_ids.")
    begun = {name: _without_last(vectors) for name, vectors in prompts.vectors.items()}
    names = [name if name is not None and begun[name] is not None else None for name in prompts.names]
    last = torch.stack([prompts.vectors[name][-1:] for name in prompts.names if name is not None])
    rest = {name: encoder for name, encoder in begun.items() if encoder is not None}
    return replace(prompts, names=names, encoders=rest, kept=PrefixCache()), last


def _without_last(vectors: torch.Tensor) -> PromptEncoder | None:
    """A prompt of all but the last of `(P, D)` vectors; None where there is one alone."""
    count, dim = len(vectors) - 1, vectors.shape[1]
    if not count:
        return None
    encoder = build_encoder("embedding", num_virtual_tokens=count, token_dim=dim)
    encoder.to(vectors.device, vectors.dtype).requires_grad_(False)
    encoder.embedding.weight.copy_(vectors[:-1])
    return encoder.eval()
