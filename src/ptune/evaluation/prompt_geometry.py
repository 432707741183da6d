"""Where virtual tokens lie: their lengths, the angles between them, and the words of the vocabulary that are nearest.

Shapes: `P` virtual tokens, `D` token dimension, `V` vocabulary, `K` nearest tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

COSINE, L2 = "cosine", "l2"
METRICS = (COSINE, L2)


@dataclass(frozen=True)
class Geometry:
    """Virtual tokens among themselves."""

    norms: torch.Tensor
    """`(P,)`: Euclidean lengths."""
    similarity: torch.Tensor
    """`(P, P)`: cosines."""
    effective_rank: float
    """From 1, all on a line, to `min(P, D)`, all at right angles and equally long."""

    @property
    def between(self) -> torch.Tensor:
        """The cosines of all pairs, each once; empty with one token."""
        rows, columns = self._pairs()
        return self.similarity[rows, columns]

    @property
    def closest_pair(self) -> tuple[int, int, float] | None:
        """The two tokens with the greatest cosine; None with one token."""
        if len(self.norms) < 2:
            return None
        rows, columns = self._pairs()
        at = int(self.between.argmax())
        return int(rows[at]), int(columns[at]), float(self.between[at])

    def _pairs(self) -> tuple[torch.Tensor, ...]:
        return torch.combinations(torch.arange(len(self.norms))).unbind(1)


def geometry(vectors: torch.Tensor) -> Geometry:
    """Lengths, cosines and effective rank of virtual tokens `(P, D)`.

    The effective rank is the exponential of the entropy of the normalized singular values (Roy & Vetterli, "The
    effective rank", EUSIPCO 2007).
    """
    exact = vectors.double()
    unit = F.normalize(exact, dim=1)
    singular = torch.linalg.svdvals(exact)
    share = singular / singular.sum().clamp_min(1e-300)
    entropy = -torch.special.xlogy(share, share).sum()
    return Geometry(exact.norm(dim=1), (unit @ unit.T).clamp(-1, 1), float(entropy.exp()))


@dataclass(frozen=True)
class Nearest:
    """The vocabulary around virtual tokens."""

    ids: torch.Tensor
    """`(P, K)`, the nearest first."""
    scores: torch.Tensor
    """`(P, K)`: cosines, or distances."""
    norms: torch.Tensor
    """`(V,)`: lengths of the vocabulary's embeddings."""


def nearest_tokens(
    vectors: torch.Tensor, pieces: Iterable[tuple[int, torch.Tensor]], count: int, metric: str = COSINE
) -> Nearest:
    """The `count` tokens of the vocabulary nearest to each virtual token.

    Args:
        vectors: `(P, D)`.
        pieces: (first id, `(C, D)`) of the embedding table, piece by piece.
        count: `K`; at most `V` come back.
        metric: cosine (the smallest angle; tokens whose embedding is zero have none and come last), or l2 (the
            smallest distance).
    """
    asked = vectors.float()
    unit = F.normalize(asked, dim=1)
    kept: tuple[torch.Tensor, torch.Tensor] | None = None
    norms = []
    for first, piece in pieces:
        lengths = piece.norm(dim=1)
        norms.append(lengths)
        if metric == COSINE:
            closeness = (unit @ F.normalize(piece, dim=1).T).masked_fill(lengths == 0, -2.0)
        else:
            closeness = -torch.cdist(asked, piece)
        ids = torch.arange(first, first + len(piece)).expand(len(asked), -1)
        if kept is not None:
            closeness, ids = torch.cat((kept[0], closeness), dim=1), torch.cat((kept[1], ids), dim=1)
        best = closeness.topk(min(count, closeness.shape[1]), dim=1)
        kept = best.values, ids.gather(1, best.indices)
    assert kept is not None
    return Nearest(kept[1], kept[0] if metric == COSINE else -kept[0], torch.cat(norms))


def percentiles(values: torch.Tensor, shares: tuple[float, ...] = (0.05, 0.5, 0.95)) -> tuple[float, ...]:
    """Values of which these shares are smaller, without interpolation; `torch.quantile` takes 16 million at most."""
    ordered = values.double().flatten().sort().values
    return tuple(float(ordered[round(share * (len(ordered) - 1))]) for share in shares)
