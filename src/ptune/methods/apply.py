"""What a method makes of a model: which parameters train. Trainable weights are float32, whatever the model's dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.choices import PREFIX_MLP
from ptune.config import PromptEncoderConfig, TaskType
from ptune.deep_config import PrefixTuningConfig, PromptConfig
from ptune.errors import ConfigError, ModelError, one_line
from ptune.methods.names import METHODS, Method, find_method
from ptune.model.task_model import PTunedTaskModel
from ptune.model.wrapper import PTunedModel

__all__ = ["METHODS", "MethodSettings", "apply_method"]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Sizes of what a method adds. Prompts by default as in `ptune train`, LoRA as in PEFT."""

    num_virtual_tokens: int = 10
    encoder_hidden_size: int | None = None
    """The model's width when None, or with keys and values of every layer the size of a layer's keys."""
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    lora_r: int = 8
    lora_alpha: int = 16
    packing: bool = True
    """ptune's prompts alone: rows one after another, without padding."""
    self_check: bool = True
    """The same: the model is tried on a short text first."""


def apply_method(
    name: str, base: PreTrainedModel, settings: MethodSettings | None = None, *, task: TaskType = TaskType.CAUSAL_LM
) -> nn.Module:
    """`base` with what the method trains, in train mode; the same weights, not a copy.

    Args:
        name: A key of `METHODS`.
        base: As `load_model` gives it, or on the meta device.
        settings: Sizes.
        task: What the model is for.

    Raises:
        ConfigError: An unknown method, one that there is not for the task, or sizes that do not fit.
        ModelError: The architecture cannot be adapted in this way.
    """
    chosen, sizes = find_method(name), settings or MethodSettings()
    base.requires_grad_(False)
    if chosen.name == "full":
        for weight in base.parameters():
            weight.data = weight.data.to(torch.float32)
        base.requires_grad_(True)
        base.train()
        return base
    if chosen.is_ptune:
        config = prompt_config(chosen, sizes)
        if task is not TaskType.CAUSAL_LM:
            return PTunedTaskModel(base, config, task=task, self_check=sizes.self_check).train()
        model = PTunedModel(base, config, self_check=sizes.self_check)
        model.pack_batches = sizes.packing
        return model.train()
    import peft

    its_config = _peft_config(chosen, sizes, task)
    try:
        try:
            adapted: nn.Module = peft.get_peft_model(base, its_config)
        except ValueError:  # PEFT knows which layers LoRA belongs to for some architectures
            if chosen.encoder is not None:
                raise
            its_config.target_modules = "all-linear"
            adapted = peft.get_peft_model(base, its_config)
    except ValueError as error:
        raise ModelError(f"PEFT cannot adapt {type(base).__name__}: {one_line(error)}") from error
    return adapted.train()


def prompt_config(chosen: Method, sizes: MethodSettings) -> PromptConfig:
    """The prompt of one of ptune's methods.

    Raises:
        ConfigError: Sizes that no prompt can have.
    """
    assert chosen.encoder is not None
    if chosen.is_deep:
        projects = chosen.encoder == PREFIX_MLP
        return PrefixTuningConfig(
            num_virtual_tokens=sizes.num_virtual_tokens,
            prefix_projection=projects,
            encoder_hidden_size=sizes.encoder_hidden_size if projects else None,
        )
    return PromptEncoderConfig(
        num_virtual_tokens=sizes.num_virtual_tokens,
        encoder_reparameterization_type=chosen.encoder.upper(),
        encoder_hidden_size=sizes.encoder_hidden_size,
        encoder_num_layers=sizes.encoder_num_layers,
        encoder_dropout=sizes.encoder_dropout,
    )


def _peft_config(chosen: Method, sizes: MethodSettings, task: TaskType) -> Any:
    import peft

    named = None if task is TaskType.MASKED_LM else peft.TaskType(task.value)
    if named is None and chosen.encoder is not None:
        raise ConfigError("PEFT has no prompts for masked language models.", hint=f"Leave {chosen.name} out.")
    if chosen.encoder is None:
        return peft.LoraConfig(task_type=named, r=sizes.lora_r, lora_alpha=sizes.lora_alpha)
    width: Any = sizes.encoder_hidden_size  # PEFT types it as int, and takes None for the model's width
    return peft.PromptEncoderConfig(
        task_type=named,
        num_virtual_tokens=sizes.num_virtual_tokens,
        encoder_reparameterization_type=chosen.encoder.upper(),
        encoder_hidden_size=width,
        encoder_num_layers=sizes.encoder_num_layers,
        encoder_dropout=sizes.encoder_dropout,
    )
