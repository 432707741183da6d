"""What a run shows while it trains: a bar with loss, speed and time left on a terminal, plain lines in a pipe.

The same figures go to `metrics.jsonl`, one JSON object a line.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from ptune.choices import METRIC_NAMES
from ptune.errors import OutputError

_NOT_LOGGED = ("total_flos",)


class ProgressReporter(TrainerCallback):
    """Shows progress on a console: a bar where it is a terminal, a line a log otherwise.

    Args:
        console: Where to.
        bar: False writes lines on a terminal too.
    """

    def __init__(self, console: Console, *, bar: bool = True) -> None:
        self.console = console
        self.bar = bar
        self._bar: Progress | None = None
        self._task: Any = None
        self._start = 0.0
        self._start_step = 0

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self._start, self._start_step = time.perf_counter(), state.global_step
        if not (state.is_world_process_zero and self.console.is_terminal and self.bar):
            return
        columns = [
            BarColumn(bar_width=16),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        ]
        self._bar = Progress(*columns, console=self.console, transient=False)
        self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, figures="")
        self._bar.start()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show loss and speed."""
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            more = [
                f", {name.replace('_', ' ')} {logs[key]:.4g}"
                for name in METRIC_NAMES
                if (key := f"eval_{name}") in logs
            ]
            line = f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}{''.join(more[1:])}"
            self.console.print(line, highlight=False, soft_wrap=True)
            return
        if "loss" not in logs:
            return
        figures = f"loss {float(logs['loss']):.4f}  {float(logs.get('tokens_per_second', 0)):.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, figures=figures)
            return
        done = state.global_step - self._start_step
        left = (time.perf_counter() - self._start) / max(done, 1) * (state.max_steps - state.global_step)
        self.console.print(
            f"step {state.global_step}/{state.max_steps}  {figures}  {clock(left)} left",
            highlight=False,
            soft_wrap=True,
        )

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, if it is open; also called when training ends with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class MetricsFile(TrainerCallback):
    """Appends every log as one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Write one line."""
        if not state.is_world_process_zero or not logs:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(metrics_line({"step": state.global_step, **logs}))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}.", hint="Free some space.") from error


def metrics_line(logs: Mapping[str, Any]) -> str:
    """One log with its step as a line of a `metrics.jsonl`, the step first."""
    line = {"step": logs["step"], **logs}
    return json.dumps({key: _plain(value) for key, value in line.items() if key not in _NOT_LOGGED}) + "\n"


def _plain(value: Any) -> Any:
    """A value that JSON has a word for; what is not finite becomes null."""
    number = value.item() if isinstance(value, (torch.Tensor, np.generic)) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def clock(seconds: float) -> str:
    """`1:05` or `2:03:05`."""
    whole = max(int(seconds + 0.5), 0)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
