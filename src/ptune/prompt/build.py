"""From a prompt's configuration to an initialised prompt encoder for a given frozen model."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.config import PromptEncoderConfig, PromptLearningConfig, PromptTuningConfig, PromptTuningInit, TaskType
from ptune.data.text_ids import ids_of, leading_special_ids
from ptune.deep_config import CartridgeConfig, DeepPromptConfig, PrefixTuningConfig, PromptConfig
from ptune.encoders import PromptEncoder, build_encoder, initialise
from ptune.encoders.initialise import embedding_std, repeated, sampled_tokens, token_vectors
from ptune.errors import ConfigError, ModelError, PromptError
from ptune.frozen.capability import check_causal
from ptune.frozen.parameters import device_of, has_weights
from ptune.frozen.parts import output_head, token_dim
from ptune.frozen.shards import in_shards
from ptune.internals import children_of
from ptune.loading.load import load_tokenizer
from ptune.prefix.keys_values import Prefix
from ptune.prompt.build_deep import build_deep, completed_deep, empty_deep_encoder

AnyConfig = TypeVar("AnyConfig", bound=PromptLearningConfig)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_prompt_name(name: str) -> str:
    """The name, if it can name a prompt.

    Raises:
        PromptError: Not a word of letters, digits, `_` and `-`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PromptError(
            f"{name!r} cannot name a prompt.",
            hint="Use 1 to 64 letters, digits, '_' or '-', starting with a letter or digit.",
        )
    return name


def check_new_name(name: str, taken: Container[str]) -> None:
    """Raise `PromptError` unless the name can name one more prompt."""
    if check_prompt_name(name) in taken:
        raise PromptError(f"there is a prompt {name!r} already.", hint="Choose another name, or delete_prompt first.")


def check_room(config: PromptConfig, context_length: int | None) -> None:
    """Raise `ConfigError` when a prompt fills the model's context by itself."""
    if context_length is not None and config.num_virtual_tokens >= context_length:
        raise ConfigError(
            f"num_virtual_tokens={config.num_virtual_tokens} leaves no room in the model's context of "
            f"{context_length} tokens.",
            hint="Use fewer virtual tokens.",
        )


def encoder_kind(config: PromptConfig) -> str:
    """The registry name of the encoder a configuration asks for."""
    if isinstance(config, PromptTuningConfig):
        return "embedding"
    if isinstance(config, DeepPromptConfig):
        return "prefix-mlp" if isinstance(config, PrefixTuningConfig) and config.prefix_projection else "prefix"
    return str(getattr(config.encoder_reparameterization_type, "value", config.encoder_reparameterization_type)).lower()


def unwrapped(base: Any) -> Any:
    """The model with its injected layers, where PEFT has wrapped it for LoRA and the like; any other as it is.

    Raises:
        ModelError: PEFT has put a prompt in front of it.
    """
    if not type(base).__module__.startswith("peft."):
        return base
    if base.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"the model has a prompt of PEFT's in front of it already ({type(base).__name__}).",
            hint="Pass its get_base_model(), and load the prompt with load_prompt.",
        )
    return base.get_base_model()


def check_base(base: PreTrainedModel) -> None:
    """Refuse a model that is not a causal language model, or cannot carry a soft prompt.

    Raises:
        ModelError: It is not a causal language model of transformers.
    """
    check_frozen(base)
    name = type(base).__name__
    if base.config.is_encoder_decoder or output_head(base) is None:
        what = "an encoder-decoder" if base.config.is_encoder_decoder else "no causal language model"
        raise ModelError(
            f"{name} is {what}.",
            hint="Load a decoder with AutoModelForCausalLM; or wrap this one for another task: get_peft_model, "
            "PTunedTaskModel.",
        )
    check_causal(base)


def check_frozen(base: PreTrainedModel) -> None:
    """Refuse what cannot carry a soft prompt, whatever it is for.

    Raises:
        ModelError: It is no model of transformers, has prompts already, or is kept in shards.
    """
    if isinstance(base, nn.Module) and "prompts" in children_of(base):
        raise ModelError(
            "the model has soft prompts already.", hint="Call its add_prompt, or pass its get_base_model()."
        )
    if not isinstance(base, PreTrainedModel):
        raise ModelError(
            f"{type(base).__name__} is not a model of transformers.", hint="Load it with AutoModelForCausalLM."
        )
    if in_shards(base):
        raise ModelError(
            f"the weights of this {type(base).__name__} are shards (a tensor parallel plan, FSDP), which no prompt "
            "can be trained or saved on.",
            hint="Load it whole or with a device_map; ptune train --fsdp and PTuneTrainer shard its layers themselves.",
        )


def empty_encoder(config: PromptConfig, dim: int) -> PromptEncoder:
    """The encoder a configuration describes, before any initialisation of ours; one of a deep prompt's is complete."""
    if isinstance(config, DeepPromptConfig):
        return empty_deep_encoder(config)
    if isinstance(config, PromptTuningConfig):
        return build_encoder("embedding", num_virtual_tokens=config.num_virtual_tokens, token_dim=dim)
    return build_encoder(
        encoder_kind(config),
        num_virtual_tokens=config.num_virtual_tokens,
        token_dim=dim,
        hidden_size=config.encoder_hidden_size,
        num_layers=config.encoder_num_layers,
        dropout=config.encoder_dropout,
    )


