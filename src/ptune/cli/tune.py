"""`ptune tune`: a search for the encoder, length, start and learning rate that suit a model and data."""

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
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe
from ptune.tuning.tune_settings import NOT_HERE, SEARCHED, SETTINGS_FILE, TuneSettings

_HIDDEN = ":***@"
"""In a database URL whose password was not written down."""
_MORE = """\
Every training option of transformers is a flag, the same for all trials: --max-steps, --num-train-epochs,
--per-device-train-batch-size, --seed, --use-cpu, … (see ptune train --help).

OUTPUT holds the best prompt (best/), its recipe (best.yaml, for ptune train --config), results.json, trials.png and
the study. Interrupted: ptune tune --resume OUTPUT. Several processes share a study: start the same command in each,
with --resume; on several machines with one --storage too."""


def build_parser() -> Parser:
    """The parser of ptune's own flags; the rest go to `TrainingArguments`."""
    parser = Parser(
        "tune",
        "Search for the encoder, number of virtual tokens, start and learning rate with the lowest held-out loss: "
        "trial after trial on one loaded model, each a whole training run unless it falls behind.",
        usage="--model MODEL --data DATA --eval-rows N --output OUTPUT [flags]\n"
        "       ptune tune --resume OUTPUT [flags]",
        more=_MORE,
    )
    parser.add_argument(
        "--config",
        "--search-space",
        type=Path,
        metavar="YAML",
        default=argparse.SUPPRESS,
        help="flags as YAML keys, what is searched as lists",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON line on stdout")
    add_fields(parser, TuneSettings)
    add_fields(parser, TrainRecipe, leave_out=(*NOT_HERE, *SEARCHED))
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    own, rest = parser.parse_known_args(dashed(argv))
    values = vars(own)
    as_json, file = values.pop("json"), values.pop("config", None)
    from_file = {} if file is None else read_recipe(file)
    if values.get("resume", from_file.get("resume")):
        file, from_file = with_begun(
            values, from_file, file, command="tune", what="search", settings=SETTINGS_FILE, may_begin=True
        )
    names = {**own_names(), **own_names(TuneSettings)}
    foreign = {key: value for key, value in from_file.items() if key not in names}
    trainer = None
    if rest or foreign:
        trainer = trainer_parser("tune")
        check_flags(rest, parser, trainer)
        check_keys(foreign, file)
    settings, recipe = _settings({**from_file, **values})
    given = given_names(rest, foreign)
    from ptune.cli.quiet import console, output, quiet_libraries

    quiet_libraries()
    from ptune.tuning.trials_table import show_trials
    from ptune.tuning.tune import tune

    args = make_arguments(recipe, trainer or trainer_parser("tune"), rest, foreign, file)
    result = tune(recipe, settings, given_values(args, given), console())
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        show_trials(result, output(width=160))
    return 0


def _settings(values: Mapping[str, Any]) -> tuple[TuneSettings, TrainRecipe]:
    """The search's own values, and the recipe of its trials."""
    searched = own_names(TuneSettings)
    kept = {key: value for key, value in values.items() if key not in searched}
    own = own_values(values, TuneSettings)
    if _HIDDEN in str(own.get("storage")):
        raise ConfigError(
            f"the password of {own['storage']} was not written down.", hint="Give the whole URL with --storage."
        )
    try:
        return TuneSettings(**own), TrainRecipe(**own_values(kept))
    except ConfigError as error:
        raise ConfigError(error.message, hint=error.hint or "See ptune tune --help.") from error
