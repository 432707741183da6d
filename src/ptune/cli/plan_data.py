"""The data of a plan: how many rows, how long they are, and what labels they have, as `ptune train` would read them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ptune.choices import LM, SEQ2SEQ
from ptune.cli.flags import Parser, add_fields, flag
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe

_READ = ("data", "columns", "split", "encoding", "sheet", "limit", "template", "verbalizer", "eval_data", "eval_rows")
"""What is said of data, and says nothing without them."""
_SAID = {
    "data": "data as ptune train takes them: rows' lengths and labels are theirs. Needs the model's tokenizer",
    "target_length": "for seq2seq: tokens of a text to write, with data the most (default: 128)",
}


@dataclass(frozen=True, kw_only=True)
class RowSizes:
    """What a forecast wants to know of data. Lengths are tokens, special tokens among them, virtual ones not."""

    rows: int
    longest: int
    mean: int
    supervised_share: float | None = None
    """Of the tokens of a causal language model's rows."""
    num_labels: int | None = None
    longest_target: int | None = None
    """Of the texts to write."""
    mean_target: int | None = None
    virtual_tokens: int
    """Of the recipe, or of its template."""

    def line(self) -> str:
        """One line for people."""
        said = f"Data: {self.rows:,} rows of {self.mean} tokens on average, {self.longest} at most"
        if self.longest_target is not None:
            said += f", that write {self.mean_target}, {self.longest_target} at most"
        if self.num_labels is not None:
            said += f"; {self.num_labels} labels"
        return f"{said}. Memory is that of a batch of the longest rows, time that of rows of average length."

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def add_data_flags(parser: Parser) -> None:
    """The flags of `ptune train` that say what the data are."""
    taken = ("task", "target_length", *_READ)
    leave_out = [item.name for item in fields(TrainRecipe) if item.name not in taken]
    add_fields(parser, TrainRecipe, leave_out=leave_out, said=_SAID)


def check_data_flags(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for flags that do not go together."""
    given = vars(args)
    if "data" not in given:
        if alone := [name for name in _READ if name in given]:
            raise ConfigError(f"{alone[0]} is given, but no data.", hint="Add --data, or leave it out.")
    else:
        if len(args.max_length) > 1:
            raise ConfigError("several lengths are given, and data too, which have their own.", hint="Give one.")
        if args.num_labels is not None or args.rows is not None:
            name = "rows" if args.num_labels is None else "num_labels"
            raise ConfigError(f"{name} is given, and data too, which tell it.", hint="Leave one of them out.")
    if "target_length" in given and given.get("task") != SEQ2SEQ:
        raise ConfigError("target_length is for the task seq2seq.", hint="Leave it out.")


def row_sizes(args: argparse.Namespace) -> RowSizes | None:
    """Read and tokenize the data; None where there are none.

    Raises:
        DataError: Data that cannot be read, or of which nothing is left.
        ConfigError: A template or a verbalizer that cannot be used.
        ModelError: There is no tokenizer, or it cannot do what the task needs.
    """
    if "data" not in vars(args):
        return None
    from ptune.data.labels import IGNORE_INDEX
    from ptune.loading.load import load_tokenizer
    from ptune.training.train import prepare_rows, training_arguments

    recipe = _recipe(args)
    tokenizer = load_tokenizer(args.model, trust_remote_code=args.trust_remote_code, revision=args.revision)
    recipe, rows = prepare_rows(recipe, tokenizer, training_arguments(recipe, {}), progress=False)
    dataset = rows.tokens.dataset
    lengths = [sum(one >= 0 for one in ids) for ids in dataset["input_ids"]]
    found: dict[str, Any] = {"num_labels": len(rows.labels) or None}
    if recipe.task == SEQ2SEQ and "labels" in dataset.column_names:
        targets = [len(one) for one in dataset["labels"]]
        found |= {"longest_target": max(targets), "mean_target": _mean(targets)}
    elif recipe.task == LM:
        learned = sum(label != IGNORE_INDEX for labels in dataset["labels"] for label in labels)
        found["supervised_share"] = learned / sum(lengths)
    return RowSizes(
        rows=len(lengths),
        longest=max(lengths),
        mean=_mean(lengths),
        virtual_tokens=recipe.virtual_tokens,
        **found,
    )


def given_data(args: argparse.Namespace) -> str:
    """The flags of data that were given, for a command; `--data DATA` where there are none."""
    given = vars(args)
    words = [] if "data" in given else ["--data", "DATA"]
    for name in ("task", "target_length", *_READ):
        if name not in given:
            continue
        value = given[name]
        if isinstance(value, str):
            listed = [value]
        elif isinstance(value, Mapping):
            listed = [f"{key}={text}" for key, text in value.items()]
        elif isinstance(value, Sequence):
            listed = list(value)
        else:
            listed = [str(value)]
        words += [flag(name), *map(shlex.quote, listed)]
    return " ".join(words)


def _recipe(args: argparse.Namespace) -> TrainRecipe:
    given = {name: value for name, value in vars(args).items() if name in ("task", "target_length", *_READ)}
    return TrainRecipe(
        model=args.model,
        output="plan",
        max_length=args.max_length[0],
        num_virtual_tokens=args.num_virtual_tokens,
        trust_remote_code=args.trust_remote_code,
        revision=args.revision,
        **given,
    )


def _mean(lengths: Sequence[int]) -> int:
    return max(round(sum(lengths) / len(lengths)), 1)
