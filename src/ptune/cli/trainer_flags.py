"""Flags and recipe keys of `transformers.TrainingArguments`, under their own names, with help on the common ones."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ptune.choices import CHECKPOINTING, EMBEDDING, LEARNING_RATES
from ptune.cli.flags import Parser, argparse_message, dashed, flag, flags_of, unknown_flags
from ptune.errors import ConfigError, one_line
from ptune.field_types import allowed_types
from ptune.recipe import TrainRecipe

_RATES = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items() if name != EMBEDDING)
COMMON: tuple[tuple[str, str], ...] = (
    ("--num-train-epochs X", "times through the data (default: 3)"),
    ("--max-steps N", "optimizer steps instead"),
    ("--learning-rate X", f"default: {LEARNING_RATES[EMBEDDING]:g} of the embeddings' deviation; {_RATES}"),
    ("--lr-scheduler-type NAME", "linear, cosine, constant, … (default: linear)"),
    ("--warmup-steps X", "steps, or below 1 a share of them (default: 0; with a network 0.05, beside a head 0.1)"),
    ("--per-device-train-batch-size N", "rows a forward pass (default: 8); or see --tokens-per-batch"),
    ("--gradient-accumulation-steps N", "forward passes an optimizer step (default: 1)"),
    ("--per-device-eval-batch-size N", "the same when measuring (default: 8)"),
    (flag(CHECKPOINTING), "less memory, more time"),
    ("--bf16, --fp16", "mixed precision; see --dtype for the frozen model"),
    ("--eval-strategy, --eval-steps", "when to measure held-out loss (default: after each epoch)"),
    ("--logging-steps N", "steps between reports (default: 10)"),
    ("--save-strategy, --save-steps", "when to write checkpoints (default: every 500 steps)"),
    ("--save-total-limit N", "checkpoints kept (default: 2)"),
    ("--load-best-model-at-end", "keep the checkpoint with the lowest held-out loss"),
    ("--seed N", "everything random (default: 42)"),
    ("--report-to NAME", "tensorboard, wandb, … (default: none)"),
    ("--push-to-hub", "upload the finished prompt, as --hub-model-id USER/PROMPT"),
    ("--use-cpu", "leave the GPU alone"),
)
"""The training flags that the help page names, with ptune's defaults."""

_AT_LEAST = {
    "learning_rate": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "dataloader_num_workers": 0,
}


def training_help() -> str:
    """The section on training of `ptune train --help`."""
    width = max(len(flag) for flag, _ in COMMON)
    lines = ["training (every training option of transformers is a flag; these are the common ones):"]
    lines += [f"  {flag:<{width}}  {text}" for flag, text in COMMON]
    return "\n".join(
        [
            *lines,
            "",
            "A flag wins over the recipe. On several GPUs: torchrun --nproc-per-node N -m ptune train …; with --fsdp",
            "each holds a part of the frozen layers, for models too large for one.",
        ]
    )


def trainer_names() -> list[str]:
    """Names of the fields of `transformers.TrainingArguments`."""
    from transformers import TrainingArguments

    return [item.name for item in fields(TrainingArguments) if item.init]


def trainer_parser(command: str = "train") -> Any:
    """The parser that transformers has for its arguments, with errors that are ptune's and name a command."""
    from transformers import HfArgumentParser, TrainingArguments

    class TrainerParser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"{argparse_message(message)}.", hint=f"See ptune {command} --help.")

    arguments: Any = TrainingArguments
    parser = TrainerParser(arguments, allow_abbrev=False)
    for name, hint in typing.get_type_hints(TrainingArguments).items():
        action = parser._option_string_actions.get(f"--{name}")  # noqa: SLF001 (argparse has no public list)
        if action is not None and action.nargs is None and allowed_types(hint)[:1] == (bool,):
            # `bool | None`: transformers wants a value behind the flag; here the bare flag means true, as elsewhere.
            action.nargs, action.const = "?", True
    return parser


def check_flags(words: Sequence[str], parser: Parser, trainer: argparse.ArgumentParser) -> None:
    """Raise `ConfigError` when a word is a flag of neither parser.

    argparse alone would take the value behind a misspelt flag for an argument of its own.
    """
    known = [*parser.flags(), *flags_of(trainer)]
    strange = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
    if strange:
        raise unknown_flags(strange, known, parser.command)


