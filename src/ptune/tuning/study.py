"""The study in its database: opened or begun, found to be of this task, and free of trials that nobody runs any more.

A trial's place in the study is its number without the trials before it that were cut off. What is drawn for a trial
depends on the seed, its place and the trials that have ended, on nothing else: a study that was interrupted goes on as
if nothing had happened, and the trial that was cut off is drawn and run again.

Processes share a study through the database alone. A trial whose process has gone is given up: at once when it ran on
this machine, else when nothing was heard of it for an hour.
"""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
import psutil
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ptune.errors import ConfigError, OutputError, first_line, shown
from ptune.tuning.tune_settings import TuneSettings

SILENT_SECONDS = 3600
"""After which a trial on another machine counts as given up."""
LOCK_SECONDS = 60
"""How long SQLite waits for another process's write."""
_ATTEMPTS, _PAUSE_SECONDS = 10, 0.2
_ABOUT = "ptune"
"""What a study notes of its task."""
PROCESS, RATE, FAULT = "process", "learning_rate", "fault"
"""What a trial notes: who runs it, the rate it trains with, and why it could not go on."""
_OF = {
    "model": "another model",
    "tokenizer": "another tokenizer",
    "rows": "other training rows",
    "held_out_rows": "other held-out rows",
}
_SEEDS = 2**32


def shown_url(url: str) -> str:
    """A database URL as it may be shown: its password hidden."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url


@contextmanager
def storage_faults(url: str) -> Iterator[None]:
    """Inside the `with`, what goes wrong with the database is an `OutputError`."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        raise OutputError(
            f"the study's database {shown_url(url)} cannot be used: {first_line(cause)}.",
            hint="Check --storage, and that the database can be reached and written.",
        ) from error


def open_study(
    url: str, settings: TuneSettings, about: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> optuna.Study:
    """The study of that name, found to be of this task, or a new one.

    Args:
        url: Its database.
        settings: Its name.
        about: What it is of (`of`), and what shapes its trials (`with`).
        resume: Go on with one that is there.
        overwrite: Remove one that is there.

    Raises:
        ConfigError: There is one already, or it is of something else.
        OutputError: The database cannot be opened.
    """
    where = f"the study {settings.study_name!r} in {shown_url(url)}"
    with storage_faults(url):
        storage = _storage(url)
        if settings.study_name in optuna.get_all_study_names(storage):
            if overwrite:
                optuna.delete_study(study_name=settings.study_name, storage=storage)
            elif not resume:
                raise ConfigError(
                    f"{where} is there already.",
                    hint="Pass --resume to go on with it, --overwrite to begin it anew, or another --study-name.",
                )
        study = optuna.create_study(
            storage=storage,
            study_name=settings.study_name,
            direction="minimize",
            load_if_exists=True,
        )
        if _ABOUT not in study.user_attrs and not study.trials:
            study.set_user_attr(_ABOUT, dict(about))
        _check_same(study.user_attrs.get(_ABOUT), json.loads(json.dumps(about)), where)
    return study


def _storage(url: str) -> optuna.storages.BaseStorage:
    """A database. Raises what its library raises for one that is out of order; `OutputError` where it is none."""
    options = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {}
    try:
        for _ in range(_ATTEMPTS):
            try:
                return optuna.storages.RDBStorage(url, engine_kwargs=options)
            except DBAPIError as error:
                if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                    raise
                # Another process makes the tables of a new database at the same moment.
                time.sleep(_PAUSE_SECONDS)
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except (ImportError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise OutputError(
            f"the study's database {shown_url(url)} cannot be opened: {first_line(error)}.",
            hint="Write --storage as optuna and SQLAlchemy do: sqlite:///study.db, postgresql://USER@HOST/NAME.",
        ) from error


def _check_same(before: Any, now: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Raise `ConfigError` when a study was begun on something else."""
    if not isinstance(before, dict):
        raise ConfigError(f"{where} is not ptune's.", hint="Give another --study-name.")
    old = {part: before.get(part) or {} for part in now}
    other = [word for name, word in _OF.items() if old["of"].get(name) != now["of"][name]]
    other += [
        f"{name}={shown(old['with'].get(name))}, not {shown(value)}"
        for name, value in now["with"].items()
        if old["with"].get(name) != value
    ]
    if other:
        raise ConfigError(
            f"{where} was begun with {', '.join(other)}.",
            hint="Give it what it was begun with, or begin another: another --output or --study-name.",
        )


def pruner_called(name: str, first_step: int) -> BasePruner:
    """The pruner of that name, of trials that are measured at `first_step`, twice that many steps, and so on."""
    match name:
        case "median":
            return MedianPruner()
        case "halving":
            return SuccessiveHalvingPruner(min_resource=first_step, reduction_factor=2)
    return NopPruner()


def sampler_at(place: int, seed: int, startup: int, given: Mapping[str, Any] | None) -> BaseSampler:
    """What draws the trial at a place, of which the first `startup` are given or random."""
    sampler: BaseSampler = TPESampler(seed=(seed * 1_000_003 + place) % _SEEDS, n_startup_trials=startup)
    if given is None:
        return sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PartialFixedSampler(dict(given), sampler)


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were not cut off, in their order: each at its place."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state is not TrialState.FAIL]


def place_of(study: optuna.Study, number: int) -> int:
    """The place of a trial that runs."""
    return sum(trial.number < number for trial in counted(study))


def note_process(trial: optuna.Trial) -> None:
    """Note in a trial who runs it, and that it is alive."""
    began = psutil.Process().create_time()
    who = {"host": socket.gethostname(), "pid": os.getpid(), "began": began, "seen": time.time()}
    trial.set_user_attr(PROCESS, who)


def give_up_dead(study: optuna.Study) -> list[int]:
    """Give up the trials whose processes run no more; their numbers."""
    gone = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        began = 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()
        if not _runs(trial.user_attrs.get(PROCESS) or {"host": None, "seen": began}):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            gone.append(trial.number)
    return gone


def _runs(process: Mapping[str, Any]) -> bool:
    """Whether a process runs; on another machine, whether it was heard of lately."""
    if process["host"] != socket.gethostname():
        return bool(time.time() - process["seen"] < SILENT_SECONDS)
    try:
        return bool(psutil.Process(process["pid"]).create_time() == process["began"])
    except psutil.NoSuchProcess:
        return False