def build_prompt(
    base: PreTrainedModel,
    config: PromptConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    start: torch.Tensor | Prefix | None = None,
    task: TaskType = TaskType.CAUSAL_LM,
) -> tuple[PromptEncoder, PromptConfig]:
    """A new, initialised prompt encoder, and its configuration completed from the model.

    Args:
        base: The frozen model the prompt is for.
        config: What to build.
        tokenizer: Needed for an initial text, unless the configuration names one.
        start: Vectors to start from, `(any, D)`, in place of what the configuration says: too many are cut, too few
            repeated. For a deep prompt keys and values, or vectors that are run through the model.
        task: What the model is for.

    Raises:
        ConfigError: The configuration does not fit the model, or an initial text has no tokenizer.
        ModelError: A deep prompt, for a model that keeps no keys and values of one shape.
    """
    config = _completed(base, config, task)
    if isinstance(config, DeepPromptConfig):
        return _build_deep(base, config, tokenizer, start)
    if isinstance(start, Prefix):
        raise ConfigError(
            "a prompt of keys and values has no virtual-token embeddings for another encoder to start from.",
            hint="Use the encoder prefix or prefix-mlp.",
        )
    dim = token_dim(base)
    if config.token_dim not in (None, dim):
        raise ConfigError(
            f"token_dim={config.token_dim}, but the model's embeddings have {dim}.", hint="Leave token_dim out."
        )
    completed = replace(config, token_dim=dim)
    if isinstance(completed, PromptEncoderConfig) and completed.encoder_hidden_size is None:
        completed = replace(completed, encoder_hidden_size=dim)
    encoder = empty_encoder(completed, dim)
    if has_weights(base):
        embed, vocab_size = base.get_input_embeddings(), int(base.config.get_text_config().vocab_size)
        vectors = _start_vectors(base, completed, tokenizer) if start is None else start.float().cpu()
        initialise(
            encoder,
            vectors=None if vectors is None else repeated(vectors, completed.num_virtual_tokens),
            std=embedding_std(embed, vocab_size=vocab_size),
        )
    encoder.to(device=device_of(base), dtype=torch.float32)
    encoder.requires_grad_(not completed.inference_mode)
    return encoder, completed


def _completed(base: PreTrainedModel, config: AnyConfig, task: TaskType) -> AnyConfig:
    """A configuration with its task, and the model's name."""
    name = _lasting(config.base_model_name_or_path or getattr(base.config, "_name_or_path", None) or None)
    return replace(config, task_type=task, num_transformer_submodules=1, base_model_name_or_path=name)


def _build_deep(
    base: PreTrainedModel,
    config: PrefixTuningConfig | CartridgeConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    start: torch.Tensor | Prefix | None,
) -> tuple[PromptEncoder, PromptConfig]:
    """`build_prompt` for a deep prompt."""
    completed = completed_deep(base, config)
    text = completed.init_text if start is None else None
    ids = None
    if text is not None:
        chosen = _tokenizer_for(completed, tokenizer)
        ids = [*leading_special_ids(chosen), *ids_of([text], chosen)[0]]
    special = tokenizer.all_special_ids if tokenizer is not None else []
    encoder = build_deep(base, completed, start, text_ids=ids, special_ids=special)
    encoder.to(device=device_of(base), dtype=torch.float32)
    encoder.requires_grad_(not completed.inference_mode)
    return encoder, completed


def _lasting(name: str | None) -> str | None:
    """A model's name as it is noted in a prompt: a place on this machine as seen from anywhere on it."""
    return str(Path(name).expanduser().resolve()) if name and Path(name).expanduser().exists() else name


def _start_vectors(
    base: PreTrainedModel, config: PromptEncoderConfig | PromptTuningConfig, tokenizer: PreTrainedTokenizerBase | None
) -> torch.Tensor | None:
    """The `(P, D)` vectors a prompt starts from; None for a random start."""
    if isinstance(config, PromptTuningConfig):
        init, text = config.prompt_tuning_init, config.prompt_tuning_init_text
    else:
        init, text = config.init, config.init_text
    if init is PromptTuningInit.RANDOM:
        return None
    embed = base.get_input_embeddings()
    if init is PromptTuningInit.TEXT:
        assert text is not None
        return token_vectors(embed, _tokenizer_for(config, tokenizer)(text, add_special_tokens=False)["input_ids"])
    special = tokenizer.all_special_ids if tokenizer is not None else []
    size = int(base.config.get_text_config().vocab_size)
    return token_vectors(embed, sampled_tokens(size, config.num_virtual_tokens, special))


def _tokenizer_for(config: PromptConfig, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The given tokenizer, the one the configuration names, or the base model's own."""
    if tokenizer is not None:
        return tokenizer
    named = config.tokenizer_name_or_path if isinstance(config, PromptTuningConfig) else None
    name = named or config.base_model_name_or_path
    if not name:
        raise ConfigError(
            "an initial text needs a tokenizer, and the model has no name to load one by.",
            hint="Pass tokenizer=… to get_peft_model.",
        )
    try:
        return load_tokenizer(name)
    except ModelError as error:
        raise ConfigError(
            f"an initial text needs a tokenizer: {error}", hint="Pass tokenizer=… to get_peft_model."
        ) from error
