"""The label of a token that is not supervised, as PyTorch's cross-entropy and all of transformers have it."""

from __future__ import annotations

from typing import Final

IGNORE_INDEX: Final = -100
