"""`ptune compress`: a long text becomes a short prompt."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptune.cli.begun import with_begun
from ptune.cli.flags import Parser, add_fields, dashed
from ptune.cli.recipe_file import own_names, own_values, read_recipe
from ptune.cli.train import check_keys
from ptune.cli.trainer_flags import check_flags, given_names, given_values, make_arguments, trainer_parser
from ptune.compression.compress_settings import (
    ARGUMENT_DEFAULTS,
    NOT_HERE,
    OWN_DEFAULTS,
    SETTINGS_FILE,
    CompressSettings,
    split_settings,
)
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe

_MORE = """\
The model studies the text: it asks itself questions about parts of it (or takes yours, --data F; no answers needed),
answers them with the text in front, and the prompt learns to give the same distributions without the text. By default
64 virtual tokens of keys and values in every layer (--encoder prefix), started at the text's own; --eval-data F scores
the result on questions with right answers.

Every training option of transformers is a flag: --num-train-epochs, --max-steps, --learning-rate, --seed, --use-cpu, …
(see ptune train --help).

OUTPUT is a prompt folder as ptune train writes it, with study/ (questions, answers and what the model held likely),
compression.json and compression.md. Interrupted: ptune compress --resume OUTPUT. Other lengths or encoders on the same
study: --study OUTPUT."""

_SAID = {
    "encoding": "encoding of the text and of other text files, such as gb18030; by default UTF-8",
    "eval_data": "questions with right answers, for scores in the report; they are not trained on",
    "eval_rows": f"questions to hold out, a quarter of them at most (default: {OWN_DEFAULTS['eval_rows']})",
    "max_length": f"longest question with its answer, in tokens (default: {OWN_DEFAULTS['max_length']})",
    "encoder": (
        "prompt encoder; prefix and prefix-mlp give keys and values of every layer, the others vectors (default: "
        f"{OWN_DEFAULTS['encoder']})"
    ),
    "num_virtual_tokens": f"virtual tokens (default: {OWN_DEFAULTS['num_virtual_tokens']})",
    "overwrite": "replace the compression in OUTPUT",
}


def build_parser() -> Parser:
    """The parser of ptune's own flags; the rest go to `TrainingArguments`."""
    parser = Parser(
        "compress",
        "Compress a text into a prompt: the model's answers about it, without the text in front.",
        usage="TEXT_FILE --model MODEL --output OUTPUT [flags]\n       ptune compress --resume OUTPUT [flags]",
        more=_MORE,
    )
    parser.add_argument("--config", type=Path, metavar="YAML", default=argparse.SUPPRESS, help="flags as YAML keys")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line on stdout")
    groups = add_fields(parser, CompressSettings)
    add_fields(parser, TrainRecipe, leave_out=NOT_HERE, said=_SAID, groups=groups)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    words = list(argv)
    # Not left to argparse, which would take the value behind a training flag for the text.
    first = {"text": words.pop(0)} if words and not words[0].startswith("-") else {}
    own, rest = parser.parse_known_args(dashed(words))
    values = {**vars(own), **first}
    as_json, file = values.pop("json"), values.pop("config", None)
    from_file = {} if file is None else read_recipe(file)
    if values.get("resume", from_file.get("resume")):
        file, from_file = with_begun(
            values, from_file, file, command="compress", what="compression", settings=SETTINGS_FILE
        )
    train = {key: name for key, name in own_names().items() if name not in NOT_HERE}
    names = {**train, **own_names(CompressSettings)}
    foreign = {key: value for key, value in from_file.items() if key not in names}
    trainer = None
    if rest or foreign:
        trainer = trainer_parser("compress")
        check_flags(rest, parser, trainer)
        check_keys(foreign, file, own=names)
    merged = {**own_values(from_file), **own_values(from_file, CompressSettings), **values}
    if not merged.get("text"):
        raise ConfigError("the text file is missing.", hint="Put it first: ptune compress TEXT_FILE --model MODEL …")
    settings, recipe = _settings(merged)
    given = given_names(rest, foreign)
    from ptune.cli.quiet import console, output, quiet_libraries

    quiet_libraries()
    from ptune.compression.compress import run_compression
    from ptune.compression.compress_report import report_table
    from ptune.evaluation.page import show_tables

    defaults = {name: value for name, value in ARGUMENT_DEFAULTS.items() if name not in given}
    args = make_arguments(recipe, trainer or trainer_parser("compress"), rest, {**defaults, **foreign}, file)
    result = run_compression(settings, recipe, args, console(), given=given_values(args, given))
    if as_json:
        print(json.dumps(result.to_dict()))
    elif result.report is not None:
        show_tables([report_table(result.report)], output(width=120))
    return 0


def _settings(values: Mapping[str, Any]) -> tuple[CompressSettings, TrainRecipe]:
    """The compression's own values, and the recipe of its prompt."""
    try:
        settings, recipe, _ = split_settings(values)
    except ConfigError as error:
        raise ConfigError(error.message, hint=error.hint or "See ptune compress --help.") from error
    return settings, recipe
