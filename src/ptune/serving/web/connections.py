"""Connections that cost nothing for long: those without a request are closed after a time, and there are only so many.

uvicorn bounds the time between two requests of a connection, but not the time to the first one, nor that of a head that
comes letter by letter. `limit_concurrency` of uvicorn answers 503 to everybody while idle connections hold all places;
here the one that has been idle longest makes place instead. A client that does not read what it is sent is cut off too:
what is written for it would wait for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedConnection(H11Protocol):
    """One connection; `bounded` makes the class with its bounds."""

    most: int
    seconds: float
    opened: set[BoundedConnection]
    """Those of the server that are not closed or closing."""
    waiting: dict[BoundedConnection, None]
    """Those of them that may be without a request, the one idle longest first."""
    _idle_since: float
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self.opened.add(self)
        self._waits()
        self._look_again(self.seconds)
        if len(self.opened) > self.most:
            self._idle_longest().close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._forget()
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """A request has been answered."""
        if self in self.opened:
            self._waits()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """More waits to be read than should."""
        self._unread = self.loop.call_later(self.seconds, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has read on."""
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    @property
    def idle(self) -> bool:
        """Whether there is no request under way."""
        return self.cycle is None or self.cycle.response_complete

    def close(self) -> None:
        """End it; what has been written to it is still sent."""
        self._forget()
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(self.seconds, self.transport.abort)  # if it is not read

    def _waits(self) -> None:
        self._idle_since = self.loop.time()
        self.waiting.pop(self, None)
        self.waiting[self] = None

    def _forget(self) -> None:
        self.opened.discard(self)
        self.waiting.pop(self, None)

    def _idle_longest(self) -> BoundedConnection:
        """The connection that makes place; this one where all others are at work."""
        while self.waiting:
            first = next(iter(self.waiting))
            if first.idle:
                return first
            del self.waiting[first]  # it comes again when its request is answered
        return self

    def _look_again(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        waited = self.loop.time() - self._idle_since
        if not self.idle:
            self._look_again(self.seconds)
        elif waited >= self.seconds:
            self.close()
        else:
            self._look_again(self.seconds - waited)


def bounded(most: int, seconds: float) -> type[BoundedConnection]:
    """The class of a server's connections.

    Args:
        most: So many at a time.
        seconds: How long one may be without a request.
    """
    return type("Connection", (BoundedConnection,), {"most": most, "seconds": seconds, "opened": set(), "waiting": {}})
