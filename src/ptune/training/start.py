"""A new run from a finished prompt: its encoder goes on, or its vectors are where another encoder starts.

Vectors can be a start only for encoders that give back exactly their table before training (`residual`, `embedding`):
an MLP or LSTM would turn them into something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ptune.config import PromptEncoderConfig
from ptune.encoders import ENCODERS
from ptune.errors import ConfigError
from ptune.model.wrapper import DEFAULT_PROMPT, PTunedModel
from ptune.prompt.build import encoder_kind
from ptune.recipe import TrainRecipe
from ptune.saved.format import SavedPrompt, read_prompt
from ptune.saved.hub import prompt_folder
from ptune.saved.opened_folder import open_folder

ENCODER_FIELDS = (
    "encoder",
    "num_virtual_tokens",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_dropout",
)


def encoder_settings(prompt: str) -> dict[str, Any]:
    """The recipe's values that describe the encoder of a prompt folder, or of a prompt on the hub.

    Raises:
        PromptError: There is none, or it is damaged.
    """
    return _settings(read_prompt(prompt_folder(prompt)))


def _settings(saved: SavedPrompt) -> dict[str, Any]:
    known = {item.name for item in fields(saved.config)}
    found = {name: getattr(saved.config, name) for name in ENCODER_FIELDS if name in known}
    kind = encoder_kind(saved.config) if saved.encoder is not None else "embedding"
    return {**found, "encoder": kind}


def start_from(
    model: PTunedModel, recipe: TrainRecipe, config: PromptEncoderConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Give a model the prompt that `recipe.init_from` names to start from.

    Args:
        model: The model.
        recipe: Names the prompt.
        config: Of the prompt that is to train: where the folder's has other virtual tokens inside the text, these hold.
        tokenizer: Compared with the one that the prompt was made with.

    Raises:
        PromptError: The folder is missing, damaged, or made for another model or tokenizer (`recipe.force` overrides).
        ConfigError: Another encoder is asked for that cannot start from vectors.
    """
    opened = open_folder(prompt_folder(str(recipe.init_from)))
    saved = read_prompt(opened)
    name = model.load_prompt(opened, name=DEFAULT_PROMPT, force=recipe.force, tokenizer=tokenizer)
    there = _settings(saved)
    if _same_encoder(recipe, there):
        model.prompt_configs[name] = replace(model.prompt_configs[name], tokens_in_text=config.tokens_in_text)
        return
    if not ENCODERS[recipe.encoder].keeps_vectors:
        raise ConfigError(
            f"{opened.path} holds the encoder {_shown(there)}; {recipe.encoder} of {recipe.num_virtual_tokens} virtual "
            "tokens cannot start from its vectors.",
            hint="Leave the encoder's flags out to go on with that encoder, or take residual or embedding.",
        )
    vectors = saved.vectors
    config = replace(config, base_model_name_or_path=model.prompt_configs[name].base_model_name_or_path)
    model.delete_prompt(name)
    encoder = model.add_prompt(DEFAULT_PROMPT, config, tokenizer=tokenizer)
    repeats = -(-config.num_virtual_tokens // len(vectors))
    with torch.no_grad():
        encoder.embedding.weight.copy_(vectors.repeat(repeats, 1)[: config.num_virtual_tokens])


def _same_encoder(recipe: TrainRecipe, there: Mapping[str, Any]) -> bool:
    """Whether the recipe asks for what the folder holds; a width that is not given is the folder's."""
    return all(getattr(recipe, name) in (there[name], None) for name in there)


def _shown(there: Mapping[str, Any]) -> str:
    return f"{there['encoder']} with {there['num_virtual_tokens']} virtual tokens"
