"""SIGINT and SIGTERM as a wish to stop after the step at hand; a second SIGINT stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """As a context manager it takes the two signals and remembers the first one.

    Nothing is taken outside the main thread, where Python handles no signals.

    Args:
        say: Takes a line for people when the first signal comes.
        doing: What happens then, in words.
    """

    def __init__(self, say: Callable[[str], None], doing: str = "stopping after this step and saving it") -> None:
        self.say, self.doing = say, doing
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal_number = number
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        self.say(f"{signal.Signals(number).name}: {self.doing}{again}")
