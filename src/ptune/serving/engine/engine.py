"""What the web asks of an engine: the scheduler of a model in this process, or the gateway to models elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ptune.serving.engine.requested import Job

Watch = Callable[[str, float], None]
"""(what was done, how much of it): `step_seconds`, `step_rows`, `read_seconds`, `read_tokens`, `written_tokens`."""


class StoppedError(Exception):
    """The engine takes no requests any more, or has given one up to stop."""


class BusyError(Exception):
    """As many requests wait as may."""


class UnansweredError(Exception):
    """Whoever was to answer is away, or was lost on the way."""


class CancelledRequestError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much the engine takes on."""

    rows: int = 32
    """Answers that are written at the same time."""
    waiting: int = 256
    """Requests that wait to be begun."""
    cache_positions: int | None = None
    """Positions that the keys and values of the batch may take, rows × longest; None for no bound."""


class Engine(Protocol):
    """Answers jobs; every method may be called from any thread."""

    bounds: Bounds

    def start(self) -> None:
        """Begin to answer."""

    def submit(self, job: Job) -> None:
        """Take a request on; its events follow.

        Raises:
            BusyError: As many wait as may.
            StoppedError: The engine is stopping, or has stopped.
            ModelError: It asks for more than there may ever be room for.
        """

    def cancel(self, job: Job) -> None:
        """Nobody waits for a request any more: nothing more is said of it."""

    def drain(self) -> None:
        """Take nothing on any more."""

    def stop(self, *, seconds: float) -> bool:
        """Take nothing on any more, and end when everything is answered, or after a time.

        Args:
            seconds: How long what runs and waits may take; then it fails.

        Returns:
            Whether everything was answered.
        """

    @property
    def draining(self) -> bool:
        """Whether it takes nothing on any more."""

    @property
    def alive(self) -> bool:
        """Whether it can answer."""

    @property
    def running(self) -> int:
        """Answers under way."""

    @property
    def waiting(self) -> int:
        """Requests that wait to be begun."""

    @property
    def cache_bytes(self) -> int:
        """Memory of the running batch's keys and values."""
