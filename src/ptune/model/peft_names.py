"""`get_peft_model`, so that a script written for PEFT needs another import and nothing else."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.errors import ConfigError
from ptune.model.prompts import PromptConfig
from ptune.model.wrapper import DEFAULT_PROMPT, PTunedModel


def get_peft_model(  # noqa: PLR0917  # PEFT's order of arguments
    model: PreTrainedModel,
    peft_config: PromptConfig,
    adapter_name: str = DEFAULT_PROMPT,
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,  # noqa: ARG001  # PEFT's
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PTunedModel:
    """A `PTunedModel` around a frozen model, under PEFT's name and with PEFT's arguments.

    Args:
        model: The model to freeze and wrap.
        peft_config: `PromptEncoderConfig` or `PromptTuningConfig`.
        adapter_name: Name of the prompt.
        mixed: Refused: there is one kind of adapter here.
        autocast_adapter_dtype: Must stay True: the prompt encoder is always float32.
        revision: Noted in the configuration when that has none.
        low_cpu_mem_usage: Without effect; a prompt encoder is small.
        tokenizer: For an initial text.
    """
    if mixed:
        raise ConfigError("mixed=True is not supported: ptune has soft prompts only.", hint="Leave it out.")
    if not autocast_adapter_dtype:
        raise ConfigError(
            "autocast_adapter_dtype=False is not supported: the prompt encoder is float32.", hint="Leave it out."
        )
    if not isinstance(peft_config, PromptConfig):
        raise ConfigError(
            f"{type(peft_config).__name__} is not supported.",
            hint="Use ptune.PromptEncoderConfig or PromptTuningConfig.",
        )
    if revision is not None and peft_config.revision is None:
        peft_config = replace(peft_config, revision=revision)
    return PTunedModel(model, peft_config, prompt_name=adapter_name, tokenizer=tokenizer)
