"""`ptune compare`: the tutorial's tables for your model and data, method by method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ptune.cli.flags import Parser, add_fields, dashed
from ptune.cli.trainer_flags import check_flags, given_names, given_values, make_arguments, trainer_parser
from ptune.comparison.settings import CompareSettings
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe

_NOT_HERE = (
    "encoder",
    "device_map",
    "tokens_per_batch",
    "eval_metrics",
    "init_from",
    "init_text_tokens",
    "num_frozen_tokens",
    "resume",
    "force",
    "early_stopping_patience",
    "early_stopping_threshold",
)
_MORE = """\
Every training option of transformers is a flag, the same for all methods: --max-steps, --num-train-epochs,
--per-device-train-batch-size, --gradient-accumulation-steps, --seed, --use-cpu, … (see ptune train --help).

OUTPUT holds report.html, report.md, results.json and the pictures, and in runs/ every prompt and adapter.
Interrupted, the same command goes on where it stopped; methods and seeds can be added later."""


def build_parser() -> Parser:
    """The parser of ptune's own flags; the rest go to `TrainingArguments`."""
    parser = Parser(
        "compare",
        "Train each method on the same rows in the same order, each in its own process, and show parameters, memory, "
        "speed, loss and size side by side.",
        usage="--model MODEL --data DATA --output OUTPUT [flags]",
        more=_MORE,
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON line on stdout")
    add_fields(parser, CompareSettings)
    add_fields(parser, TrainRecipe, leave_out=_NOT_HERE)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    own, rest = parser.parse_known_args(dashed(argv))
    values = vars(own)
    as_json = values.pop("json")
    trainer = None
    if rest:
        trainer = trainer_parser("compare")
        check_flags(rest, parser, trainer)
    settings, recipe = _settings(values), _recipe(values)
    given = given_names(rest, {})
    from ptune.cli.quiet import console, quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from ptune.comparison.compare import check_arguments, compare
    from ptune.comparison.report import show

    check_arguments(recipe, dict.fromkeys(given))
    args = make_arguments(recipe, trainer or trainer_parser("compare"), rest, {}, None)
    comparison = compare(recipe, settings, given_values(args, given), console())
    if as_json:
        print(json.dumps(comparison.to_dict()))
    else:
        show(comparison, Console())
        print(f"report: {recipe.output}/report.html")
    return 0 if all(one.ok for one in comparison.methods) else 1


def _settings(values: dict[str, Any]) -> CompareSettings:
    """The comparison's own values, taken out of the others."""
    names = CompareSettings.__dataclass_fields__
    own = {name: values.pop(name) for name in list(values) if name in names}
    if "learning_rates" in own:
        own["learning_rates"] = {name: _rate(name, text) for name, text in own["learning_rates"].items()}
    return CompareSettings(**own)


def _rate(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"learning_rates: {text!r} for {name} is not a number.", hint="Write mlp=1e-3.") from None


def _recipe(values: dict[str, Any]) -> TrainRecipe:
    """Model, data and sizes."""
    try:
        return TrainRecipe(**values)
    except ConfigError as error:
        raise ConfigError(error.message, hint="See ptune compare --help.") from error
