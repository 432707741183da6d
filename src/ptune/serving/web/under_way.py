"""The answers to one HTTP request, from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ptune.serving.engine.engine import Engine
from ptune.serving.engine.requested import Event, Failed, Job, Piece
from ptune.serving.web.api_errors import ApiError, as_api_error
from ptune.serving.web.measurements import Measurements


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One text of a request, ready for the engine; the fields are those of `Job`."""

    ids: Sequence[int]
    fields: dict[str, Any]


class AnswersUnderWay:
    """Texts handed to the engine, and what comes back.

    Args:
        engine: Answers them.
        asked: The texts.
        choices: Answers to each.
        seconds: How long all of it may take.
        measured: Where the time to the first token goes.
    """

    def __init__(
        self, engine: Engine, asked: Sequence[Asked], choices: int, seconds: float, measured: Measurements
    ) -> None:
        self._engine, self._seconds, self._measured = engine, seconds, measured
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._began = time.monotonic()
        self._ends_at = self._loop.time() + seconds
        self.count = len(asked) * choices
        """Answers in all."""
        self.prompt_tokens = sum(len(one.ids) for one in asked)
        self.completion_tokens = 0
        self._jobs: list[Job] = []
        try:
            for at, one in enumerate(asked):
                job = Job(ids=one.ids, choices=choices, emit=self._emitter(at * choices), **one.fields)
                engine.submit(job)
                self._jobs.append(job)
        except Exception as error:
            self.cancel()
            raise as_api_error(error, retry_seconds=measured.retry_seconds(engine)) from error

    def _emitter(self, first: int) -> Any:
        def emit(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (first, event))

        return emit

    def cancel(self) -> None:
        """Nobody waits for the rest."""
        for job in self._jobs:
            self._engine.cancel(job)
        self._jobs = []

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The number of an answer and a piece of it, until all are complete.

        Raises:
            ApiError: The engine has failed, or the time is over.
        """
        open_answers, first = self.count, True
        try:
            while open_answers:
                offset, event = await self._next()
                if isinstance(event, Failed):
                    raise as_api_error(event.error)
                if first:
                    self._measured.first_token(time.monotonic() - self._began)
                    first = False
                if event.finish_reason is not None:
                    open_answers -= 1
                    self.completion_tokens += event.new_tokens
                yield offset + event.choice, event
            self._jobs = []
            self._measured.answered(time.monotonic() - self._began, self.prompt_tokens)
        finally:
            self.cancel()

    async def _next(self) -> tuple[int, Event]:
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout_at(self._ends_at):
                return await self._queue.get()
        except TimeoutError:
            raise ApiError(
                504,
                f"The answer took longer than the {self._seconds:g} seconds that this server gives a request. Ask for "
                "fewer tokens, or try again when it is less busy.",
                code="timeout",
            ) from None
