"""How likely is this token at that place of a row? Many such questions at once, and the answers to them.

A loss, a label's likelihood and whether greedy decoding would have written a text are all made of these.

Shapes: `B` rows, `M` questions, `S` places that are asked about, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

CHUNK_BYTES = 64 * 2**20
"""Size of the logits, in float32, that exist at a time."""


@dataclass(frozen=True)
class TokenQueries:
    """`M` questions."""

    rows: torch.Tensor
    """`(M,)`, the row."""
    places: torch.Tensor
    """`(M,)`, the place in it, from 0; its length asks for the token behind the row."""
    tokens: torch.Tensor
    """`(M,)`, token ids."""

    @classmethod
    def of(cls, triples: Sequence[tuple[int, int, int]]) -> TokenQueries:
        """From (row, place, token), each."""
        return cls(*torch.tensor(triples, dtype=torch.long).reshape(-1, 3).unbind(1))

    def to(self, device: torch.device) -> TokenQueries:
        """The same on a device."""
        return TokenQueries(self.rows.to(device), self.places.to(device), self.tokens.to(device))


@dataclass(frozen=True)
class TokenAnswers:
    """`M` answers, on the CPU."""

    log_probs: torch.Tensor
    """`(M,)`, natural logarithms in float32; NaN where nothing predicts the token, the first one behind no prompt."""
    likeliest: torch.Tensor
    """`(M,)`, the token that is likeliest there; -1 where nothing predicts one."""

    @classmethod
    def unknown(cls, count: int) -> TokenAnswers:
        """Answers of which none is known yet."""
        return cls(torch.full((count,), float("nan")), torch.full((count,), -1))

    def put(self, asked: torch.Tensor, log_probs: torch.Tensor, likeliest: torch.Tensor) -> None:
        """Fill in the answers to the questions `asked`, by number."""
        at = asked.to(self.log_probs.device)
        self.log_probs[at] = log_probs.to(self.log_probs)
        self.likeliest[at] = likeliest.to(self.likeliest)


def look_up(
    logits: torch.Tensor, tokens: torch.Tensor, which: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each token, and the likeliest one in its place.

    Args:
        logits: `(S, V)`.
        tokens: `(M,)`.
        which: `(M,)`, the row of the logits that each question is about; one after another by default.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    at = torch.arange(len(tokens), device=tokens.device) if which is None else which
    return wide[at, tokens] - wide.logsumexp(dim=1)[at], wide.argmax(dim=1)[at]


def look_up_in_chunks(
    logits_at: Callable[[torch.Tensor], torch.Tensor], positions: torch.Tensor, tokens: torch.Tensor, *, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`look_up`, each position's logits computed once however many tokens are asked for there.

    Args:
        logits_at: Positions `(c,)` → logits `(c, V)`.
        positions: `(M,)`.
        tokens: `(M,)`.
        chunk: Positions whose logits exist at a time.
    """
    places, which = torch.unique(positions, return_inverse=True)
    log_probs, likeliest = torch.empty(len(tokens), device=tokens.device), torch.empty_like(tokens)
    for start in range(0, len(places), chunk):
        mine = ((which >= start) & (which < start + chunk)).nonzero().squeeze(1)
        found, best = look_up(logits_at(places[start : start + chunk]), tokens[mine], which[mine] - start)
        log_probs[mine], likeliest[mine] = found.to(log_probs), best
    return log_probs, likeliest
