"""`TrainRecipe`: faults all at once, defaults that suit the encoder, and the configuration it describes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from commands import SOURCES
from ptune.choices import ENCODER_NAMES, LEARNING_RATES
from ptune.config import PromptTuningInit
from ptune.errors import ConfigError
from ptune.prompt.build import encoder_kind
from ptune.recipe import TrainRecipe


def recipe(**values: object) -> TrainRecipe:
    return TrainRecipe(**{"model": "m", "data": "d", "output": "o", **values})


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"model": "", "data": "", "output": ""}, ["model, data and output are missing."]),
        ({"data": ""}, ["data is missing."]),
        ({"model": None}, ["model must be text, not None"]),
        ({"limit": "5"}, ["limit must be a whole number, not '5'"]),
        ({"limit": True}, ["limit must be a whole number, not True"]),
        ({"overwrite": 1}, ["overwrite must be true or false, not 1"]),
        ({"columns": ["a"]}, ["columns must be a table"]),
        ({"encoder": "mpl"}, ["unknown encoder 'mpl'. Did you mean 'mlp'?"]),
        ({"dtype": "float8"}, ["unknown dtype 'float8'"]),
        ({"max_length": 1}, ["max_length must be at least 2, not 1"]),
        ({"eval_data": "x", "eval_rows": 2}, ["exclude each other"]),
        ({"tokens_per_batch": 0}, ["tokens_per_batch must be at least 1, not 0"]),
        ({"tokens_per_batch": 512, "packing": False}, ["tokens_per_batch=512 needs packing"]),
        ({"init": "text"}, ["init_text is needed"]),
        ({"init_text": "  "}, ["init_text", "must not be empty"]),
        ({"init": "vocab", "init_text": "x"}, ["init_text is given, but init is vocab"]),
        (
            {"init_text": "x", "init_text_tokens": "last"},
            ["init_text_tokens is for the encoders prefix"],
        ),
        ({"encoder": "prefix", "init_text_tokens": "last"}, ["init_text_tokens is given, but no init_text"]),
        ({"encoder": "prefix", "init_text": "x", "init_text_tokens": "lest"}, ["'lest'. Did you mean 'last'?"]),
        ({"num_frozen_tokens": 1}, ["num_frozen_tokens is for the encoder prefix, not embedding"]),
        ({"encoder": "prefix", "num_frozen_tokens": 11}, ["from 0 to num_virtual_tokens=10, not 11"]),
        ({"encoder": "prefix", "num_frozen_tokens": -1}, ["num_frozen_tokens must be at least 0, not -1"]),
        ({"encoder": "prefix-mlp", "encoder_hidden_size": 0}, ["encoder_hidden_size must be", "not 0"]),
        ({"encoder_dropout": 1.0, "num_virtual_tokens": 0}, ["num_virtual_tokens", "encoder_dropout"]),
        ({"data": "", "limit": 0, "encoder": "x"}, ["3 settings", "(1) data", "(2) unknown encoder", "(3) limit"]),
    ],
)
def test_faults(values: dict[str, object], fragments: list[str]):
    with pytest.raises(ConfigError) as caught:
        recipe(**values)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("encoder", ENCODER_NAMES)
def test_defaults_follow_the_encoder(encoder: str):
    made = recipe(encoder=encoder)
    assert "learning_rate" not in made.trainer_defaults()
    assert LEARNING_RATES[encoder] > 0
    assert encoder_kind(made.prompt_config()) == encoder


@pytest.mark.parametrize(
    ("values", "init"),
    [
        ({}, "SAMPLE_VOCAB"),
        ({"init_text": "a"}, "TEXT"),
        ({"init": "vocab"}, "SAMPLE_VOCAB"),
        ({"init": "random"}, "RANDOM"),
    ],
)
def test_start_of_the_prompt(values: dict[str, object], init: str):
    assert recipe(**values).prompt_config().init is PromptTuningInit(init)


def test_deep_prompts():
    made = recipe(encoder="prefix", num_frozen_tokens=2, init_text="a", init_text_tokens="even").prompt_config()
    assert (type(made).__name__, made.num_frozen_tokens) == ("CartridgeConfig", 2)
    assert (made.init, made.init_text_tokens.value) == (PromptTuningInit.TEXT, "EVEN")
    made = recipe(encoder="prefix-mlp", encoder_hidden_size=7).prompt_config()
    assert (type(made).__name__, made.prefix_projection, made.encoder_hidden_size) == ("PrefixTuningConfig", True, 7)
    assert recipe(encoder="prefix").prompt_config().init is PromptTuningInit.SAMPLE_VOCAB


def test_evaluation_only_with_held_out_rows():
    assert recipe().trainer_defaults()["eval_strategy"] == "no"
    assert recipe(eval_rows=1).trainer_defaults()["eval_strategy"] == "epoch"
    assert recipe(eval_data="x").trainer_defaults()["eval_strategy"] == "epoch"


def test_rows_of_similar_length_only_without_packing():
    assert recipe().trainer_defaults()["train_sampling_strategy"] == "random"
    assert recipe(packing=False).trainer_defaults()["train_sampling_strategy"] == "group_by_length"


def test_whole_number_where_a_number_is_wanted():
    assert recipe(encoder_dropout=0).prompt_config().encoder_dropout == 0


def test_needs_no_library():
    code = "import sys, ptune.recipe; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCES)}, check=False).returncode == 0
