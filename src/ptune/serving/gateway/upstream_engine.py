"""The `Engine` of a gateway: every job is answered by one of several servers of the frozen model.

A request that an upstream did not take, or lost on the way, is asked of another: while none is up for some seconds, and
until the request's time is over. One that was lost several times is given up: it may be what brings servers down.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any

from ptune.errors import ModelError
from ptune.serving.engine.engine import Bounds, BusyError, StoppedError, UnansweredError, Watch
from ptune.serving.engine.requested import Failed, Job
from ptune.serving.gateway.relayed_answer import AnswerLostError, RelayedAnswer
from ptune.serving.gateway.upstream_call import RefusedError, UnavailableError, body_of, chunks
from ptune.serving.gateway.upstream_text import UpstreamText
from ptune.serving.gateway.upstreams import Upstream, Upstreams

_NONE_UP_SECONDS = 5.0
_MOST_LOST = 2
"""Times that an upstream may lose a request before it is given up."""


class UpstreamEngine:
    """See `Engine`; one thread with an event loop of its own.

    Args:
        upstreams: The servers.
        text: What they are sent of a prompt and a text.
        bounds: How much is under way and waits.
        watch: Told what is done.
    """

    cache_bytes = 0

    def __init__(self, upstreams: Upstreams, text: UpstreamText, bounds: Bounds, watch: Watch) -> None:
        self.bounds = bounds
        self.upstreams = upstreams
        self._text, self._watch = text, watch
        self._jobs: dict[Job, Future[None]] = {}
        self._running = 0
        self._changed = threading.Condition()
        self._draining = False
        self._loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore(bounds.rows)
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="ptune-gateway", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a request on; its events follow."""
        with self._changed:
            if self._draining or not self._thread.is_alive():
                raise StoppedError("the server is stopping.")
            if len(self._jobs) >= self.bounds.rows + self.bounds.waiting:
                raise BusyError(f"{self.waiting} requests are waiting, as many as may.")
            self._jobs[job] = future = asyncio.run_coroutine_threadsafe(self._answer(job), self._loop)
            future.add_done_callback(lambda _future: self._forget(job))

    def cancel(self, job: Job) -> None:
        """Nobody waits for a request any more: its upstream is told by the end of the connection."""
        job.cancelled = True
        future = self._jobs.get(job)
        if future is not None:
            future.cancel()

    def drain(self) -> None:
        """Take nothing on any more."""
        self._draining = True

    def stop(self, *, seconds: float) -> bool:
        """Take nothing on any more, and end when everything is answered, or after a time."""
        self.drain()
        with self._changed:
            finished = self._changed.wait_for(lambda: not self._jobs, seconds)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)
        return finished

    @property
    def draining(self) -> bool:
        """Whether it takes nothing on any more."""
        return self._draining

    @property
    def alive(self) -> bool:
        """Whether an upstream can be asked."""
        return self._thread.is_alive() and self.upstreams.up > 0

    @property
    def running(self) -> int:
        """Requests under way."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests that wait to be sent."""
        return max(len(self._jobs) - self._running, 0)

    def _forget(self, job: Job) -> None:
        with self._changed:
            self._jobs.pop(job, None)
            self._changed.notify_all()

    # ---- the event loop ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with self.upstreams.client:
            watching = asyncio.create_task(self.upstreams.watch())
            over = asyncio.create_task(self._over.wait())
            await asyncio.wait({watching, over}, return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
            for job, future in list(self._jobs.items()):
                self._fail(job, StoppedError("the server has stopped before the answer was complete."))
                future.cancel()

    async def _answer(self, job: Job) -> None:
        try:
            text = await asyncio.to_thread(self._text.of, job)
            async with self._places:
                self._running += 1
                try:
                    written = await self._ask_around(job, text)
                finally:
                    self._running -= 1
            self._watch("read_tokens", len(job.ids))
            self._watch("written_tokens", written)
        except RefusedError as error:
            self._fail(job, ModelError(f"the upstream cannot use the request: {error}"))
        except (UnavailableError, AnswerLostError) as error:
            self._fail(job, UnansweredError(str(error)))
        except Exception as error:  # noqa: BLE001  # whatever a request did, the others go on
            self._fail(job, error)

    async def _ask_around(self, job: Job, text: dict[str, Any]) -> int:
        """Ask one upstream after another; returns how many tokens were written."""
        answer, lost = RelayedAnswer(job), 0
        while True:
            upstream = await self.upstreams.choose(_NONE_UP_SECONDS)
            answer.begin()
            try:
                return await self._ask(upstream, job, text, answer)
            except UnavailableError as error:
                self.upstreams.note(upstream, error)
                lost += error.reached
                if lost > _MOST_LOST:
                    raise

    async def _ask(self, upstream: Upstream, job: Job, text: dict[str, Any], answer: RelayedAnswer) -> int:
        body = body_of(job, text, upstream.model)
        upstream.running += 1
        call = asyncio.timeout(None)
        upstream.calls.add(call)
        try:
            async with call, aclosing(chunks(self.upstreams.client, upstream.url, body)) as found:
                async for chunk in found:
                    answer.take(chunk)
        except TimeoutError as error:
            raise UnavailableError("it went down while it answered") from error
        finally:
            upstream.running -= 1
            upstream.calls.discard(call)
        return answer.complete()

    def _fail(self, job: Job, error: BaseException) -> None:
        if not job.cancelled:
            job.emit(Failed(error))
