"""Where a run's prompt starts: at a finished prompt, or at tokens that are typical of the training rows.

A finished prompt's encoder goes on, or its vectors are where another encoder starts:
Vu et al. 2022, "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", start from the prompt of another
task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from ptune.choices import CLASSIFY, INITS_FROM_ROWS, PREFIX, WITH_HEAD
from ptune.data.blocks import tokens_in_text
from ptune.data.own_tokens import ROWS, frequent_tokens, own_tokens
from ptune.deep_config import DeepPromptConfig, PromptConfig
from ptune.encoders.initialise import sampled_tokens, token_vectors
from ptune.model.prompted import PromptedModel
from ptune.model.task_model import PTunedTaskModel
from ptune.model.wrapper import DEFAULT_PROMPT
from ptune.prefix.deep_prompts import prefix_of
from ptune.prefix.keys_values import Prefix
from ptune.prompt.build import check_room, encoder_kind
from ptune.recipe import TrainRecipe
from ptune.saved.format import SavedPrompt, read_prompt
from ptune.saved.hub import prompt_folder
from ptune.saved.opened_folder import open_folder
from ptune.saved.prompt_io import plain_config
from ptune.training.deep_run import check_deep_run
from ptune.training.label_start import label_tokens, start_head
from ptune.training.rows import Rows

ENCODER_FIELDS = (
    "encoder",
    "num_virtual_tokens",
    "num_frozen_tokens",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_dropout",
)


def add_new_prompt(
    model: PromptedModel,
    recipe: TrainRecipe,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    *,
    start: torch.Tensor | Prefix | None = None,
) -> None:
    """Give the model the prompt that a recipe describes, the same in every process; it starts at `start`, if given.

    Raises:
        ConfigError: The prompt does not fit the model.
        PromptError: There is none to start from.
    """
    set_seed(args.seed)
    inside = tokens_in_text(rows.template.blocks)
    check_deep_run(recipe, args, inside)
    config = replace(recipe.prompt_config(), tokens_in_text=inside)
    if recipe.init_from is not None:
        start_from(model, recipe, config, tokenizer)
        return
    check_room(config, model.context_length)  # a vocabulary has no tokens to start so many at
    if start is None and recipe.start in INITS_FROM_ROWS:
        start = vectors_of_rows(model, recipe, tokenizer, rows.tokens.dataset, rows.labels)
    model.add_prompt(DEFAULT_PROMPT, config, tokenizer=tokenizer, start=start)
    if recipe.task == CLASSIFY and isinstance(model, PTunedTaskModel):
        start_head(model, rows.labels, tokenizer)


def encoder_settings(prompt: str) -> dict[str, Any]:
    """The recipe's values that describe the encoder of a prompt folder, or of a prompt on the hub.

    Raises:
        PromptError: There is none, or it is damaged.
    """
    return _settings(read_prompt(prompt_folder(prompt)))


def _settings(saved: SavedPrompt) -> dict[str, Any]:
    config = saved.config if saved.encoder is not None else plain_config(saved)
    known = {item.name for item in fields(config)}
    found = {name: getattr(config, name) for name in ENCODER_FIELDS if name in known}
    kind = encoder_kind(config)
    return {**({"num_frozen_tokens": 0} if kind == PREFIX else {}), **found, "encoder": kind}


def start_from(
    model: PromptedModel, recipe: TrainRecipe, config: PromptConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Give a model the prompt that `recipe.init_from` names to start from.

    Args:
        model: The model.
        recipe: Names the prompt.
        config: Of the prompt that is to train: where the folder's has other virtual tokens inside the text, these hold.
        tokenizer: Compared with the one that the prompt was made with.

    Raises:
        PromptError: The folder is missing, damaged, or made for another model or tokenizer (`recipe.force` overrides).
        ConfigError: Another encoder is asked for that is too narrow to start from its vectors; or one of virtual-token
            embeddings, and the folder holds keys and values.
    """
    opened = open_folder(prompt_folder(str(recipe.init_from)))
    saved = read_prompt(opened)
    name = model.load_prompt(opened, name=DEFAULT_PROMPT, force=recipe.force, tokenizer=tokenizer)
    there = _settings(saved)
    if _same_encoder(recipe, there):
        model.prompt_configs[name] = replace(model.prompt_configs[name], tokens_in_text=config.tokens_in_text)
        return
    config = replace(config, base_model_name_or_path=model.prompt_configs[name].base_model_name_or_path)
    model.delete_prompt(name)
    model.add_prompt(DEFAULT_PROMPT, config, tokenizer=tokenizer, start=_start_of(saved))


def _start_of(saved: SavedPrompt) -> torch.Tensor | Prefix:
    """What another encoder starts from: a prompt's vectors, or its keys and values."""
    if not isinstance(saved.config, DeepPromptConfig):
        return saved.vectors
    layers, heads = saved.config.num_layers or 0, saved.config.num_attention_heads or 0
    return prefix_of(saved.vectors, layers=layers, heads=heads, vocab_size=1)


def vectors_of_rows(
    model: PromptedModel,
    recipe: TrainRecipe,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    labels: Sequence[str] = (),
) -> torch.Tensor:
    """The embeddings of tokens that are typical of the rows, of their answers above all or of all of them; `(P, D)`.

    Where the rows have fewer tokens than the prompt, the rest is sampled vocabulary.
    """
    first, special = list(rows.select(range(min(ROWS, len(rows))))), tokenizer.all_special_ids
    if recipe.start != "frequent" and recipe.task in WITH_HEAD:
        ids = label_tokens(labels, first, tokenizer, recipe.virtual_tokens)
    else:
        typical = frequent_tokens if recipe.start == "frequent" else own_tokens
        ids = typical(first, recipe.virtual_tokens, special)
    if len(ids) < recipe.virtual_tokens:
        size = int(model.base.config.get_text_config().vocab_size)
        sampled = sampled_tokens(size, recipe.virtual_tokens, special)
        ids = [*ids, *(one for one in sampled if one not in ids)][: recipe.virtual_tokens]
    return token_vectors(model.base.get_input_embeddings(), ids)


def _same_encoder(recipe: TrainRecipe, there: Mapping[str, Any]) -> bool:
    """Whether the recipe asks for what the folder holds; a width that is not given is the folder's."""
    return all(getattr(recipe, name) in (there[name], None) for name in there)
