"""How close a held-out message comes to the training messages.

Two messages are compared as sets of words (Jaccard: shared words over all words), order numbers left out, since those
always differ and would make copies look new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ORDER = re.compile(r"[A-Z]-\d{4}")
_WORD = re.compile(r"[a-z']+(?:-[a-z]+)*|\d+")


def words(message: str) -> frozenset[str]:
    """The lower-case words of `message`, without order numbers."""
    return frozenset(_WORD.findall(_ORDER.sub(" ", message).lower()))


def similarity(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words, from 0 to 1."""
    union = len(left | right)
    return len(left & right) / union if union else 1.0


def nearest_similarity(message: frozenset[str], others: Sequence[frozenset[str]]) -> float:
    """The similarity of `message` to the most similar of `others`; 0 when there are none."""
    return max((similarity(message, other) for other in others), default=0.0)
