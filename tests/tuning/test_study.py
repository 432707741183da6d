"""A study that is interrupted, shared, or of something else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError, OperationalError

from commands import SOURCES, run
from ptune import TuneSettings
from ptune.errors import ConfigError, OutputError
from ptune.tuning.study import (
    PROCESS,
    SILENT_SECONDS,
    counted,
    give_up_dead,
    note_process,
    open_study,
    place_of,
    shown_url,
)
from ptune.tuning.trial import Watch
from ptune.tuning.tune_progress import TuneProgress
from tuning.conftest import Tune, outcome, results

ABOUT: dict[str, Any] = {"of": {"model": "m", "tokenizer": "t", "rows": "r", "held_out_rows": "h"}, "with": {"seed": 1}}


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="ptune", storage=url_of(folder))


def begin(task: list[object], folder: Path, *more: object) -> subprocess.Popen[str]:
    """`ptune tune` in a process of its own."""
    command = [sys.executable, "-m", "ptune", "tune", *map(str, [*task, "--output", folder, *more])]
    settings = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_trial(process: subprocess.Popen[str], folder: Path, number: int) -> None:
    """Wait until the trial of that number, or a later one, has been measured once and runs on."""
    while process.poll() is None:
        time.sleep(0.02)
        try:
            trials = study_in(folder).trials
        except Exception:  # noqa: BLE001 (not begun yet)
            continue
        if any(trial.intermediate_values and not trial.state.is_finished() for trial in trials[number:]):
            return
    pytest.fail(process.communicate()[1])


def test_killed_within_a_trial_it_goes_on_as_if_nothing_had_happened(
    searched: Path, task: list[object], tmp_path: Path
):
    folder = tmp_path / "out"
    process = begin(task, folder, "--trials", 10)
    wait_for_trial(process, folder, 2)
    process.send_signal(signal.SIGSTOP)
    process.kill()
    process.wait()
    states = [trial.state for trial in study_in(folder).trials]
    assert states[:2] == [TrialState.COMPLETE] * 2
    assert states[2] in (TrialState.RUNNING, TrialState.COMPLETE)
    assert list(folder.glob(".trial-*"))
    ran = run("tune", "--resume", folder)
    assert ran.code == 0, ran.err
    assert "trial 1/10" not in ran.err
    assert "trial 10/10" in ran.err
    assert outcome(folder) == outcome(searched)
    best = "best/adapter_model.safetensors"
    assert (folder / best).read_bytes() == (searched / best).read_bytes()
    assert not list(folder.glob(".trial-*"))


def test_a_signal_ends_the_trial_at_hand_and_says_how_to_go_on(
    searched: Path, tmp_path: Path, tune_into: Tune, monkeypatch: pytest.MonkeyPatch
):
    folder, step_end = tmp_path / "out", Watch.on_step_end

    def interrupted(self: Watch, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trial.number == 1 and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_end", interrupted)
        ran = tune_into(folder, "--trials", 3)
    assert ran.code == 143
    assert "SIGTERM: stopping after this step; the trials before it are kept" in ran.err
    assert ran.err.splitlines()[-1].endswith(f"Go on with: ptune tune --resume {folder}")
    assert not (folder / "results.json").exists()
    assert run("tune", "--resume", folder).code == 0
    assert outcome(folder) == outcome(searched)[:3]


def test_a_signal_between_two_trials(tmp_path: Path, tune_into: Tune, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TuneProgress, "done", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    ran = tune_into(tmp_path / "out", "--trials", 3)
    assert ran.code == 130
    assert "stopped between two trials; the trials that have ended are kept. Go on with" in ran.err.splitlines()[-1]
    assert [trial.state.name for trial in study_in(tmp_path / "out").trials] == ["COMPLETE"]


def test_more_trials_and_no_more_time(searched: Path, tmp_path: Path):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    assert run("tune", "--resume", "--output", folder, "--trials", 11, "--time-limit", 1e-9).code == 0
    assert outcome(folder) == outcome(searched)
    ran = run("tune", "--resume", folder, "--trials", 11, "--time-limit", 10)
    assert ran.code == 0, ran.err
    assert outcome(folder)[:10] == outcome(searched)
    assert len(outcome(folder)) == 11
    assert (
        json.loads(json.dumps(results(folder)["best"]))["held_out_loss"] <= results(searched)["best"]["held_out_loss"]
    )


def test_processes_share_a_study(task: list[object], tmp_path: Path):
    """Both begin at once, in one folder; no trial is run twice, and there are as many as asked for."""
    folder = tmp_path / "out"
    processes = [begin(task, folder, "--trials", 7, "--resume", "--max-steps", 16) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    study = study_in(folder)
    assert len(counted(study)) == 7
    assert all(trial.state.is_finished() for trial in study.trials)
    assert len({trial.user_attrs[PROCESS]["pid"] for trial in counted(study)}) == 2
    assert len({json.dumps(trial.params) for trial in counted(study)}) == 7
    kept = json.loads((folder / "best" / "ptune.json").read_text())["metrics"]["held_out_loss_after"]
    assert kept == study.best_value


def test_a_folder_in_which_another_process_begins(tmp_path: Path, tune_into: Tune):
    (tmp_path / "study.db").touch()
    (tmp_path / ".tune.yaml.1.tmp").touch()
    ran = tune_into(tmp_path, "--trials", 1)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "holds a search already" in ran.err
    ran = tune_into(tmp_path, "--trials", 1, "--resume")
    assert ran.code == 0, ran.err
    assert len(outcome(tmp_path)) == 1


def test_another_folder_joins_through_the_database(searched: Path, tmp_path: Path, tune_into: Tune):
    """As a second machine does; the best prompt of a trial that ran elsewhere is not here."""
    there, here = Path(shutil.copytree(searched, tmp_path / "there")), tmp_path / "here"
    ran = tune_into(here, "--storage", url_of(there), "--trials", 10)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "is there already. Pass --resume" in ran.err
    assert not here.exists()
    ran = tune_into(here, "--storage", url_of(there), "--trials", 10, "--resume")
    assert ran.code == 0, ran.err
    assert outcome(here) == outcome(searched)
    assert not (here / "study.db").exists()
    assert not (here / "best").exists()
    assert f"ptune train --config {here / 'best.yaml'}" in ran.out


def test_a_trial_that_another_process_gave_up_is_dropped(
    tmp_path: Path, tune_into: Tune, monkeypatch: pytest.MonkeyPatch
):
    folder, step_end = tmp_path / "out", Watch.on_step_end
    given_up = []

    def lost(self: Watch, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (self.trial.number, state.global_step) in ((1, 3), (3, 8)):
            if state.global_step == 8:
                step_end(self, args, state, control, **kwargs)
            given_up.append(self.trial.number)
            study_in(folder).tell(self.trial.number, state=TrialState.FAIL)
            if state.global_step == 8:
                return
        step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", lost)
    ran = tune_into(folder, "--trials", 3)
    assert ran.code == 0, ran.err
    assert given_up == [1, 3]
    assert [trial.state.name for trial in study_in(folder).trials] == [
        "COMPLETE",
        "FAIL",
        "COMPLETE",
        "FAIL",
        "COMPLETE",
    ]


def test_only_trials_of_processes_that_are_gone_are_given_up(tmp_path: Path):
    study = open_study(url_of(tmp_path), TuneSettings(), ABOUT, resume=False, overwrite=False)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    changes: list[dict[str, Any]] = [
        {},
        {"pid": gone.pid},
        {"began": 1.0},
        {"host": "elsewhere", "pid": gone.pid},
        {"host": "elsewhere", "seen": time.time() - SILENT_SECONDS},
    ]
    for change in changes:
        trial = study.ask()
        note_process(trial)
        trial.set_user_attr(PROCESS, {**trial.user_attrs[PROCESS], **change})
    give_up_dead(study)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "FAIL", "FAIL", "RUNNING", "FAIL"]
    assert [place_of(study, number) for number in (0, 3, 5)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"of": {"model": "n"}}, "was begun with another model."),
        ({"of": {"tokenizer": "n", "rows": "n"}}, "another tokenizer, other training rows."),
        ({"of": {"held_out_rows": "n"}}, "other held-out rows."),
        ({"with": {"seed": 2}}, "was begun with seed=1, not 2."),
    ],
)
def test_a_study_of_something_else_is_refused(tmp_path: Path, change: dict[str, Any], said: str):
    open_study(url_of(tmp_path), TuneSettings(), ABOUT, resume=False, overwrite=False)
    now = {part: {**values, **change.get(part, {})} for part, values in ABOUT.items()}
    with pytest.raises(ConfigError) as caught:
        open_study(url_of(tmp_path), TuneSettings(), now, resume=True, overwrite=False)
    assert said in str(caught.value)
    assert "'ptune'" in str(caught.value)
    assert url_of(tmp_path) in str(caught.value)
    other = TuneSettings(study_name="other")
    assert open_study(url_of(tmp_path), other, now, resume=False, overwrite=False).study_name == "other"


def test_a_study_of_somebody_elses_is_refused(tmp_path: Path):
    theirs = optuna.create_study(storage=url_of(tmp_path), study_name="ptune")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ConfigError, match="is not ptune's"):
        open_study(url_of(tmp_path), TuneSettings(), ABOUT, resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("study.db", "cannot be used: Could not parse SQLAlchemy URL"),
        ("nosuch://x/y", "cannot be used: Can't load plugin"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("postgresql://me:secret@localhost/x", "postgresql://me:***@localhost/x"),
        ("redis://x", "cannot be"),
    ],
)
def test_a_database_that_cannot_be_opened(url: str, said: str):
    with pytest.raises(OutputError) as caught:
        open_study(url, TuneSettings(), ABOUT, resume=False, overwrite=False)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("CREATE TABLE studies", {}, Exception("table studies already exists")),
        IntegrityError("INSERT INTO alembic_version", {}, Exception("UNIQUE constraint failed")),
    ],
)
def test_another_process_makes_the_tables_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    errors = [error]

    class Racing(optuna.storages.RDBStorage):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if errors:
                raise errors.pop()
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(optuna.storages, "RDBStorage", Racing)
    assert open_study(url_of(tmp_path), TuneSettings(), ABOUT, resume=False, overwrite=False).trials == []
    assert not errors


def test_passwords_are_not_written_down(tmp_path: Path):
    assert shown_url("mysql://me:secret@host/x") == "mysql://me:***@host/x"
    (tmp_path / "tune.yaml").write_text("model: m\ndata: d\neval_rows: 1\nstorage: mysql://me:***@host/x\n")
    ran = run("tune", "--resume", tmp_path)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "the password of mysql://me:***@host/x was not written down. Give the whole URL with --storage." in ran.err


def test_a_database_that_breaks_on_the_way(tmp_path: Path, tune_into: Tune, monkeypatch: pytest.MonkeyPatch):
    folder, step_end = tmp_path / "out", Watch.on_step_end

    def broken(self: Watch, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trial.number == 1:
            with sqlite3.connect(folder / "study.db") as database:
                database.execute("DROP TABLE trial_intermediate_values")
        step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", broken)
    ran = tune_into(folder, "--trials", 2)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert "the study's database sqlite:///" in ran.err.splitlines()[-1]
    assert "no such table" in ran.err.splitlines()[-1]
