"""The prompts of a model that has them in its vocabulary: what `soft_prompts.json` of an exported model lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ptune.config import PromptTuningConfig
from ptune.data.blocks import tokens_in_text, tokens_of
from ptune.data.template import get_template
from ptune.errors import ModelError, PTuneError, one_line, shown
from ptune.frozen.parts import embedding_table
from ptune.model.wrapper import PTunedModel
from ptune.prompt.build import check_prompt_name, check_room, empty_encoder
from ptune.saved.as_model.engine_card import PROMPTS
from ptune.serving.prompt_facts import PromptFacts, told_model_name
from ptune.serving.served_prompt import ServedPrompt

_NO_HISTORY = "An exported model keeps no loss histories."


def vocabulary_prompts(
    folder: Path, model: PTunedModel, tokenizer: PreTrainedTokenizerBase
) -> list[ServedPrompt] | None:
    """The prompts of an exported model; None where the folder is none.

    Args:
        folder: The model's.
        model: Its shapes.
        tokenizer: Its tokenizer.

    Raises:
        ModelError: The list is damaged, or does not fit the model.
    """
    path = folder / PROMPTS
    if not path.is_file():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        origin = told_model_name(read.get("base_model"))
        facts = PromptFacts(base_model=origin, written_by="ptune export", history_note=_NO_HISTORY)
        return [_prompt(name, noted, path, model, tokenizer, facts=facts) for name, noted in read["prompts"].items()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = one_line(error) if isinstance(error, PTuneError) else f"{type(error).__name__} {shown(error)}"
        raise ModelError(f"{path} is no list of prompts: {reason}", hint="Export the model again.") from error


def _prompt(
    name: str, noted: Any, path: Path, model: PTunedModel, tokenizer: PreTrainedTokenizerBase, *, facts: PromptFacts
) -> ServedPrompt:
    count, first = int(noted["virtual_tokens"]), int(noted["first_id"])
    rows, dim = embedding_table(model.base).shape
    if not (count > 0 and 0 <= first <= rows - count):
        raise ModelError(f"{shown(name)} has the tokens {first} to {first + count - 1}, and the model has {rows}.")
    template = get_template(str(noted["template"]), tokenizer, files=False)
    if tokens_of(template.blocks) not in (0, count):
        raise ModelError(f"{shown(name)} has {count} virtual tokens, and its template {tokens_of(template.blocks)}.")
    config = PromptTuningConfig(
        num_virtual_tokens=count, tokens_in_text=tokens_in_text(template.blocks), token_dim=dim, inference_mode=True
    )
    check_room(config, model.context_length)
    with torch.device("meta"):  # its vectors are the model's own rows, which nobody needs here
        encoder = empty_encoder(config, dim)
    return ServedPrompt(
        name=check_prompt_name(name),
        key=name,
        folder=path.parent,
        encoder=encoder,
        config=config,
        template=template,
        first_id=first,
        facts=facts,
    )
