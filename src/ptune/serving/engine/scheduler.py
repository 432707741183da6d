"""Continuous batching: one thread owns the model; requests join its running batch between two steps and leave it.

An iteration drops the rows that nobody waits for any more, reads the texts of waiting requests as far as there is room
for them, and writes one token of every row. Requests are served in the order in which they come. What cannot share
the batch (`single_model`) is answered alone, between two steps.

A request's worst case is known when it joins: its positions with the longest answer. The keys and values of the batch
are as wide as its longest row, so `rows × longest` positions are what a bound on memory can be held against.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ptune.errors import ModelError, PTuneError
from ptune.model.wrapper import PTunedModel
from ptune.serving.engine.batched_model import BatchedModel, batching_obstacle
from ptune.serving.engine.engine import Bounds, BusyError, CancelledRequestError, StoppedError, Watch
from ptune.serving.engine.requested import Failed, Job
from ptune.serving.engine.row_under_way import RowUnderWay
from ptune.serving.engine.sampling import next_tokens
from ptune.serving.engine.single_model import SingleModel

_log = logging.getLogger("ptune.serve")
READ_AT_ONCE = 2048
"""Positions of texts, padding included, that are read between two steps; one text may have more."""


class Scheduler:
    """The `Engine` of a model in this process: `submit` from any thread.

    Args:
        model: The frozen model, in eval mode; it may not change while the engine runs.
        tokenizer: Decodes answers.
        bounds: How much it takes on.
        watch: Told what is done, by the engine's thread.
    """

    def __init__(
        self,
        model: PTunedModel,
        tokenizer: PreTrainedTokenizerBase,
        bounds: Bounds | None = None,
        watch: Watch = lambda _what, _amount: None,
    ) -> None:
        self.bounds = bounds or Bounds()
        self._model, self._tokenizer, self._watch = model, tokenizer, watch
        self.obstacle = batching_obstacle(model)
        """Why requests are answered one at a time; None when they share a batch."""
        self._batch, self._single = BatchedModel(model), SingleModel(model)
        self._ends = end_tokens(model)
        self._rows: list[RowUnderWay] = []
        self._alone: Job | None = None
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._draining = self._given_up = False
        self._thread = threading.Thread(target=self._run, name="ptune-engine", daemon=True)

    # ---- from any thread ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer."""
        if self.obstacle is not None:
            _log.warning("requests are answered one at a time", extra={"reason": self.obstacle})
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a request on; its events follow."""
        self._check_size(job)
        with self._changed:
            if self._draining or not self._thread.is_alive():
                raise StoppedError("the server is stopping.")
            if len(self._queue) >= self.bounds.waiting:
                raise BusyError(f"{len(self._queue)} requests are waiting, as many as may.")
            self._queue.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for a request any more: it is dropped before the next step, and nothing more is said of it."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def stop(self, *, seconds: float) -> bool:
        """Take nothing on any more, and end when everything is answered, or after a time."""
        self.drain()
        self._thread.join(seconds)
        finished = not self._thread.is_alive()
        with self._changed:
            self._given_up = True
            self._changed.notify()
        self._thread.join(10)
        return finished

    def drain(self) -> None:
        """Take nothing on any more."""
        with self._changed:
            self._draining = True
            self._changed.notify()

    @property
    def draining(self) -> bool:
        """Whether it takes nothing on any more."""
        return self._draining

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._rows) + (self._alone is not None)

    @property
    def waiting(self) -> int:
        """Requests that wait to be begun."""
        return len(self._queue)

    @property
    def cache_bytes(self) -> int:
        """Memory of the running batch's keys and values."""
        return self._batch.held_bytes

    # ---- the engine's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException = StoppedError("the server has stopped before the answer was complete.")
        try:
            self._answer_all()
        except BaseException as fault:
            error = fault  # a defect: whoever waits is told, and `alive` says so
            raise
        finally:
            self._fail(self._take_everything(), error)

    def _answer_all(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._rows or self._draining):
                    self._changed.wait()
                if self._given_up or not (self._queue or self._rows):
                    return
                self._drop_cancelled_waiting()
                joining, alone = self._next()
            self._drop_cancelled_rows()
            if joining:
                self._join(joining)
            if alone is not None:
                self._answer_alone(alone)
            if self._rows:
                self._step()

    def _drop_cancelled_waiting(self) -> None:
        if any(job.cancelled for job in self._queue):
            self._queue = deque(job for job in self._queue if not job.cancelled)

    def _drop_cancelled_rows(self) -> None:
        for at in reversed(range(len(self._rows))):
            if self._rows[at].job.cancelled:
                self._leave(at)

    def _next(self) -> tuple[list[Job], Job | None]:
        """The waiting requests that can join now, in their order; or the first one, if it is to be answered alone."""
        joining: list[Job] = []
        rows = len(self._rows)
        longest = max((row.job.total for row in self._rows), default=0)
        widest = 0
        while self._queue:
            job = self._queue[0]
            if self._goes_alone(job):
                if not joining:
                    return [], self._queue.popleft()
                break
            rows, longest, widest = rows + job.choices, max(longest, job.total), max(widest, len(job.ids))
            if rows > self.bounds.rows or not self._holds(rows, longest):
                break
            if joining and (len(joining) + 1) * widest > READ_AT_ONCE:
                break
            joining.append(self._queue.popleft())
        return joining, None

    def _goes_alone(self, job: Job) -> bool:
        window = self._model.capability.sliding_window
        return self.obstacle is not None or (window is not None and job.total > window)

    def _holds(self, rows: int, longest: int) -> bool:
        most = self.bounds.cache_positions
        return most is None or rows * longest <= most

    def _check_size(self, job: Job) -> None:
        """Raise `ModelError` for what can never be begun."""
        if job.choices > self.bounds.rows:
            raise ModelError(
                f"{job.choices} answers are asked for, and {self.bounds.rows} are written at the same time at most.",
                hint=f"Lower n to {self.bounds.rows}.",
            )
        if not self._goes_alone(job) and not self._holds(job.choices, job.total):
            raise ModelError(
                f"{job.choices} × {job.total} positions of prompt, text and answer exceed the memory for keys and "
                f"values, {self.bounds.cache_positions} positions.",
                hint="Ask for fewer tokens, or for fewer answers.",
            )

    def _join(self, jobs: Sequence[Job]) -> None:
        """Read the texts of requests, and write the first token of each of their answers."""
        began = time.perf_counter()
        before = self._batch.rows
        try:
            logits = self._batch.join(jobs)
        except Exception as error:  # noqa: BLE001  # whatever a request did, the others go on
            while self._batch.rows > before:  # some layers may have it
                self._batch.leave(self._batch.rows - 1)
            if len(jobs) == 1:
                self._fail(jobs, error)
                return
            for job in jobs:
                self._join([job])
            return
        self._watch("read_seconds", time.perf_counter() - began)
        self._watch("read_tokens", sum(len(job.ids) for job in jobs))
        new = [RowUnderWay(job, at, self._tokenizer, self._ends) for job in jobs for at in range(job.choices)]
        self._rows += new
        self._forget_retired(jobs)
        self._take(new, logits)

    def _step(self) -> None:
        """Write a token of every row."""
        began = time.perf_counter()
        try:
            logits = self._batch.step([row.last_token for row in self._rows])
        except Exception as error:  # noqa: BLE001  # as above
            self._fail({row.job: None for row in self._rows}, error)
            self._rows = []
            self._batch.clear()
            return
        self._watch("step_seconds", time.perf_counter() - began)
        self._watch("step_rows", len(self._rows))
        self._take(list(self._rows), logits)

    def _take(self, rows: Sequence[RowUnderWay], logits: torch.Tensor) -> None:
        """Go on with a token for each of these rows, the last ones of the batch; `(N, V)` logits."""
        first = len(self._rows) - len(rows)
        tokens = next_tokens([row.sampler for row in rows], logits)
        self._watch("written_tokens", len(rows))
        leaving = {}
        for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if isinstance(token, ModelError):
                self._fail_once(row.job, token)
                leaving[first + at] = True
            elif row.take(token, logits[at]):
                leaving[first + at] = False
        for at in sorted(leaving, reverse=True):
            self._leave(at, scrub=leaving[at])

    def _fail_once(self, job: Job, error: PTuneError) -> None:
        """A choice has failed: the request has, and its other choices go before the next step."""
        if not job.cancelled:
            job.cancelled = True
            self._fail([job], error)

    def _leave(self, row: int, *, scrub: bool = False) -> None:
        last = self._rows.pop()
        if row < len(self._rows):
            self._rows[row] = last
        self._batch.leave(row, scrub=scrub)

    def _answer_alone(self, job: Job) -> None:
        self._alone = job
        try:
            for choice in range(job.choices):
                row = RowUnderWay(job, choice, self._tokenizer, self._ends)
                self._single.answer(job, lambda logits, row=row: self._take_alone(row, logits))  # type: ignore[misc]
        except CancelledRequestError:
            pass
        except Exception as error:  # noqa: BLE001  # as above
            self._fail([job], error)
        finally:
            self._alone = None
            self._forget_retired([job])

    def _take_alone(self, row: RowUnderWay, logits: torch.Tensor) -> tuple[int, bool]:
        if row.job.cancelled:
            raise CancelledRequestError
        if self._given_up:
            raise StoppedError("the server has stopped before the answer was complete.")
        token = next_tokens([row.sampler], logits)[0]
        if isinstance(token, ModelError):
            raise token
        self._watch("written_tokens", 1)
        return token, row.take(token, logits[0])

    def _forget_retired(self, jobs: Iterable[Job]) -> None:
        """A prompt that was replaced while a request waited is not kept any longer."""
        for prompt in {job.prompt for job in jobs if job.prompt is not None and job.prompt.retired}:
            self._model.prefixes.forget(prompt.key)

    def _take_everything(self) -> list[Job]:
        with self._changed:
            jobs = {row.job: None for row in self._rows} | dict.fromkeys(self._queue)
            self._rows = []
            self._queue.clear()
        self._batch.clear()
        return list(jobs)

    def _fail(self, jobs: Iterable[Job], error: BaseException) -> None:
        if not isinstance(error, (PTuneError, StoppedError)):
            _log.error("a request failed in the engine", exc_info=error)
        for job in jobs:
            job.emit(Failed(error))


def end_tokens(model: PTunedModel) -> frozenset[int]:
    """The tokens that end an answer, as `generate` reads them off the model."""
    found = getattr(model.base.generation_config, "eos_token_id", None)
    if found is None:
        return frozenset()
    return frozenset(found if isinstance(found, (list, tuple)) else [found])
