"""A search, top to bottom: read and load once, open the study, run trials until there are enough, say what came out.

Every trial is a whole run of `ptune train` unless it is given up on the way, on the one model that is loaded, and on
rows that are tokenized once. So the best prompt is there when the search ends, trained to its end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError
from transformers import TrainingArguments

from ptune.choices import LM
from ptune.errors import ConfigError, TrainingError
from ptune.evaluation.held_out_loss import HeldOutLoss
from ptune.recipe import TrainRecipe
from ptune.saved.files import make_folder
from ptune.training.processes import take_over_sharding
from ptune.training.result import show_line
from ptune.training.signals import StopRequest
from ptune.training.train import measure, training_arguments
from ptune.tuning.choice import SPREAD, choose, given_choice
from ptune.tuning.prepared import Prepared, prepare
from ptune.tuning.study import (
    counted,
    give_up_dead,
    note_process,
    open_study,
    place_of,
    sampler_at,
    storage_faults,
)
from ptune.tuning.trial import BEST, Course, best_loss, run_trial, working_folder
from ptune.tuning.tune_files import (
    DATABASE,
    RECIPE,
    best_values,
    check_folder,
    claim_folder,
    write_recipe,
    write_results,
)
from ptune.tuning.tune_progress import TuneProgress
from ptune.tuning.tune_result import TuneResult, best_of, ended_trials, trial_result
from ptune.tuning.tune_settings import TuneSettings, check_search


def tune(
    recipe: TrainRecipe,
    settings: TuneSettings | None = None,
    arguments: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> TuneResult:
    """Search for the encoder, number of virtual tokens, start and learning rate with the lowest held-out loss.

    The first trial is the recipe as it is, as far as that lies in what is searched.

    Args:
        recipe: Model, data, and what is the same for all trials; the search goes to its `output`.
        settings: What is searched, and how long.
        arguments: `TrainingArguments` by name, the same for all trials (max_steps, per_device_train_batch_size, …).
        console: Where to report; standard error by default.

    Returns:
        Every trial, and the best one with its prompt folder and recipe.

    Raises:
        PTuneError: Anything the user can fix.
    """
    chosen, given, say = settings or TuneSettings(), dict(arguments or {}), console or Console(stderr=True)
    if recipe.task != LM:
        raise ConfigError(
            f"a search is for causal language models, not task={recipe.task}.",
            hint=f"Compare rates and encoders with ptune compare --task {recipe.task}.",
        )
    check_search(chosen, recipe, given)
    args = training_arguments(recipe, {**given, "save_strategy": "no", "eval_strategy": "no"})
    check_one_process(args)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder, resume = Path(recipe.output), chosen.resume not in (None, False)
    check_folder(folder, resume=resume, overwrite=recipe.overwrite)
    at = prepare(recipe, chosen, args, given, say)
    task, lines = at.task(), at.lines()
    url = chosen.storage or f"sqlite:///{(folder / DATABASE).absolute()}"
    if chosen.storage is None:
        make_folder(folder)
    study = open_study(url, chosen, task, resume=resume, overwrite=recipe.overwrite)
    claim_folder(folder, recipe, chosen, given, overwrite=recipe.overwrite)
    # Whatever is wrong with the request has been said by now, in one line.
    for line in lines:
        show_line(line, say)
    before = measure(at.model, at.rows, at.collate, args, say, with_prompt=False)
    assert before is not None
    with (
        StopRequest(partial(show_line, console=say), "stopping after this step; the trials before it are kept") as stop,
        TuneProgress(say, total=chosen.trials) as progress,
        storage_faults(url),
    ):
        _search(Course(at=at, before=before, progress=progress, stop=stop), study)
    return _finish(at, study, before, given)


def check_one_process(args: TrainingArguments) -> None:
    """Raise `ConfigError` when several processes are to train one trial together."""
    if take_over_sharding(args) is not None or args.world_size > 1:
        raise ConfigError(
            f"a search runs in one process, not in {args.world_size}.",
            hint="Start ptune tune several times with --resume, on one --output or --storage.",
        )


def _search(course: Course, study: optuna.Study) -> None:
    """Run trials until the study has enough of them, or the time is over.

    Raises:
        RunStoppedError: The user stopped it.
    """
    at, limit = course.at, course.at.settings.time_limit
    until = None if limit is None else time.monotonic() + 60 * limit
    while until is None or time.monotonic() < until:
        for number in give_up_dead(study):
            shutil.rmtree(working_folder(at.folder, number), ignore_errors=True)
        if len(counted(study)) >= at.settings.trials:
            return
        course.check_stop("between two trials")
        trial = study.ask()
        try:
            _carry_out(course, study, trial)
        except UpdateFinishedTrialError:
            continue  # not heard of for long (a machine that slept), it was given up by another process
        except BaseException:
            with suppress(SQLAlchemyError, StorageInternalError):
                study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise


def _carry_out(course: Course, study: optuna.Study, trial: optuna.Trial) -> None:
    """Draw a trial, run it, and tell the study and the user what it gave."""
    at, seed = course.at, course.at.args.seed
    note_process(trial)
    place = place_of(study, trial.number)
    if place >= at.settings.trials:  # another process has begun the last one meanwhile
        study.tell(trial, state=TrialState.FAIL)
        return
    study.sampler = sampler_at(place, seed, 1 + SPREAD, given_choice(place, at.settings, at.recipe, at.own_rates, seed))
    choice = choose(trial, at.settings, at.recipe, at.own_rates)
    course.progress.begin(place, str(choice), _best_loss(study))
    loss = run_trial(course, trial, choice)
    state = TrialState.PRUNED if loss is None else TrialState.COMPLETE
    ended = study.tell(trial, loss, state, skip_if_finished=True)
    if ended.state is state:
        course.progress.done(trial_result(ended, place), _best_loss(study))


def _best_loss(study: optuna.Study) -> float | None:
    best = best_of(ended_trials(study))
    return None if best is None else best.held_out_loss


def _finish(at: Prepared, study: optuna.Study, before: HeldOutLoss, given: Mapping[str, Any]) -> TuneResult:
    """Write what came out.

    Raises:
        TrainingError: No trial came to its end.
        OutputError: It cannot be written.
    """
    trials = ended_trials(study)
    best = best_of(trials)
    if best is None:
        faults = [trial.fault for trial in trials if trial.fault is not None]
        raise TrainingError(
            f"none of {len(trials)} trials came to its end" + (f"; the first: {faults[0]}" if faults else "."),
            hint="Search lower rates (learning_rate), or give it more time.",
        )
    about = f"Trial {best.trial} of {len(trials)} of a search: held-out loss {best.held_out_loss:.4f}."
    result = TuneResult(
        folder=at.folder,
        frozen_loss=before.loss,
        trials=trials,
        running=len(counted(study)) - len(trials),
        best=best,
        prompt=at.folder / BEST if best_loss(at.folder) == best.held_out_loss else None,
        recipe=write_recipe(at.folder / RECIPE, about, best_values(at.recipe, given, best, at.folder)),
    )
    write_results(result)
    return result
