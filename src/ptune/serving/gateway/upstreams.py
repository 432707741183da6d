"""The servers behind a gateway: which of them can be asked, and which is asked next.

Each is looked at every two seconds: `/health`, and when it comes up what it calls its model and whether it cuts text as
the gateway's tokenizer does (`/tokenize`, where it has that). One that refuses connections is down at once; one that is
slow to say that it is well is down after three looks, and what it was writing then begins again elsewhere. The one with
the fewest answers under way is asked next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from ptune.errors import printable
from ptune.serving.gateway.upstream_call import UnavailableError

_log = logging.getLogger("ptune.serve")
_EVERY_SECONDS = 2.0
_HEALTH_SECONDS = 5.0
_CONNECT_SECONDS = 5.0
_MOST_MISSED = 3
_BUSY_SECONDS = 0.1
"""Between two looks whether one is free again."""
State = Literal["unknown", "up", "down", "wrong"]


@dataclass(eq=False)
class Upstream:
    """One server."""

    url: str
    state: State = "unknown"
    model: str = ""
    """What it calls its model."""
    running: int = 0
    """Answers under way."""
    asked: int = 0
    """Requests that it has been chosen for."""
    missed: int = 0
    """Looks in a row without a word from it."""
    busy_until: float = 0.0
    """In the event loop's time."""
    calls: set[asyncio.Timeout] = field(default_factory=set)
    """Of its answers under way; each can be ended."""


@dataclass(frozen=True)
class Probe:
    """A text whose token ids an upstream must agree on."""

    text: str
    ids: Sequence[int]


class Upstreams:
    """All of them. Everything but `up` belongs to one event loop.

    Args:
        urls: Where they are, without `/v1`.
        probe: What tells a server of another model.
        model: What they call the model; None takes the first that each one lists.
        key: Their API key.
    """

    def __init__(self, urls: Sequence[str], probe: Probe, *, model: str | None = None, key: str | None = None) -> None:
        self.all = [Upstream(url.rstrip("/").removesuffix("/v1")) for url in urls]
        self.client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self._probe, self._model = probe, model
        self._changed = asyncio.Event()

    @property
    def up(self) -> int:
        """How many can be asked."""
        return sum(one.state == "up" for one in self.all)

    async def watch(self) -> None:
        """Look at them, again and again."""
        while True:
            await asyncio.gather(*(self._look(one) for one in self.all))
            await asyncio.sleep(_EVERY_SECONDS)

    async def choose(self, seconds: float) -> Upstream:
        """The one to ask next; waits while none is up or all are busy.

        Args:
            seconds: How long to wait while none is up.

        Raises:
            UnavailableError: None came up.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            up = [one for one in self.all if one.state == "up"]
            free = [one for one in up if one.busy_until <= loop.time()]
            if free:
                chosen = min(free, key=lambda one: (one.running, one.asked))
                chosen.asked += 1
                return chosen
            if not up and loop.time() >= until:
                raise UnavailableError("no upstream is up")
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_BUSY_SECONDS if up else until - loop.time()):
                    await self._changed.wait()

    def note(self, upstream: Upstream, error: UnavailableError) -> None:
        """An answer of an upstream's has failed."""
        _log.warning("an upstream did not answer", extra={"upstream": upstream.url, "reason": str(error)})
        if error.retry_seconds is not None:
            upstream.busy_until = asyncio.get_running_loop().time() + error.retry_seconds
        if error.down:
            self._set(upstream, "down", str(error))

    async def _look(self, upstream: Upstream) -> None:
        try:
            response = await self.client.get(f"{upstream.url}/health", timeout=_HEALTH_SECONDS)
            well = response.status_code == httpx.codes.OK
            upstream.missed = 0
            if not well:
                self._set(upstream, "down", f"/health says {response.status_code}")
            elif upstream.state != "up":
                await self._meet(upstream)
        except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            self._set(upstream, "down", f"{type(error).__name__}: {error}")
        except httpx.HTTPError as error:
            upstream.missed += 1
            if upstream.missed >= _MOST_MISSED or upstream.state != "up":
                self._set(upstream, "down", f"no word on /health: {type(error).__name__}")

    async def _meet(self, upstream: Upstream) -> None:
        """It is well; see what it serves."""
        listed = await self.client.get(f"{upstream.url}/v1/models", timeout=_HEALTH_SECONDS)
        try:
            names = [str(one["id"]) for one in listed.json()["data"]]
        except (ValueError, KeyError, TypeError):
            names = []
        if not names:
            self._set(upstream, "wrong", f"/v1/models lists no model (status {listed.status_code})")
            return
        if self._model is not None and self._model not in names:
            self._set(upstream, "wrong", f"it has no model {self._model!r}, but {', '.join(names[:5])}")
            return
        upstream.model = self._model or names[0]
        asked = {"model": upstream.model, "prompt": self._probe.text, "add_special_tokens": False}
        cut = await self.client.post(f"{upstream.url}/tokenize", json=asked, timeout=_HEALTH_SECONDS)
        if cut.status_code == httpx.codes.OK and _tokens(cut) != list(self._probe.ids):
            self._set(upstream, "wrong", "it serves another model: its tokenizer cuts a text in another way")
            return
        self._set(upstream, "up", f"it serves {upstream.model}")

    def _set(self, upstream: Upstream, state: State, reason: str) -> None:
        if state == upstream.state:
            return
        upstream.state = state
        say = _log.info if state == "up" else _log.warning
        say(f"an upstream is {state}", extra={"upstream": upstream.url, "reason": printable(reason)})
        if state == "up":
            self._changed.set()
            return
        now = asyncio.get_running_loop().time()
        for call in upstream.calls:
            if not call.expired():
                call.reschedule(now)


def _tokens(response: httpx.Response) -> Any:
    try:
        return response.json()["tokens"]
    except (ValueError, KeyError, TypeError):
        return None
