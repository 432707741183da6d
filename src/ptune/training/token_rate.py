"""Text tokens of a training run, and how many a second; evaluations are not training time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class TokenRate:
    """Counts the text tokens of this process's training batches; virtual tokens and padding are not counted."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, seen: int) -> None:
        """Start from so many tokens, those of the run that goes on."""
        self._seen: int | torch.Tensor = seen
        self._since = (time.perf_counter(), seen)

    def add(self, tokens: int | torch.Tensor) -> None:
        """Count a batch in; a number that is on a device stays there until somebody asks for the sum."""
        self._seen = self._seen + tokens

    @property
    def seen(self) -> int:
        """Tokens so far."""
        self._seen = int(self._seen)
        return self._seen

    def per_second(self) -> float:
        """Tokens a second since the last call."""
        (then, before), now = self._since, time.perf_counter()
        self._since = (now, self.seen)
        return (self.seen - before) / max(now - then, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside the `with` does not count."""
        start = time.perf_counter()
        try:
            yield
        finally:
            then, before = self._since
            self._since = (then + time.perf_counter() - start, before)
