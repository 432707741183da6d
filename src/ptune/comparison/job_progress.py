"""What a comparison shows while it runs: bars on a terminal, a line a job in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ptune.comparison.job import BASE, Job, JobResult


class CompareProgress:
    """Shows which job runs, its step, loss and speed, and the time left of it.

    Args:
        console: Where to.
        total: Jobs.
    """

    def __init__(self, console: Console, *, total: int) -> None:
        self.console, self.total, self._count = console, total, 0
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> CompareProgress:
        if self.console.is_terminal:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
            ]
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, job: Job) -> Callable[[dict[str, Any]], None]:
        """What takes a job's progress."""
        if self._bar is None:
            return lambda _: None
        bar, since = self._bar, [0.0]
        if self._task is not None:
            bar.remove_task(self._task)
        self._task = bar.add_task(f"{self._count + 1}/{self.total} {_called(job)}", total=None, figures="starting")

        def take(said: dict[str, Any]) -> None:
            if "phase" in said:
                bar.update(self._task, figures=said["phase"], total=None)
                return
            since[0] = since[0] or time.monotonic()
            done = said["step"] - 1
            speed = f"  {(time.monotonic() - since[0]) / done:.2f} s/step" if done else ""
            figures = f"step {said['step']}/{said['steps']}  loss {said['loss']:.4f}{speed}"
            bar.update(self._task, total=said["steps"], completed=said["step"], figures=figures)

        return take

    def done(self, job: Job, result: JobResult, *, kept: bool) -> None:
        """Say in a line what a job gave."""
        self._count += 1
        parts = []
        if result.ok:
            if result.step_seconds is not None:
                parts += [f"{result.steps} steps of {result.step_seconds:.2f} s", f"peak {result.peak_gib:.2f} GiB"]
            if result.held_out_loss is not None:
                parts.append(f"held-out loss {result.held_out_loss:.4f}")
        else:
            parts.append(f"{result.status}: {result.error}")
        said = f"{self._count}/{self.total} {_called(job)}: {', '.join(parts) or 'loaded'}"
        self.console.print(said + (" (from before)" if kept else ""), highlight=False, soft_wrap=True, markup=False)


def _called(job: Job) -> str:
    return "the model alone" if job.method == BASE else f"{job.method}, seed {job.seed}"
