"""A flag as another program calls it is answered with ptune's name for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run
from ptune.cli import generate
from ptune.cli.names_elsewhere import ELSEWHERE, meant
from ptune.cli.recipe_file import own_names
from ptune.cli.trainer_flags import trainer_names
from ptune.tuning.tune_settings import TuneSettings

MEANT = {
    "--pre-seq-len": "--num-virtual-tokens",
    "--pre_seq_len": "--num-virtual-tokens",
    "--prefix_projection": "--encoder mlp",
    "--lr": "--learning-rate",
    "--epochs": "--num-train-epochs",
    "--batch_size": "--per-device-train-batch-size",
    "--cutoff_len": "--max-length",
    "--model_name_or_path": "--model",
    "--quantization_bit": "--quantization",
    "--lerning-rate": "--learning-rate",
}


@pytest.mark.parametrize("given", MEANT)
def test_on_the_command_line(given: str):
    ran = run("train", "--model", "m", "--data", "d", "--output", "o", given, "8")
    dashed = given.replace("_", "-")
    assert ran.code == 2
    assert f"unknown flag --{dashed.strip('-')}, did you mean {MEANT[given]}?" in ran.err


def test_in_a_recipe(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    for key, meaning in (("pre_seq_len", "num_virtual_tokens"), ("prefix_projection", "encoder: mlp")):
        recipe.write_text(f"{key}: 8\n")
        assert f"Did you mean '{meaning}'?" in run("train", "--config", recipe).err


def test_where_the_command_has_no_such_flag_spelling_decides():
    assert "did you mean --max-new-tokens?" in run("generate", "d", "x", "--max-length", "3").err
    assert "--learning-rate" not in run("generate", "d", "x", "--lr", "3").err


def test_every_name_is_unknown_and_every_meaning_is_known():
    trained = {*own_names(), *own_names(TuneSettings), *trainer_names()}
    answered = {flag.removeprefix("--").replace("-", "_") for flag in generate.build_parser().flags()}
    for sense, names in ELSEWHERE.items():
        field = sense.split()[0]
        assert field in trained | answered, field
        known = trained if field in trained else answered
        for name in names.split():
            assert name not in known, name
            assert meant(name, known) == sense
