"""One trial: a fresh prompt on the loaded model, trained as `ptune train` trains it, measured on the way, taken off.

The prompt of a trial that came to its end is kept where it is the best so far: nothing has to be trained again.
"""

from __future__ import annotations

import gc
import math
import shlex
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from filelock import FileLock
from transformers import TrainerCallback, TrainerControl, TrainerState
from typing_extensions import override

from ptune.errors import PTuneError, RunStoppedError, TrainingError, one_line
from ptune.evaluation.held_out_loss import HeldOutLoss, held_out_loss
from ptune.memory.measure import PeakMemory
from ptune.model.wrapper import DEFAULT_PROMPT
from ptune.recipe import TrainRecipe
from ptune.saved.files import read_json
from ptune.saved.opened_folder import PTUNE_CONFIG
from ptune.training.output import OutputFolder
from ptune.training.progress import MetricsFile
from ptune.training.result import TrainResult, check_finite, prompt_details, save_result
from ptune.training.rows import place_of
from ptune.training.signals import StopRequest
from ptune.training.start import add_new_prompt
from ptune.training.train import build_trainer, result_of
from ptune.training.trainer import PTuneTrainer
from ptune.tuning.choice import Choice
from ptune.tuning.prepared import Prepared
from ptune.tuning.study import FAULT, note_process, pruner_called
from ptune.tuning.tune_progress import TuneProgress

BEST, LOCK = "best", ".best.lock"
NOTE_SECONDS = 60
"""How often a trial notes that it is alive."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """What trials share while the search goes on."""

    at: Prepared
    before: HeldOutLoss
    """Of the frozen model alone."""
    progress: TuneProgress
    stop: StopRequest

    def check_stop(self, where: str) -> None:
        """Raise `RunStoppedError` where the user asked to stop."""
        if (number := self.stop.signal_number) is not None:
            raise RunStoppedError(
                f"stopped {where}; the trials that have ended are kept.",
                signal_number=number,
                hint=f"Go on with: ptune tune --resume {shlex.quote(str(self.at.folder))}",
            )


def run_trial(course: Course, trial: optuna.Trial, choice: Choice) -> float | None:
    """Train a choice, and keep its prompt where there is no better one.

    Returns:
        Its held-out loss; None where it was given up, or could not go on (the trial then notes the fault).

    Raises:
        RunStoppedError: The user stopped the search.
        ConfigError: The prompt does not fit the model.
    """
    at = course.at
    working = OutputFolder(working_folder(at.folder, trial.number), overwrite=True)
    working.claim()
    try:
        return _train(course, trial, choice, working)
    except TrainingError as error:
        trial.set_user_attr(FAULT, one_line(error))
        return None
    finally:
        if at.model.prompt_names:
            at.model.delete_prompt(DEFAULT_PROMPT)
        shutil.rmtree(working.path, ignore_errors=True)
        gc.collect()  # a trainer and its optimizer know each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _train(course: Course, trial: optuna.Trial, choice: Choice, working: OutputFolder) -> float | None:
    at = course.at
    recipe = choice.recipe(at.recipe, working.path)
    args = choice.arguments(at.args, recipe, at.given)
    details = prompt_details(recipe, args, at.tokenizer, at.rows)
    watch = Watch(course, trial)
    add_new_prompt(at.model, recipe, args, at.tokenizer, at.rows)
    trainer = build_trainer(
        at.model, args, at.rows, at.collate, recipe,
        details=details, console=at.console, name_row=partial(place_of, at.rows, at.tokenizer, recipe),
        callbacks=[watch, MetricsFile(working.metrics)],
    )  # fmt: skip
    watch.trainer = trainer
    try:
        with PeakMemory() as peak:
            outcome = trainer.train()
        if watch.pruned:
            return None
        check_finite(at.model)
        result = result_of(
            trainer, outcome, at.rows, folder=working.path, model=at.model, tokenizer=at.tokenizer,
            before=course.before, after=watch.last, memory=peak.report,
        )  # fmt: skip
        keep_best(at.folder, result, recipe, details, working)
    finally:
        # Mixed precision has wrapped the model's forward; the next trainer wraps it again.
        trainer.accelerator.unwrap_model(at.model, keep_fp32_wrapper=False)
    assert watch.last is not None
    return watch.last.loss


class Watch(TrainerCallback):
    """Measures the held-out loss at a few steps of a trial, and ends it where the study gives it up.

    Args:
        course: What trials share.
        trial: Takes the losses.
    """

    def __init__(self, course: Course, trial: optuna.Trial) -> None:
        self.course, self.trial = course, trial
        self.trainer: PTuneTrainer | None = None
        self.last: HeldOutLoss | None = None
        self.pruned = False
        self._steps: tuple[int, ...] = ()
        self._noted = time.monotonic()

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Choose the steps, now that their number is known."""
        self._steps = measured_steps(state.max_steps, self.course.at.settings.measurements)
        self.trial.study.pruner = pruner_called(self.course.at.settings.pruner, self._steps[0])

    @override
    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Show the training loss."""
        if "loss" in logs:
            self.course.progress.step(state.global_step, state.max_steps, float(logs["loss"]))

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, where it is time."""
        step, at = state.global_step, self.course.at
        self.course.check_stop(f"after step {step} of {state.max_steps} of a trial")
        self.course.progress.step(step, state.max_steps)
        if time.monotonic() > self._noted + NOTE_SECONDS:
            note_process(self.trial)
            self._noted = time.monotonic()
        if step not in self._steps:
            return
        assert at.rows.held_out_tokens is not None
        assert self.trainer is not None
        self.last = held_out_loss(
            at.model, at.rows.held_out_tokens.dataset, at.collate, batch_size=args.per_device_eval_batch_size
        )
        if not math.isfinite(self.last.loss):
            raise TrainingError(f"the held-out loss is {self.last.loss} after step {step}.")
        self.trainer.log({"eval_loss": self.last.loss})
        self.trial.report(self.last.loss, step)
        if step < state.max_steps and self.trial.should_prune():
            self.pruned = control.should_training_stop = True


def measured_steps(steps: int, times: int) -> tuple[int, ...]:
    """The steps after which a run of so many is measured: at its end, after half of it, a quarter, and so on."""
    return tuple(sorted({steps >> halvings for halvings in range(times) if steps >> halvings}))


def working_folder(folder: Path, number: int) -> Path:
    """Where the trial of that number is trained."""
    return folder / f".trial-{number}"


def keep_best(
    folder: Path, result: TrainResult, recipe: TrainRecipe, details: dict[str, Any], working: OutputFolder
) -> None:
    """Make the trial's folder the search's best prompt, where that has no lower loss."""
    assert result.after is not None
    best = folder / BEST
    with FileLock(folder / LOCK):
        if best_loss(folder) < result.after.loss:
            return
        save_result(result, recipe, details, working)
        shutil.rmtree(best, ignore_errors=True)
        working.path.rename(best)


def best_loss(folder: Path) -> float:
    """The held-out loss of the prompt that a search has kept; infinite where there is none."""
    try:
        return float(read_json(folder / BEST, PTUNE_CONFIG)["metrics"]["held_out_loss_after"])
    except (PTuneError, KeyError, TypeError, ValueError):
        return math.inf
