"""What a search gave, as plain values read from its study."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ptune.tuning.choice import Choice
from ptune.tuning.study import FAULT, RATE, counted

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial that has ended. Losses are nats per answer token."""

    trial: int
    """Counted from 1."""
    state: str
    """Complete, pruned (given up at a measurement), or failed (it could not go on)."""
    encoder: str
    num_virtual_tokens: int
    init: str
    learning_rate: float
    held_out_loss: float | None
    """At its end, or where it was given up."""
    steps: int | None
    """Done by then."""
    seconds: float
    measured: tuple[tuple[int, float], ...]
    """(step, held-out loss)."""
    fault: str | None
    """Why it could not go on."""

    def choice(self) -> Choice:
        """What was tried."""
        return Choice(self.encoder, self.num_virtual_tokens, self.init, self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What a search gave."""

    folder: Path
    frozen_loss: float
    """Held-out loss of the frozen model alone."""
    trials: tuple[TrialResult, ...]
    """Those that have ended, in their order, of all processes."""
    running: int
    """Trials that other processes have in hand."""
    best: TrialResult
    """The complete one with the lowest held-out loss."""
    prompt: Path | None
    """Its prompt folder; None where it was trained by another process into a folder of its own."""
    recipe: Path
    """Its recipe, for `ptune train --config`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        prompt = None if self.prompt is None else str(self.prompt)
        return {**asdict(self), "folder": str(self.folder), "prompt": prompt, "recipe": str(self.recipe)}


def trial_result(trial: FrozenTrial, place: int) -> TrialResult:
    """An ended trial as plain values."""
    measured = sorted(trial.intermediate_values.items())
    fault = trial.user_attrs.get(FAULT)
    state = COMPLETE if trial.state is TrialState.COMPLETE else PRUNED if fault is None else FAILED
    return TrialResult(
        trial=place + 1,
        state=state,
        encoder=trial.params["encoder"],
        num_virtual_tokens=trial.params["num_virtual_tokens"],
        init=trial.params["init"],
        learning_rate=trial.user_attrs[RATE],
        held_out_loss=measured[-1][1] if measured else None,
        steps=measured[-1][0] if measured else None,
        seconds=0.0 if trial.duration is None else trial.duration.total_seconds(),
        measured=tuple(measured),
        fault=fault,
    )


def ended_trials(study: optuna.Study) -> tuple[TrialResult, ...]:
    """Every trial of a study that has ended, in their order."""
    places = enumerate(counted(study))
    return tuple(trial_result(trial, place) for place, trial in places if trial.state.is_finished())


def best_of(trials: tuple[TrialResult, ...]) -> TrialResult | None:
    """The complete trial with the lowest loss; the first one of several."""
    complete = [trial for trial in trials if trial.state == COMPLETE]
    return min(complete, key=lambda trial: trial.held_out_loss or 0.0, default=None)
