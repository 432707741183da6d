"""What a checkpoint says of its run, so that `ptune train --resume` needs nothing else, and what must stay the same.

The place in the data means something only while rows and batches are what they were; learning rate and the optimizer's
other numbers lie in its state. Those are compared, and a difference is refused. What changes the schedule or the
reports may be changed, and is named.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import TrainingArguments

from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe
from ptune.saved.opened_folder import open_folder

_NOT_RECORDED = ("overwrite", "resume", "force", "trust_remote_code", "init_from", "output")
"""Of the recipe: what must be asked for again, or was for the beginning of a run."""
_TABLES = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_PLACES = (
    "output_dir",
    "resume_from_checkpoint",
    "run_name",
    "project",
    "deepspeed",
    "debug",
    "local_rank",
)
_PREFIXES = ("hub_", "push_to_hub", "fsdp", "log_level", "trackio", "ddp_", "logging_dir")

_SAME_RECIPE = (
    "encoder",
    "num_virtual_tokens",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_dropout",
    "num_frozen_tokens",
    "tokens_per_batch",
    "packing",
)
SAME_ARGUMENTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "seed",
    "data_seed",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim",
)
SCHEDULE_ARGUMENTS = (
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "bf16",
    "fp16",
)


def recorded_run(recipe: TrainRecipe, args: TrainingArguments, dataset: Dataset) -> dict[str, Any]:
    """What is noted in `ptune.json` for going on."""
    return {
        "recipe": {key: value for key, value in dataclasses.asdict(recipe).items() if key not in _NOT_RECORDED},
        "training_arguments": recorded_arguments(args),
        "data_sha256": data_digest(dataset),
    }


def recorded_arguments(args: TrainingArguments) -> dict[str, Any]:
    """The training arguments that are numbers, words or yes and no, without places and secrets."""
    plain: dict[str, Any] = args.to_dict()  # type: ignore[no-untyped-call]
    return {
        name: plain[name]
        for name in argument_names()
        if (type(plain[name]) in (bool, int, float, str) and plain[name] != "")
        or (name in _TABLES and plain[name])
        or name == "report_to"
    }


def data_digest(dataset: Dataset) -> str:
    """SHA-256 of the token ids of every row and of what is learned of it, in their order."""
    digest = hashlib.sha256()
    table = dataset.with_format("arrow")[:]
    for name in ("input_ids", "labels", "start_positions", "end_positions"):
        if name not in table.column_names:
            continue
        column = table[name]
        if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):  # a number a row
            digest.update(column.to_numpy().astype("<i4").tobytes())
            continue
        digest.update(pc.list_value_length(column).to_numpy().astype("<i4").tobytes())
        digest.update(pc.list_flatten(column).to_numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def recorded_settings(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe and the training arguments that a checkpoint was trained with.

    Raises:
        ConfigError: It does not say.
        PromptError: It is damaged.
    """
    details = open_folder(checkpoint).details
    if details.get("compression"):
        raise ConfigError(
            f"{checkpoint} belongs to a compression, which learns from a teacher.",
            hint=f"Go on with: ptune compress --resume {checkpoint.absolute().parent}",
        )
    recipe, arguments = details.get("recipe"), details.get("training_arguments")
    if not isinstance(recipe, dict) or not isinstance(arguments, dict):
        raise ConfigError(
            f"{checkpoint} does not say how it was trained.", hint="Give --model, --data and the other flags."
        )
    own = {item.name for item in dataclasses.fields(TrainRecipe)} - set(_NOT_RECORDED)
    known = set(argument_names())
    kept = {name: value for name, value in recipe.items() if name in own and value is not None}
    chosen = {name: value for name, value in arguments.items() if name in known}
    if kept.get("tokens_per_batch") is not None:
        chosen.pop("per_device_train_batch_size", None)
    return kept, chosen


def argument_names() -> list[str]:
    """The names of training arguments that a checkpoint may set."""
    names = [item.name for item in dataclasses.fields(TrainingArguments) if item.init]
    return [name for name in names if name not in _PLACES and not name.startswith(_PREFIXES) and "token" not in name]


def check_same_run(checkpoint: Path, now: Mapping[str, Any]) -> list[str]:
    """Compare the run that goes on with the one that was begun.

    Args:
        checkpoint: Where it goes on.
        now: `recorded_run` of today.

    Returns:
        A line for each setting that is another now and may be.

    Raises:
        ConfigError: The data, the batches, the encoder or the optimizer's numbers are others.
    """
    then = open_folder(checkpoint).details
    other = f"cannot go on from {checkpoint}: it was trained"
    way = f"Leave the flag out; or begin a new run from its prompt: --init-from {checkpoint}."
    if then.get("data_sha256") not in (None, now["data_sha256"]):
        raise ConfigError(
            f"{other} on other rows (data, data_weights, template, train_on, max_length or eval_rows have changed).",
            hint=f"Give it the data as they were; or begin a new run from its prompt: --init-from {checkpoint}.",
        )
    lines = []
    for group, same in (("recipe", _SAME_RECIPE), ("training_arguments", SAME_ARGUMENTS)):
        before = then.get(group)
        if not isinstance(before, dict):
            continue
        for name in (*same, *SCHEDULE_ARGUMENTS):
            old, new = before.get(name), now[group].get(name)
            if name not in before or old == new:
                continue
            if name in same:
                raise ConfigError(f"{other} with {name}={old}, not {new}.", hint=way)
            lines.append(f"going on with {name}={new}, where it was begun with {old}")
    return lines
