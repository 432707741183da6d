"""Prompt and token embeddings concatenated, for generation without a prefix.

This is the textbook form of prompt tuning (Lester et al. 2021): every row carries its own copy of the prompt through
the whole model. ptune takes it where the prefix path cannot be taken: state-space models, and rows of different
lengths that reach beyond a sliding window (padding between prefix and text would use up the window).

The prompt stands directly before the first real token of its row: `[padding | prompt | text]`. A recurrent model has
then no gap in the middle, and positions count on without one. `generate` reads the last column of every row, which is
why the padding stands on the left; `padded_forward` has it on the right.

Shapes: `B` rows, `T` text tokens, `P` longest prompt of the batch, `D` token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


def first_tokens(mask: torch.Tensor) -> torch.Tensor:
    """`(B,)`: the column of the first real token of each row of a `(B, T)` mask."""
    return mask.to(torch.int8).argmax(dim=1)


@dataclass(frozen=True)
class Concatenated:
    """A batch with the prompts in place."""

    embeds: torch.Tensor
    """`(B, P + T, D)`."""
    mask: torch.Tensor
    """`(B, P + T)`."""
    columns: torch.Tensor
    """`(B, T)`: where each text token stands now."""


def concatenate(
    prompts: Sequence[torch.Tensor | None], text_embeds: torch.Tensor, text_mask: torch.Tensor
) -> Concatenated:
    """Put each row's prompt directly before its first real token.

    Args:
        prompts: For each row its `(P_row, D)` vectors, or None for no prompt.
        text_embeds: `(B, T, D)`, the model's own embeddings of the text.
        text_mask: `(B, T)`, 1 at real tokens.
    """
    rows, length, _ = text_embeds.shape
    device = text_embeds.device
    sizes = [0 if prompt is None else prompt.shape[0] for prompt in prompts]
    width = max(sizes)
    starts = first_tokens(text_mask).tolist()
    embeds = []
    for row, (prompt, size, start) in enumerate(zip(prompts, sizes, starts, strict=True)):
        text = text_embeds[row]
        filler = text.new_zeros(width - size, text.shape[1])
        parts = [filler, text[:start], *([] if prompt is None else [prompt.to(text.dtype)]), text[start:]]
        embeds.append(torch.cat(parts))
    size_of, start_of = torch.tensor(sizes, device=device), torch.tensor(starts, device=device)
    text_column = torch.arange(length, device=device).expand(rows, -1)
    behind = text_column >= start_of[:, None]
    columns = text_column + (width - size_of)[:, None] + behind * size_of[:, None]
    mask = torch.zeros(rows, width + length, dtype=torch.long, device=device)
    mask.scatter_(1, columns, text_mask.long())
    column = torch.arange(width + length, device=device)
    prompt_start = (width - size_of + start_of)[:, None]
    mask |= ((column >= prompt_start) & (column < prompt_start + size_of[:, None])).long()
    return Concatenated(embeds=torch.stack(embeds), mask=mask, columns=columns)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position ids of a padded batch: 0 at the first real token of a row, counting over real tokens, 0 at padding."""
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0)
