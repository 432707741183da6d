"""Virtual tokens inside the text: their vectors in place of token embeddings, and whether a row holds those it must.

Virtual token `k` of a row's prompt goes by the id `-1 - k` (see `ptune.data.blocks`). Of a prompt the first virtual
tokens stand before the text and are no part of a row; the rest stand inside it, each once and in order.

Shapes: `B` rows, `N` tokens of all rows, `T` of padded ones, `P` virtual tokens of a prompt, `A` of them before the
text, `K` of all prompts together, `D` token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ptune.errors import PromptError


@dataclass(frozen=True)
class Inside:
    """What stands for the virtual tokens inside the rows of a batch."""

    vectors: torch.Tensor
    """`(K, D)`."""
    starts: tuple[int, ...]
    """For each of the `B` rows where the vectors of its prompt begin among the `K`; 0 where nothing stands in it."""

    def placed(self, embeds: torch.Tensor, ids: torch.Tensor, lengths: Sequence[int] = ()) -> torch.Tensor:
        """The embeddings, with the vectors of virtual tokens in their places. Nobody waits for a device.

        Args:
            embeds: `(N, D)` or `(B, T, D)`, anything at virtual tokens.
            ids: `(N,)`, of rows one after another, or `(B, T)`.
            lengths: Tokens of each of the `B` rows that are one after another.
        """
        at = (-1 - ids).clamp_min(0)
        if any(self.starts):
            starts = torch.tensor(self.starts)
            starts = starts[:, None] if ids.dim() > 1 else starts.repeat_interleave(torch.tensor(lengths))
            at = at + starts.to(ids.device, non_blocking=True)
        # In float32 at least: autograd sums what the rows send back.
        table = self.vectors.to(torch.promote_types(self.vectors.dtype, torch.float32))
        found = F.embedding(at.clamp_max(len(table) - 1), table).to(embeds.dtype)
        return torch.where((ids < 0).unsqueeze(-1), found, embeds)


def real_ids(ids: torch.Tensor, filler: int) -> torch.Tensor:
    """The ids, a filler in the place of virtual tokens."""
    return ids.masked_fill(ids < 0, filler)


def check_inside(
    ids: torch.Tensor, lengths: Sequence[int], names: Sequence[str | None], spans: Sequence[tuple[int, int]]
) -> None:
    """Refuse rows that do not hold the virtual tokens which stand inside the text. Looks at the tokens.

    Args:
        ids: `(N,)`, of rows one after another.
        lengths: Tokens of each of the `B` rows.
        names: The prompt of each row.
        spans: Of each row's prompt how many virtual tokens stand before the text, and how many there are: `(A, P)`.

    Raises:
        PromptError: A row has others.
    """
    wanted = [-1 - torch.arange(*span, device=ids.device) for span in spans]
    if torch.equal(ids[ids < 0], torch.cat(wanted)):
        return
    for row, (part, want) in enumerate(zip(torch.split(ids, list(lengths)), wanted, strict=True)):
        found = part[part < 0]
        if torch.equal(found, want):
            continue
        numbers = (-1 - found).tolist()
        raise PromptError(
            f"row {row} holds {len(found)} virtual tokens inside the text ({numbers[:8]}); of the prompt "
            f"{names[row]!r} there are {len(want)} ({(-1 - want).tolist()[:8]}).",
            hint="Write the text with the template that the prompt was trained with, as encode_prompt does.",
        )
