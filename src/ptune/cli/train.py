"""`ptune train`: a model and a data file become a prompt folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptune.cli.flags import Parser, add_fields, dashed
from ptune.cli.recipe_file import own_names, own_values, read_recipe, unknown_key
from ptune.cli.trainer_flags import (
    check_flags,
    given_names,
    make_arguments,
    trainer_names,
    trainer_parser,
    training_help,
)
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe


def build_parser() -> Parser:
    """The parser of ptune's own flags; the rest go to `TrainingArguments`."""
    parser = Parser(
        "train",
        "Train a soft prompt. The model stays frozen; OUTPUT becomes the prompt folder.",
        usage="--model MODEL --data DATA --output OUTPUT [flags]\n       ptune train --resume OUTPUT [flags]",
        more=training_help(),
    )
    parser.add_argument(
        "--config", type=Path, metavar="YAML", default=argparse.SUPPRESS, help="a recipe: flags as YAML keys"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line on stdout")
    add_fields(parser, TrainRecipe)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    own, rest = parser.parse_known_args(dashed(argv))
    values = vars(own)
    as_json = values.pop("json")
    recipe_file = values.pop("config", None)
    from_file = {} if recipe_file is None else read_recipe(recipe_file)
    if resume := values.get("resume", from_file.get("resume")):
        place, from_file = with_recorded(resume, values, from_file)
        recipe_file = recipe_file or place
    if folder := values.get("init_from", from_file.get("init_from")):
        from_file = {**encoder_of(folder, {**from_file, **values}), **from_file}
    foreign = {key: value for key, value in from_file.items() if key not in own_names()}
    trainer = None
    if rest or foreign:
        # Before anything else: a misspelt --model would otherwise be reported as a missing one.
        trainer = trainer_parser()
        check_flags(rest, parser, trainer)
        check_keys(foreign, recipe_file)
    recipe = make_recipe({**own_values(from_file), **values})
    from ptune.cli.quiet import console, quiet_libraries

    quiet_libraries()
    from ptune.training.train import train

    args = make_arguments(recipe, trainer or trainer_parser(), rest, foreign, recipe_file)
    result = train(recipe, args, console(), given=given_names(rest, foreign))
    if as_json and args.process_index == 0:
        print(json.dumps(result.to_dict()))
    return 0


def with_recorded(
    resume: str | bool, values: dict[str, Any], from_file: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Find the checkpoint to go on from, note it in `values`, and put its settings behind those of the file.

    Returns:
        The checkpoint, and the settings.

    Raises:
        ConfigError: There is none, or nothing says where to look.
    """
    from ptune.training.checkpoints import find_checkpoint
    from ptune.training.recorded import recorded_settings

    names = own_names()
    output = values.get("output") or next((from_file[key] for key in from_file if names.get(key) == "output"), None)
    if output is None and resume is True:
        raise ConfigError("nothing says which run to resume.", hint="Name its folder: ptune train --resume OUTPUT.")
    checkpoint = find_checkpoint(resume, Path(str(output)), lambda line: print(line, file=sys.stderr))
    assert checkpoint is not None
    values["resume"] = str(checkpoint)
    values.setdefault("output", str(checkpoint.absolute().parent if output is None else output))
    recipe, arguments = recorded_settings(checkpoint)
    return checkpoint, {**recipe, **arguments, **{key: from_file[key] for key in from_file if key != "resume"}}


def encoder_of(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What `--init-from` says of the encoder; where another one is asked for, its length alone."""
    from ptune.training.start import encoder_settings

    there = encoder_settings(folder)
    if given.get("encoder", there["encoder"]) == there["encoder"]:
        return there
    return {"num_virtual_tokens": there["num_virtual_tokens"]}


def check_keys(values: Mapping[str, Any], path: Path | None, own: Collection[str] | None = None) -> None:
    """Raise `ConfigError` for a key of the recipe that is nobody's flag; `own`: ptune's, by default those of train."""
    known = trainer_names()
    for key in values:
        if key not in known:
            assert path is not None
            raise unknown_key(path, key, [*(own_names() if own is None else own), *known])


def make_recipe(values: Mapping[str, Any]) -> TrainRecipe:
    """The recipe from flags and file."""
    try:
        return TrainRecipe(**values)
    except ConfigError as error:
        raise ConfigError(error.message, hint="See ptune train --help.") from error
