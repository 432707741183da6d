"""The trials of a search as a table, the best one first."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ptune.training.progress import clock
from ptune.training.result import show_line
from ptune.tuning.tune_result import COMPLETE, TrialResult, TuneResult

_COLUMNS = ("trial", "encoder", "virtual tokens", "start", "learning rate", "held-out loss", "steps", "time", "")


def show_trials(result: TuneResult, console: Console) -> None:
    """Print the table, and where everything is."""
    table = Table(title="Trials, the best first", title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("encoder", "start", "") else "right", overflow="fold")
    for trial in sorted(result.trials, key=_rank):
        table.add_row(*map(Text, _cells(trial)), style="bold" if trial == result.best else None)
    console.print(table)
    best = result.best
    show_line(
        f"best: trial {best.trial}, {best.choice()}: held-out loss {best.held_out_loss:.4f} (frozen model alone "
        f"{result.frozen_loss:.4f})",
        console,
    )
    if result.running:
        show_line(f"{result.running} trials are in the hands of other processes", console)
    if result.prompt is None:
        show_line(
            f"its prompt lies where another process trained it; here: ptune train --config {result.recipe}", console
        )
    else:
        show_line(f"prompt: {result.prompt}   recipe: {result.recipe}", console)


def _rank(trial: TrialResult) -> tuple[bool, bool, float]:
    """Complete trials first, those that gave no loss last."""
    loss = trial.held_out_loss
    return trial.state != COMPLETE, loss is None, loss or 0.0


def _cells(trial: TrialResult) -> tuple[str, ...]:
    loss = "–" if trial.held_out_loss is None else f"{trial.held_out_loss:.4f}"
    return (
        str(trial.trial),
        trial.encoder,
        str(trial.num_virtual_tokens),
        trial.init,
        f"{trial.learning_rate:g}",
        loss,
        "–" if trial.steps is None else str(trial.steps),
        clock(trial.seconds),
        trial.state if trial.fault is None else f"failed: {trial.fault}",
    )