def given_names(words: Sequence[str], values: Mapping[str, Any]) -> set[str]:
    """The training arguments that the command line or the recipe file name; `--no-X` names X."""
    flags = {word.partition("=")[0] for word in dashed(words) if word.startswith("--")}
    return {flag.removeprefix("--").replace("-", "_").removeprefix("no_") for flag in flags} | set(values)


def given_values(args: Any, names: Collection[str]) -> dict[str, Any]:
    """The training arguments of these names as plain values: enums by their value."""
    return {name: getattr(found := getattr(args, name), "value", found) for name in sorted(names)}


def make_arguments(
    recipe: TrainRecipe, trainer: Any, words: Sequence[str], values: Mapping[str, Any], recipe_file: Path | None
) -> Any:
    """`TrainingArguments` from ptune's defaults, the recipe file and the command line, the later ones winning.

    Args:
        recipe: Gives the defaults that suit its encoder.
        trainer: From `trainer_parser`.
        words: The part of the command line that is not ptune's own.
        values: The part of the recipe file that is not ptune's own.
        recipe_file: Where the values stand.

    Raises:
        ConfigError: A value that does not fit.
    """
    if recipe.tokens_per_batch is not None and "per_device_train_batch_size" in given_names(words, values):
        raise ConfigError(
            f"tokens_per_batch={recipe.tokens_per_batch} and per_device_train_batch_size exclude each other.",
            hint="Give one of them.",
        )
    trainer.set_defaults(**recipe.trainer_defaults(), output_dir=recipe.output)
    try:
        from_file = _as_words(trainer, values)
        trainer.parse_known_args(from_file)
    except ConfigError as error:
        raise ConfigError(f"{recipe_file}: {error.message}", hint=error.hint) from error
    _save_when_measured(trainer, from_file, words, values)
    try:
        args, extra = trainer.parse_args_into_dataclasses(
            args=[*from_file, *dashed(words)], return_remaining_strings=True, look_for_args_file=False
        )
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigError(f"training arguments: {one_line(error)}") from error
    if extra:
        raise unknown_flags(extra, flags_of(trainer), "train")
    _check_bounds(args)
    return args


def _save_when_measured(
    trainer: Any, from_file: Sequence[str], words: Sequence[str], values: Mapping[str, Any]
) -> None:
    """The best checkpoint can be kept only where checkpoints are written when the loss is measured."""
    wanted, _ = trainer.parse_known_args([*from_file, *dashed(words)])
    if wanted.load_best_model_at_end:
        given = given_names(words, values)
        own = {f"save_{what}": getattr(wanted, f"eval_{what}") for what in ("strategy", "steps")}
        trainer.set_defaults(**{name: value for name, value in own.items() if name not in given and value is not None})


def _as_words(trainer: argparse.ArgumentParser, values: Mapping[str, Any]) -> list[str]:
    """Values of a recipe as words of a command line, so that they are converted and checked as flags are.

    Tables, lists and null have no spelling there and become defaults, where an argument can be one of them.
    """
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    words = []
    for key, value in values.items():
        if value is not None and not isinstance(value, (dict, list)):
            words.append(f"--{key}={value}")
        elif type(value) in allowed_types(hints[key]):
            trainer.set_defaults(**{key: value})
        else:
            raise ConfigError(f"{key} cannot be {'null' if value is None else repr(value)}.", hint="Give one value.")
    return words


def _check_bounds(args: Any) -> None:
    """Raise `ConfigError` for numbers that `TrainingArguments` takes and nothing can be trained with."""
    faults = []
    for name, least in _AT_LEAST.items():
        value = getattr(args, name)
        # Written so that NaN is refused too.
        if value is not None and not value >= least:
            faults.append(f"{name} must be at least {least}, not {value}")
    if args.max_steps == 0 or (args.max_steps < 0 and not args.num_train_epochs > 0):
        faults.append("there is nothing to train: max_steps or num_train_epochs must be above 0")
    if faults:
        raise ConfigError(f"{'; '.join(faults)}.", hint="See ptune train --help.")
