"""Every option of `transformers.TrainingArguments` under its own name, as a flag and as a recipe key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from commands import Ran
from ptune.choices import CHECKPOINTING
from ptune.cli.flags import dashed, flags_of
from ptune.cli.recipe_file import own_names
from ptune.cli.train import build_parser, check_keys
from ptune.cli.trainer_flags import check_flags, given_names, given_values, make_arguments, trainer_parser
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe

NAME = "per_device_train_batch_size"
NAMES = [item.name for item in fields(TrainingArguments) if item.init]


def recipe(**values: object) -> TrainRecipe:
    return TrainRecipe(model="m", data="d", output="o", **values)


def arguments(*words: str, values: dict[str, object] | None = None, **own: object) -> TrainingArguments:
    return make_arguments(recipe(**own), trainer_parser(), ["--use-cpu", *words], values or {}, Path("r.yaml"))


def test_every_option_is_a_flag_and_a_key():
    own, trainer = build_parser(), trainer_parser()
    known = {*own.flags(), *flags_of(trainer)}
    assert {"--" + name.replace("_", "-") for name in NAMES} <= known
    for name in NAMES:
        check_flags(dashed([f"--{name}=x", "--" + name.replace("_", "-")]), own, trainer)
    check_keys({name: 1 for name in NAMES if name not in own_names()}, Path("r.yaml"))


def test_own_flags_do_not_hide_options():
    assert set(NAMES) & set(own_names()) == {"output_dir"}
    assert own_names()["output_dir"] == "output"


def test_option_reaches_the_arguments():
    args = arguments("--weight_decay", "0.5", "--adam-beta1", "0.7", "--bf16", "--logging-steps=3")
    assert (args.weight_decay, args.adam_beta1, args.bf16, args.logging_steps) == (0.5, 0.7, True, 3)
    assert args.output_dir == "o"


def test_a_rate_that_is_given():
    assert arguments("--learning-rate", "0.25").learning_rate == 0.25
    assert arguments(values={"learning_rate": "2e-1"}).learning_rate == 0.2


def test_flag_wins_over_recipe_and_recipe_over_default():
    values = {"max_steps": 7, "logging_steps": 5, "bf16": True}
    args = arguments("--max-steps", "9", values=values)
    assert (args.max_steps, args.logging_steps, args.bf16, args.save_total_limit) == (9, 5, True, 2)


@pytest.mark.parametrize(
    ("words", "values"),
    [(["--per_device_train_batch_size=4"], {}), (["--per-device-train-batch-size", "4"], {}), ([], {NAME: 4})],
)
def test_rows_or_tokens_a_batch(words: list[str], values: dict[str, object]):
    with pytest.raises(ConfigError, match="tokens_per_batch=512 and per_device_train_batch_size exclude each other"):
        arguments(*words, values=values, tokens_per_batch=512)
    assert arguments(*words, values=values).per_device_train_batch_size == 4
    assert arguments("--per-device-eval-batch-size", "3", tokens_per_batch=512).per_device_eval_batch_size == 3


def test_names_that_were_given():
    words = ["--train_sampling_strategy", "random", "--seed=3", "--bf16"]
    assert given_names(words, {"max_steps": 1}) == {"train_sampling_strategy", "seed", "bf16", "max_steps"}


def test_recipe_values_with_no_spelling_as_flags():
    values = {"report_to": ["none"], "lr_scheduler_kwargs": {"num_cycles": 2}, "save_total_limit": None}
    args = arguments(values=values)
    assert args.report_to == []
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert args.save_total_limit is None


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"max_steps": [1]}, "r.yaml: max_steps cannot be [1]"),
        ({"max_steps": None}, "r.yaml: max_steps cannot be null"),
        ({"learning_rate": "fast"}, "r.yaml: argument --learning-rate: invalid float value: 'fast'"),
        ({"bf16": "perhaps"}, "r.yaml: argument --bf16"),
    ],
)
def test_recipe_value_that_does_not_fit(values: dict[str, object], fragment: str):
    with pytest.raises(ConfigError) as caught:
        arguments(values=values)
    assert fragment in str(caught.value)


def test_bare_flag_means_true():
    name = CHECKPOINTING
    args = arguments("--disable-tqdm", f"--{name}", "--ddp-static-graph")
    assert (args.disable_tqdm, getattr(args, name), args.ddp_static_graph) == (True, True, True)
    assert arguments().disable_tqdm is False


def test_output_dir_is_output(train: Callable[..., Ran], tmp_path: Path):
    ran = train("--json", output=None, output_dir=tmp_path / "elsewhere")
    assert json.loads(ran.out)["output"] == str(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "ptune.json").is_file()


def test_a_flag_that_turns_something_off_is_that_argument_given():
    words = ["--no-dataloader-pin-memory", "--max-steps", "3", "--lr-scheduler-type=linear"]
    names = given_names(words, {})
    assert names == {"dataloader_pin_memory", "max_steps", "lr_scheduler_type"}
    args = arguments(*words)
    assert given_values(args, names) == {"dataloader_pin_memory": False, "max_steps": 3, "lr_scheduler_type": "linear"}
