"""`ptune train`: a model and a data file become a prompt folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ptune.cli.flags import Parser, add_fields, dashed, read_recipe, unknown_flag
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe

_OWN = [item.name for item in fields(TrainRecipe)]
_RESERVED = {"output_dir": "output", "disable_tqdm": None}


def build_parser() -> Parser:
    """The parser of ptune's own flags; the rest go to `TrainingArguments`."""
    parser = Parser("train", "Train a soft prompt. The model stays frozen; OUTPUT becomes the prompt folder.")
    parser.add_argument("--config", type=Path, metavar="YAML", default=argparse.SUPPRESS, help="recipe with these keys")
    parser.add_argument("--json", action="store_true", default=False, help="print the result as one JSON line on stdout")
    add_fields(parser, TrainRecipe)
    parser.epilog = (
        "Every option of transformers.TrainingArguments is a flag too, under its own name: --learning-rate, "
        "--num-train-epochs, --max-steps, --per-device-train-batch-size, --gradient-accumulation-steps, --seed, "
        "--bf16, --report-to, --gradient-checkpointing, …"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    own, rest = parser.parse_known_args(dashed(argv))
    values = vars(own)
    as_json = values.pop("json")
    config_file = values.pop("config", None)
    if "columns" in values:
        values["columns"] = dict(values["columns"])
    from ptune.cli.quiet import console, quiet_libraries

    quiet_libraries()
    from ptune.training.run import train

    trainer_names = trainer_fields()
    from_file = {} if config_file is None else read_recipe(config_file, [*_OWN, *trainer_names])
    recipe = make_recipe({**{key: from_file[key] for key in from_file if key in _OWN}, **values})
    trainer_values = {key: value for key, value in from_file.items() if key not in _OWN}
    args = make_arguments(recipe, trainer_values, rest, parser)
    result = train(recipe, args, console())
    if as_json and args.process_index == 0:
        print(json.dumps(result.to_dict()))
    return 0


def make_recipe(values: Mapping[str, Any]) -> TrainRecipe:
    """The recipe from flags and file; faults are named by their flags."""
    try:
        return TrainRecipe(**values)
    except ConfigError as error:
        raise ConfigError(error.message, hint="Flags and recipe keys: see ptune train --help.") from error


def trainer_fields() -> list[str]:
    """Names of `transformers.TrainingArguments`."""
    from transformers import TrainingArguments

    return [item.name for item in fields(TrainingArguments) if item.init]


def make_arguments(recipe: TrainRecipe, values: Mapping[str, Any], words: Sequence[str], parser: Parser) -> Any:
    """`TrainingArguments` from ptune's defaults, the recipe file and the command line, the later ones winning.

    Raises:
        ConfigError: An unknown flag (the nearest is named) or a value that does not fit.
    """
    from transformers import HfArgumentParser, TrainingArguments

    class TrainerParser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise ConfigError(f"{message}.", hint="See ptune train --help.")

    trainer = TrainerParser(TrainingArguments, allow_abbrev=False)
    flags = parser.flags() + [flag for flag in trainer._option_string_actions if flag.startswith("--") and "_" not in flag]
    for name, ours in _RESERVED.items():
        if name in values or any(word.split("=")[0] == "--" + name.replace("_", "-") for word in words):
            raise ConfigError(f"{name} is set by ptune.", hint=f"Use {ours} instead." if ours else "Leave it out.")
    # Flags that exist are parsed; what is left is unknown. (argparse alone would take a misspelt flag's value for an argument.)
    for word in words:
        if word.startswith("--") and word.split("=")[0] not in flags:
            raise unknown_flag(word, flags, "train")
    defaults = {**recipe.trainer_defaults(), **values, "output_dir": recipe.output}
    trainer.set_defaults(**defaults)
    try:
        args, extra = trainer.parse_args_into_dataclasses(
            args=list(words), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"training arguments: {' '.join(str(error).split())}") from error
    if extra:
        raise unknown_flag(extra[0], flags, "train")
    return args
