"""How the rows of a run become batches: packed or padded, so many rows or so many tokens, and what is said about it.

Packed is the default: no work on padding, and rows in random order. A model that cannot keep packed rows apart gets
padded batches of rows of similar length instead.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import seed_worker

from ptune.choices import LM
from ptune.data.batching import TokenBudgetBatchSampler
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.data.tasks import TaskCollator
from ptune.errors import ConfigError
from ptune.model.prompted import PromptedModel
from ptune.model.task_model import PTunedTaskModel
from ptune.recipe import TrainRecipe

Collator = PackingCollator | PaddingCollator | TaskCollator
BY_LENGTH = "group_by_length"
_BUDGET_STRATEGIES = {"random": True, "sequential": False}
"""The sampling strategies that a budget of tokens can follow: whether they shuffle."""


def choose_collator(
    recipe: TrainRecipe,
    args: TrainingArguments,
    model: PromptedModel,
    tokenizer: PreTrainedTokenizerBase,
    given: Collection[str] = (),
) -> Collator:
    """What makes a batch of rows; where the model cannot pack, rows of similar length are put together.

    Args:
        recipe: Says whether to pack.
        args: Their `train_sampling_strategy` is changed where the default suits packing alone.
        model: Says whether it can.
        tokenizer: Its padding token fills padded batches.
        given: Names of the training arguments that the user chose: they are left alone.

    Raises:
        ConfigError: A budget of tokens for a model that cannot pack; packed batches that are to be compiled.
    """
    if recipe.task != LM:
        # A decoder packs padded rows by itself; an encoder computes the padding.
        if "train_sampling_strategy" not in given and not (isinstance(model, PTunedTaskModel) and model.reads_ahead):
            args.train_sampling_strategy = BY_LENGTH
        return TaskCollator(int(tokenizer.pad_token_id), recipe.task)
    if recipe.packing and model.packs:
        if args.torch_compile:
            raise ConfigError(
                "torch_compile does not go with packed batches, whose steps are fused already.",
                hint="Leave it out; or set no-packing, to compile padded batches.",
            )
        return PackingCollator()
    if recipe.tokens_per_batch is not None:
        raise ConfigError(
            f"tokens_per_batch={recipe.tokens_per_batch} needs packed batches: {model.packing_obstacle}.",
            hint="Set per_device_train_batch_size instead.",
        )
    if args.train_sampling_strategy == "random" and "train_sampling_strategy" not in given:
        args.train_sampling_strategy = BY_LENGTH
    return PaddingCollator(pad_token_id=int(tokenizer.pad_token_id))


def batches_line(
    recipe: TrainRecipe,
    args: TrainingArguments,
    model: PromptedModel,
    collate: Collator,
    sampler: TokenBudgetBatchSampler | None,
) -> str:
    """What a batch is, in words, and why it is padded where it could not be packed."""
    if sampler is not None:
        what = f"up to {sampler.tokens_per_batch:,} tokens packed, {len(sampler):,} an epoch, {sampler.fill:.0%} full"
    elif isinstance(collate, PackingCollator):
        what = f"{args.per_device_train_batch_size} rows packed, no padding"
    else:
        alike = " of similar length" if args.train_sampling_strategy == BY_LENGTH else ""
        packed = isinstance(model, PTunedTaskModel) and model.packs_rows
        what = f"{args.per_device_train_batch_size} rows{alike}, " + ("packed by the model" if packed else "padded")
        what += f" ({model.packing_obstacle})" if recipe.packing and recipe.task == LM else ""
    together = args.gradient_accumulation_steps * args.world_size
    return f"batches: {what}" + (f"; {together} to an optimizer step" if together > 1 else "")


def budget_sampler(dataset: Any, tokens_per_batch: int, args: TrainingArguments) -> TokenBudgetBatchSampler:
    """The training batches of a budget of tokens, each process's share of the same number.

    Raises:
        ConfigError: A sampling strategy that a budget cannot follow, rows without a number, or a row over the budget.
    """
    if args.train_sampling_strategy not in _BUDGET_STRATEGIES:
        raise ConfigError(
            f"train_sampling_strategy={args.train_sampling_strategy} does not go with tokens_per_batch.",
            hint=f"Use {' or '.join(_BUDGET_STRATEGIES)}.",
        )
    return TokenBudgetBatchSampler(
        token_lengths(dataset),
        tokens_per_batch,
        seed=args.seed if args.data_seed is None else args.data_seed,
        shuffle=_BUDGET_STRATEGIES[args.train_sampling_strategy],
        drop_last=args.dataloader_drop_last,
        multiple_of=args.world_size,
    )


def token_lengths(dataset: Any) -> list[int]:
    """Tokens of each row of a data set with a column `input_ids`."""
    if isinstance(dataset, Dataset):
        lengths: list[int] = pc.list_value_length(dataset.with_format("arrow")["input_ids"]).to_pylist()
        return lengths
    try:
        return [len(dataset[row]["input_ids"]) for row in range(len(dataset))]
    except TypeError as error:
        raise ConfigError(
            f"tokens_per_batch needs a data set of known length, not {type(dataset).__name__}.",
            hint="Load the rows into a list or a datasets.Dataset.",
        ) from error


def budget_loader(
    dataset: Any, sampler: TokenBudgetBatchSampler, collate: Any, args: TrainingArguments
) -> DataLoader[Any]:
    """A loader over whole batches, with `TrainingArguments`' options for loaders."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
        worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )
