"""The frozen model of a run: loaded for the recipe's task, and wrapped for prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ptune.choices import CLASSIFY, LM, TAG
from ptune.config import TaskType
from ptune.data.tasks.task_kinds import TASK_TYPES as DATA_TASK_TYPES
from ptune.errors import ConfigError
from ptune.frozen.precision import check_mixed
from ptune.loading.load import load_base
from ptune.model.prompted import PromptedModel
from ptune.model.task_model import PTunedTaskModel
from ptune.model.wrapper import PTunedModel
from ptune.recipe import TrainRecipe
from ptune.training.processes import in_turn, shard

TASK_TYPES = {LM: TaskType.CAUSAL_LM, **DATA_TASK_TYPES}
"""PEFT's names for the tasks of the command line."""
_LABELLED = (CLASSIFY, TAG)


def frozen_model(
    recipe: TrainRecipe,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    mesh: DeviceMesh | None = None,
    *,
    labels: Sequence[str] = (),
) -> PromptedModel:
    """The frozen model for the recipe's task, without a prompt yet; arguments and errors as for `causal_model`.

    Raises:
        ConfigError: Shards of a model for another task.
    """
    if recipe.task == LM:
        return causal_model(recipe, args, tokenizer, mesh)
    if mesh is not None:
        raise ConfigError(f"fsdp does not go with the task {recipe.task}.", hint="Leave it out.")
    return task_model(recipe, args, tokenizer, labels)


def causal_model(
    recipe: TrainRecipe, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, mesh: DeviceMesh | None = None
) -> PTunedModel:
    """The frozen causal language model; with `mesh` each process keeps a part of the layers.

    Raises:
        ModelError: The model cannot be loaded or sharded, or does not go with the tokenizer.
        ConfigError: The recipe is for another task.
    """
    if recipe.task != LM:
        raise ConfigError(f"task={recipe.task} is for ptune train alone.", hint="Leave it out.")
    if mesh is None:
        return _whole_model(recipe, args, tokenizer)
    with in_turn(args):
        model = _whole_model(recipe, args, tokenizer, on_cpu=True)
        shard(model, mesh)
    return model


def wrapped(base: PreTrainedModel, recipe: TrainRecipe) -> PromptedModel:
    """A loaded model, ready for a prompt, as the recipe's task wants it."""
    if recipe.task != LM:
        return PTunedTaskModel(base, task=TASK_TYPES[recipe.task], self_check=recipe.self_check)
    model = PTunedModel(base, self_check=recipe.self_check)
    # Otherwise the model packs padded batches by itself.
    model.pack_batches = recipe.packing
    return model


def loaded(
    recipe: TrainRecipe,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str] = (),
    *,
    on_cpu: bool = False,
) -> PreTrainedModel:
    """The model itself, for the recipe's task.

    Raises:
        ModelError: It cannot be loaded, or is not for the task.
    """
    named = labels if recipe.task in _LABELLED else None
    return load_base(recipe, args.device, tokenizer, on_cpu=on_cpu, task=TASK_TYPES[recipe.task], labels=named)


def _whole_model(
    recipe: TrainRecipe, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, *, on_cpu: bool = False
) -> PTunedModel:
    base = loaded(recipe, args, tokenizer, on_cpu=on_cpu)
    check_mixed(base, torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None)
    model = wrapped(base, recipe)
    assert isinstance(model, PTunedModel)
    return model


def task_model(
    recipe: TrainRecipe, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
) -> PTunedTaskModel:
    """The frozen model for a recipe's task, without a prompt yet.

    Raises:
        ModelError: It cannot be loaded, or is not for the task.
    """
    base = loaded(recipe, args, tokenizer, labels)
    check_mixed(base, torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None)
    model = wrapped(base, recipe)
    assert isinstance(model, PTunedTaskModel)
    return model
