"""A search, top to bottom: read and load once, open the study, run trials until there are enough, say what came out.

Every trial is a whole run of `ptune train` unless it is given up on the way, on the one model that is loaded, and on
rows that are tokenized once. So the best prompt is there when the search ends, trained to its end.
"""

from __future__ import annotations

import copy
import shlex
import shutil
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ptune.errors import ConfigError, PTuneError, RunStoppedError, TrainingError
from ptune.evaluation.held_out_loss import HeldOutLoss
from ptune.recipe import TrainRecipe
from ptune.saved.files import make_folder
from ptune.training.result import show_line
from ptune.training.signals import StopRequest
from ptune.training.train import measure, training_arguments
from ptune.tuning.choice import SPREAD, choose, given_choice
from ptune.tuning.prepared import Prepared, prepare
from ptune.tuning.study import (
    PROCESS,
    counted,
    give_up_dead,
    open_study,
    place_of,
    sampler_at,
    storage_faults,
    this_process,
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
from ptune.tuning.tune_result import TuneResult, best_of, described, ended_trials, trial_result
from ptune.tuning.tune_settings import TuneSettings, check_search


class _EnoughError(Exception):
    """Other processes have begun the last trials meanwhile."""


def tune(
    recipe: TrainRecipe,
    settings: TuneSettings | None = None,
    arguments: TrainingArguments | Mapping[str, Any] | None = None,
    console: Console | None = None,
    *,
    given: Collection[str] | None = None,
) -> TuneResult:
    """Search for the encoder, number of virtual tokens, start and learning rate with the lowest held-out loss.

    The first trial is the recipe as it is, as far as that lies in what is searched.

    Args:
        recipe: Model, data, and what is the same for all trials; the search goes to its `output`.
        settings: What is searched, and how long.
        arguments: `TrainingArguments` by name, the same for all trials (max_steps, …); or all of them, as an object.
        console: Where to report; standard error by default.
        given: Names of the training arguments that somebody chose; those of `arguments` where they are a mapping.

    Returns:
        Every trial, and the best one with its prompt folder and recipe.

    Raises:
        PTuneError: Anything the user can fix.
    """
    chosen, say = settings or TuneSettings(), console or Console(stderr=True)
    if given is None:
        given = arguments if isinstance(arguments, Mapping) else ()
    check_search(chosen, recipe, given)
    if not isinstance(arguments, TrainingArguments):
        arguments = training_arguments(recipe, arguments or {})
    args = _for_trials(arguments)
    values = {name: _plain(getattr(args, name)) for name in sorted(given)}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder, resume = Path(recipe.output), chosen.resume not in (None, False)
    check_folder(folder, resume=resume, overwrite=recipe.overwrite)
    at = prepare(recipe, chosen, args, given, say)
    url = chosen.storage or f"sqlite:///{(folder / DATABASE).absolute()}"
    if chosen.storage is None:
        make_folder(folder)
    study = open_study(url, chosen, at.task(), resume=resume, overwrite=recipe.overwrite)
    claim_folder(folder, recipe, chosen, values, overwrite=recipe.overwrite)
    at.show()
    before = measure(at.model, at.rows, at.collate, args, say, with_prompt=False)
    assert before is not None
    with (
        StopRequest(partial(show_line, console=say), "stopping after this step; the trials before it are kept") as stop,
        TuneProgress(say, total=chosen.trials) as progress,
        storage_faults(url),
    ):
        _search(Course(at=at, before=before, progress=progress, stop=stop), study)
    return _finish(at, study, before, values)


def _for_trials(arguments: TrainingArguments) -> TrainingArguments:
    """The training arguments without what a search does in its own way."""
    if arguments.world_size > 1:
        raise ConfigError(
            f"a search runs in one process, not in {arguments.world_size}.",
            hint="Start ptune tune several times with --resume, on one --output or --storage.",
        )
    args = copy.copy(arguments)
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    return args


def _plain(value: Any) -> Any:
    """A training argument as a value that YAML has: enums by their value."""
    return getattr(value, "value", value)


def _search(course: Course, study: optuna.Study) -> None:
    """Run trials until the study has enough of them, or the time is over.

    Raises:
        RunStoppedError: The user stopped it.
    """
    at, settings = course.at, course.at.settings
    limit = settings.time_limit
    until = None if limit is None else time.monotonic() + 60 * limit
    own_fault = False

    def objective(trial: optuna.Trial) -> float:
        nonlocal own_fault
        own_fault = True
        trial.set_user_attr(PROCESS, this_process())
        place = place_of(study, trial.number)
        if place >= settings.trials:
            raise _EnoughError
        seed = at.args.seed
        study.sampler = sampler_at(place, seed, 1 + SPREAD, given_choice(place, settings, at.recipe, seed))
        choice = choose(trial, settings, at.recipe)
        course.progress.begin(
            place,
            described(choice.encoder, choice.num_virtual_tokens, choice.init, choice.learning_rate),
            _best_loss(study),
        )
        try:
            loss = run_trial(course, trial, choice)
        except (UpdateFinishedTrialError, optuna.TrialPruned):
            own_fault = False
            raise
        own_fault = False
        return loss

    give_up_dead(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        shutil.rmtree(working_folder(at.folder, trial.number), ignore_errors=True)
    while len(counted(study)) < settings.trials and (until is None or time.monotonic() < until):
        try:
            study.optimize(objective, n_trials=1, callbacks=[partial(_tell, course.progress)])
        except _EnoughError:
            break
        except RunStoppedError as error:
            error.hint = f"Go on with: ptune tune --resume {shlex.quote(str(at.folder))}"
            raise
        except PTuneError:
            raise
        except ValueError:
            # Not heard of for some minutes (a machine that slept), the trial was given up by another process.
            if own_fault:
                raise


def _tell(progress: TuneProgress, study: optuna.Study, trial: FrozenTrial) -> None:
    """Say what a trial gave."""
    progress.done(trial_result(trial, place_of(study, trial.number)), _best_loss(study))


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
