"""A prompt as PEFT has it: the `adapter_config.json` that PEFT 0.21 loads, and what such a file says to ptune.

PEFT keeps the baked `(P, D)` vectors under `prompt_embeddings`, whatever encoder made them. A residual encoder is
`PROMPT_TUNING` to PEFT, which knows no residual; its baked vectors are the same. Deep prompts are another thing under
the same key: `(P, 2 L H E)` keys and values, layer after layer, keys before values, head after head. There `token_dim`
is `H E`, and heads are key/value heads. The other kinds of adapter are refused by name.

Shapes: `P` virtual tokens, `D` token dimension, `L` layers, `H` key/value heads, `E` head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ptune.config import PromptEncoderConfig, PromptEncoderReparameterizationType, PromptTuningInit, TaskType
from ptune.deep_config import CartridgeConfig, DeepPromptConfig, PromptConfig
from ptune.errors import PromptError, shown

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_KEY = "prompt_embeddings"
PEFT_HEAD = "base_model."
"""What PEFT puts before the names of modules that train with a prompt, which are those of the frozen model."""

_PEFT_ENCODERS = (PromptEncoderReparameterizationType.MLP, PromptEncoderReparameterizationType.LSTM)
IN_TEXT = "P_TUNING_IN_TEXT"
"""No type of PEFT's, which knows no place for virtual tokens but before the text: it refuses the folder."""
NOT_PEFTS = "P_TUNING_OF_PTUNE"
"""The same for every other prompt that PEFT would take for something else: see `peft_obstacle`."""
_NOT_OURS = ("auto_mapping", "tokenizer_kwargs")
"""Of PEFT's own file: what concerns its loading alone."""
_OTHER_PROMPTS = {
    "MULTITASK_PROMPT_TUNING": "a prompt shared by several tasks and a low-rank part for each",
    "CPT": "token embeddings of examples with a bounded change",
    "ADAPTION_PROMPT": "prompts inside the layers, with gates",
}
"""Kinds of PEFT's that are prompts of some kind, and what they hold in place of `(P, D)` vectors."""


def peft_obstacle(config: PromptConfig, *, both_ways: bool) -> str | None:
    """Why PEFT cannot take a prompt as it is meant, as a sentence without a full stop; None where it can.

    Args:
        config: Of the prompt.
        both_ways: Whether its model is an encoder, whose tokens attend both ways.
    """
    deep, task = isinstance(config, DeepPromptConfig), config.task_type
    if config.tokens_in_text:
        return (
            f"{config.tokens_in_text} of the prompt's {config.num_virtual_tokens} virtual tokens stand inside the "
            "text, and PEFT puts all of them before it"
        )
    if task is TaskType.MASKED_LM:
        return "PEFT has no prompts for masked language models"
    if deep and task is TaskType.SEQ_2_SEQ_LM:
        return "PEFT hands layer i of a decoder the keys and values that are meant for layer 2i"
    if both_ways and not deep and task is TaskType.SEQ_CLS and not config.pool_virtual_tokens:
        return "PEFT's classifier reads the first virtual token, and this one the text's own [CLS]"
    return None


def peft_config(config: PromptConfig, *, both_ways: bool = False) -> dict[str, Any]:
    """The `adapter_config.json` with which PEFT loads the baked vectors, or refuses them: see `NOT_PEFTS`.

    A prefix is baked, and so a plain table to PEFT, whatever projection made it.
    """
    common = {
        "auto_mapping": None,
        "base_model_name_or_path": config.base_model_name_or_path,
        "inference_mode": True,
        "modules_to_save": None if config.modules_to_save is None else list(config.modules_to_save),
        # PEFT asks for both and uses neither here; a state-space model has no heads.
        "num_attention_heads": config.num_attention_heads or 1,
        "num_layers": config.num_layers or 1,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": config.num_virtual_tokens,
        "revision": config.revision,
        "task_type": "CAUSAL_LM" if config.task_type is None else TaskType(config.task_type).value,
        "token_dim": config.token_dim,
    }
    if peft_obstacle(config, both_ways=both_ways) is not None:
        return {**common, "peft_type": IN_TEXT if config.tokens_in_text else NOT_PEFTS}
    if isinstance(config, PromptEncoderConfig) and config.encoder_reparameterization_type in _PEFT_ENCODERS:
        kind = PromptEncoderReparameterizationType(config.encoder_reparameterization_type)
        return {
            **common,
            "peft_type": "P_TUNING",
            "encoder_reparameterization_type": kind.value,
            "encoder_hidden_size": config.encoder_hidden_size,
            "encoder_num_layers": config.encoder_num_layers,
            "encoder_dropout": config.encoder_dropout,
        }
    if isinstance(config, DeepPromptConfig):
        own: dict[str, Any] = {"prefix_projection": False, "encoder_hidden_size": config.token_dim}
        if isinstance(config, CartridgeConfig):
            own = {"num_frozen_tokens": config.num_frozen_tokens}
        return {**common, "peft_type": config.PEFT_TYPE.value, **own}
    return {**common, "peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}


def own_layers(vectors: torch.Tensor, layers: int) -> torch.Tensor:
    """`(P, 2 L H E)` of a decoder's layers, from what PEFT has for an encoder-decoder.

    PEFT doubles the row, cuts it into four parts a layer, and uses the first two: layer `i` gets what stands at layer
    `2i` of the doubled row, and half of an even number of layers is never used.
    """
    rows = vectors.view(len(vectors), layers, -1)
    return torch.stack([rows[:, 2 * layer % layers] for layer in range(layers)], dim=1).flatten(1)


def plain_values(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an adapter that PEFT wrote, as ptune's configuration takes them.

    An adapter's vectors are there already; how they were once initialised needs no tokenizer.
    """
    values = {key: value for key, value in adapter.items() if key not in _NOT_OURS} | {"inference_mode": False}
    if adapter.get("peft_type") == "PROMPT_TUNING":
        values |= {"prompt_tuning_init": PromptTuningInit.RANDOM.value, "prompt_tuning_init_text": None}
    if adapter.get("peft_type") in ("PROMPT_TUNING", "P_TUNING") and adapter.get("task_type") == TaskType.SEQ_CLS.value:
        values["pool_virtual_tokens"] = True
    # Which projection made a prefix is of no use either: PEFT keeps what it gave.
    for name in ("init_weights", "prefix_projection", "encoder_hidden_size"):
        if adapter.get("peft_type") == "PREFIX_TUNING":
            values.pop(name, None)
    return values


def not_a_soft_prompt(folder: Path, kind: object) -> PromptError:
    """The error for an adapter that no virtual tokens can stand for, with the way out."""
    if kind in (IN_TEXT, NOT_PEFTS):
        what = "virtual tokens inside the text" if kind == IN_TEXT else "a prompt that PEFT has no kind for"
        return PromptError(
            f"{folder} has {what}, and no ptune.json that says how it is meant.",
            hint="Download or copy the whole folder again.",
        )
    what = f"{folder} holds a PEFT adapter of type {shown(kind)}, not a soft prompt"
    if str(kind) in _OTHER_PROMPTS:
        return PromptError(
            f"{what} of virtual tokens: it is {_OTHER_PROMPTS[str(kind)]}.",
            hint="Use it with PEFT, or train a prompt on the same data: ptune train.",
        )
    return PromptError(
        f"{what}: it changes the model.",
        hint="Merge it with PEFT's merge_and_unload, save the merged model, and name that with --model.",
    )
