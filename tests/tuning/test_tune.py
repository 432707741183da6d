"""A search against what it is made of: `ptune train`, the study in its database, the frozen model alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from rich.console import Console

import ptune
import ptune.training.run_model as run_model
import ptune.tuning.prepared
from commands import run
from ptune import Answerer, TrainRecipe, TuneSettings, tune
from ptune.choices import LEARNING_RATES
from ptune.errors import ConfigError, TrainingError
from ptune.prompt.default_rate import default_learning_rate
from ptune.saved.format import read_prompt
from ptune.tuning.choice import given_choice
from ptune.tuning.study import pruner_called
from ptune.tuning.trial import measured_steps
from tuning.conftest import Tune, outcome, results

QUIET = Console(quiet=True)


@pytest.fixture
def recipe(tiny_model_dir: Path, data_file: Path, tmp_path: Path) -> TrainRecipe:
    return TrainRecipe(model=str(tiny_model_dir), data=str(data_file), eval_rows=8, output=str(tmp_path / "out"))


def short(recipe: TrainRecipe, **settings: Any) -> ptune.tuning.tune_result.TuneResult:
    chosen = TuneSettings(**{"num_virtual_tokens": (2, 4), "trials": 2, **settings})
    return tune(recipe, chosen, {"max_steps": 4, "use_cpu": True}, QUIET)


def test_everything_is_there_and_agrees(searched: Path):
    found = results(searched)
    assert [one["trial"] for one in found["trials"]] == list(range(1, 11))
    complete = [one for one in found["trials"] if one["state"] == "complete"]
    assert found["best"] == min(complete, key=lambda one: one["held_out_loss"])
    assert found["best"]["held_out_loss"] < found["frozen_loss"]
    details = json.loads((searched / "best" / "ptune.json").read_text())
    assert details["metrics"]["held_out_loss_after"] == found["best"]["held_out_loss"]
    assert details["metrics"]["held_out_loss_before"] == found["frozen_loss"]
    assert details["encoder"] == found["best"]["encoder"]
    assert len(read_prompt(searched / "best").vectors) == found["best"]["num_virtual_tokens"]
    assert (searched / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in searched.iterdir()) == [
        ".best.lock", "best", "best.yaml", "results.json", "said.json", "study.db", "trials.png", "tune.yaml",
    ]  # fmt: skip


def test_the_study_is_optunas_own(searched: Path):
    study = optuna.load_study(study_name="ptune", storage=f"sqlite:///{searched / 'study.db'}")
    found = results(searched)
    assert study.best_value == found["best"]["held_out_loss"]
    assert [trial.params["encoder"] for trial in study.trials] == [one["encoder"] for one in found["trials"]]
    states = {"COMPLETE": "complete", "PRUNED": "pruned"}
    assert [states[trial.state.name] for trial in study.trials] == [one["state"] for one in found["trials"]]


def test_best_recipe_reaches_the_same_loss(searched: Path, tmp_path: Path):
    ran = run("train", "--config", searched / "best.yaml", "--output", tmp_path / "again", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["held_out_loss_after"] == results(searched)["best"]["held_out_loss"]
    for name in ("adapter_model.safetensors", "encoder.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (searched / "best" / name).read_bytes()


def test_the_best_prompt_answers(searched: Path):
    assert isinstance(Answerer.open(str(searched / "best")).answer("aa 1", max_new_tokens=4), str)


def test_a_pipe_gets_a_line_a_trial_and_a_table(searched: Path):
    out, err = json.loads((searched / "said.json").read_text())
    for one in results(searched)["trials"]:
        (line,) = [line for line in err.splitlines() if line.startswith(f"trial {one['trial']}/10: ")]
        said = f"given up after step {one['steps']}" if one["state"] == "pruned" else "held-out loss"
        assert f"{one['encoder']}, {one['num_virtual_tokens']} virtual tokens" in line
        assert said in line
        assert f"{one['held_out_loss']:.4f}" in line
        assert f"{one['learning_rate']:g}" in out
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert len(rows) == 10
    assert f"{results(searched)['best']['held_out_loss']:.4f}" in rows[0]
    assert "best: trial " in out


def test_given_up_trials_were_worse_than_the_median(searched: Path):
    """From the sixth on; measured at an eighth, a quarter, half of the steps, and at the end."""
    trials = results(searched)["trials"]
    pruned = [one for one in trials if one["state"] == "pruned"]
    assert pruned
    assert all(one["state"] == "complete" for one in trials[:5])
    for one in pruned:
        step = one["steps"]
        assert step in (1, 2, 4)
        earlier = [
            dict(map(tuple, other["measured"]))[step]
            for other in trials[: one["trial"] - 1]
            if other["state"] == "complete"
        ]
        middle = sorted(earlier)
        median = (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
        assert min(loss for _, loss in one["measured"]) > median
    for one in trials:
        if one["state"] == "complete":
            assert [step for step, _ in one["measured"]] == [1, 2, 4, 8]


def test_the_same_seed_gives_the_same_trials(searched: Path, tmp_path: Path, tune_into: Tune):
    assert tune_into(tmp_path / "a", "--trials", 4).code == 0
    assert outcome(tmp_path / "a") == outcome(searched)[:4]
    assert tune_into(tmp_path / "b", "--trials", 3, "--seed", 7).code == 0
    assert outcome(tmp_path / "b") != outcome(searched)[:3]


def test_the_model_is_loaded_once_and_stays_as_it_was(recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch):
    loaded = []
    load = run_model.load_base

    def counting(*args: Any, **options: Any) -> Any:
        loaded.append(load(*args, **options))
        loaded.append({name: weight.clone() for name, weight in loaded[0].named_parameters()})
        return loaded[0]

    monkeypatch.setattr(run_model, "load_base", counting)
    found = short(recipe, trials=3, encoder=("lstm", "residual"))
    base, before = loaded
    assert len(found.trials) == 3
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_parameters())


def test_first_trial_is_the_recipe_and_the_next_are_spread():
    recipe = TrainRecipe(model="m", data="d", output="o", eval_rows=1, num_virtual_tokens=20)
    settings = TuneSettings()
    first = given_choice(0, settings, recipe, LEARNING_RATES, 1)
    assert first == {"encoder": recipe.encoder, "num_virtual_tokens": 20, "init": "data", "times_own_rate": 1.0}
    for seed in (1, 2, 42):
        spread = [given_choice(place, settings, recipe, LEARNING_RATES, seed) or {} for place in range(1, 9)]
        rates = sorted(one["times_own_rate"] for one in spread)
        eighths = [0.1 * 100 ** (number / 8) for number in range(9)]
        assert all(low <= rate < high for low, rate, high in zip(eighths[:-1], rates, eighths[1:], strict=True))
        assert sorted(one["encoder"] for one in spread) == sorted(2 * settings.encoder)
        assert sorted(one["num_virtual_tokens"] for one in spread) == sorted(2 * settings.num_virtual_tokens)
    assert given_choice(9, settings, recipe, LEARNING_RATES, 1) is None


def test_a_range_of_rates_holds_for_every_encoder(recipe: TrainRecipe):
    found = short(recipe, trials=4, learning_rate=(1e-4, 2e-4))
    assert all(1e-4 <= one.learning_rate <= 2e-4 for one in found.trials)
    fixed = short(TrainRecipe(**{**vars(recipe), "overwrite": True}), learning_rate=[0.00123456], encoder="lstm")
    assert {(one.learning_rate, one.encoder) for one in fixed.trials} == {(0.00123456, "lstm")}


def test_rates_without_a_range_are_multiples_of_the_encoders_own(searched: Path, tiny_model_dir: Path):
    base = ptune.load_model(str(tiny_model_dir))
    for one in results(searched)["trials"]:
        own = default_learning_rate(base, one["encoder"])
        assert 0.1 * own <= one["learning_rate"] <= 10 * own
        assert float(f"{one['learning_rate']:.3g}") == one["learning_rate"]


def test_a_text_start_is_tried_where_there_is_a_text(recipe: TrainRecipe):
    recipe = TrainRecipe(**{**vars(recipe), "init_text": "yes or no"})
    found = short(recipe, init="text", encoder="embedding", trials=1)
    assert found.best.init == "text"
    written = yaml.safe_load(found.recipe.read_text())
    assert (written["init"], written["init_text"]) == ("text", "yes or no")
    assert "text" in TuneSettings().inits(recipe)


def test_a_trial_that_diverges_is_noted_and_the_search_goes_on(recipe: TrainRecipe):
    found = short(
        recipe, encoder="embedding", num_virtual_tokens=2, init="random", learning_rate=(1e-3, 1e39), trials=4
    )
    failed = [one for one in found.trials if one.state == "failed"]
    assert failed
    assert all("at step" in (one.fault or "") for one in failed), failed
    assert found.best.state == "complete"


def test_a_search_in_which_nothing_trains_says_why(recipe: TrainRecipe):
    with pytest.raises(TrainingError, match=r"none of 2 trials came to its end; the first: .* step"):
        short(recipe, encoder="embedding", learning_rate=1e39)


def test_mixed_precision_is_not_put_on_again_and_again(recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch):
    found: list[Any] = []
    load = ptune.tuning.prepared.causal_model
    monkeypatch.setattr(ptune.tuning.prepared, "causal_model", lambda *args: found.append(load(*args)) or found[0])
    tune(recipe, TuneSettings(num_virtual_tokens=2, trials=2), {"max_steps": 2, "use_cpu": True, "bf16": True}, QUIET)
    assert vars(found[0])["forward"] == type(found[0]).forward.__get__(found[0])
    assert found[0].prompt_names == []


def test_halving_keeps_the_better_half(recipe: TrainRecipe):
    found = short(recipe, trials=6, pruner="halving")
    at_first = sorted(one.measured[0][1] for one in found.trials)
    assert any(one.state == "pruned" for one in found.trials)
    assert found.best.measured[0][1] <= at_first[2]
    assert not pruner_called("none", 1).prune(optuna.create_study(), optuna.trial.create_trial(value=1.0))


def test_steps_that_are_measured():
    assert measured_steps(200, 4) == (25, 50, 100, 200)
    assert measured_steps(3, 4) == (1, 3)
    assert measured_steps(1, 4) == (1,)
    assert measured_steps(10, 1) == (10,)


def test_settings_as_a_file_and_what_is_fixed(tmp_path: Path, task: list[object]):
    space = tmp_path / "space.yaml"
    space.write_text(
        "encoder: residual\nnum-virtual-tokens: [3]\ninit: [vocab]\nlearning_rate: [1e-3, 2e-3]\ntrials: 2\n"
    )
    flags = [word for word in task if word not in ("--num-virtual-tokens", 2, 4)]
    ran = run("tune", *flags, "--search-space", space, "--output", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    trials = json.loads(ran.out)["trials"]
    assert {(one["encoder"], one["num_virtual_tokens"], one["init"]) for one in trials} == {("residual", 3, "vocab")}
    assert all(1e-3 <= one["learning_rate"] <= 2e-3 for one in trials)


def test_what_does_not_go_with_a_search_is_said_all_at_once(recipe: TrainRecipe):
    bare = TrainRecipe(model="m", data="d", output="o", init_from="p")
    with pytest.raises(ConfigError) as caught:
        tune(bare, TuneSettings(init="text"), {"save_steps": 1, "learning_rate": 1}, QUIET)
    for part in ("5 settings", "init_from", "save_steps", "learning_rate", "held-out rows", "init_text"):
        assert part in str(caught.value)


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tune_into: Tune):
    monkeypatch.setattr("ptune.tuning.tune_settings.find_spec", lambda name: None)
    ran = tune_into(tmp_path / "out")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "needs the package optuna, which is not installed" in ran.err
    assert not (tmp_path / "out").exists()


def test_overwrite_begins_anew(searched: Path, tmp_path: Path, tune_into: Tune):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    ran = tune_into(folder, "--trials", 2, "--overwrite", "--encoder", "lstm")
    assert ran.code == 0, ran.err
    assert {one["encoder"] for one in outcome(folder)} == {"lstm"}
    assert len(outcome(folder)) == 2
    assert json.loads((folder / "best" / "ptune.json").read_text())["encoder"] == "lstm"
