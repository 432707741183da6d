"""What a search shows while it runs: one live line on a terminal, a line a trial in a pipe."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ptune.training.progress import clock
from ptune.tuning.tune_result import COMPLETE, TrialResult


class TuneProgress:
    """Shows which trial runs, its loss, the best one so far, and the time left.

    Args:
        console: Where to.
        total: Trials of the study.
    """

    def __init__(self, console: Console, *, total: int) -> None:
        self.console, self.total = console, total
        self._place, self._best = 0, "–"
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> TuneProgress:
        if self.console.is_terminal:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
            ]
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=self.total, figures="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, place: int, what: str, best: float | None) -> None:
        """A trial begins at this place, counted from 0."""
        self._place, self._best = place, "–" if best is None else f"{best:.4f}"
        if self._bar is not None:
            self._bar.update(
                self._task, description=f"trial {place + 1}/{self.total}  {what}", completed=place, figures=self._said()
            )

    def step(self, step: int, steps: int, loss: float | None = None) -> None:
        """The trial has done a step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._place + step / steps)
            if loss is not None:
                self._bar.update(self._task, figures=self._said(loss))

    def _said(self, loss: float | None = None) -> str:
        return f"loss {'–' if loss is None else f'{loss:.4f}'}  best {self._best}"

    def done(self, trial: TrialResult, best: float | None) -> None:
        """Say in a line what a trial gave."""
        loss = "" if trial.held_out_loss is None else f"held-out loss {trial.held_out_loss:.4f}"
        if trial.state == COMPLETE:
            said = loss + (" (the best so far)" if trial.held_out_loss == best else "")
        else:
            said = f"given up after step {trial.steps}, {loss}" if trial.fault is None else f"failed: {trial.fault}"
        line = f"trial {trial.trial}/{self.total}: {trial.choice()}: {said}, {clock(trial.seconds)}"
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
