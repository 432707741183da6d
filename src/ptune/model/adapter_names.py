"""What a model with soft prompts is called in PEFT: a script that trains or loads with PEFT finds its names here.

Each is another name of something that `PTunedModel` has. What PEFT has for adapters that change weights, and what has
no meaning for a prompt, is refused with the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from ptune.deep_config import PromptConfig
from ptune.encoders import PromptEncoder
from ptune.errors import ModelError, PromptError


class AdapterNames(nn.Module):
    """PEFT's names for what `PTunedModel` does."""

    prompts: nn.ModuleDict
    prompt_configs: dict[str, PromptConfig]
    active_prompt: str | None

    @property
    def peft_config(self) -> Mapping[str, PromptConfig]:
        """The configuration of each prompt."""
        return self.prompt_configs

    @property
    def active_peft_config(self) -> PromptConfig:
        """The active prompt's configuration."""
        return self.prompt_configs[self.active_adapter]

    @property
    def active_adapter(self) -> str:
        """The active prompt.

        Raises:
            PromptError: There is none.
        """
        if self.active_prompt is None:
            raise PromptError("the model has no prompt.", hint="Call add_prompt or load_prompt.")
        return self.active_prompt

    @property
    def active_adapters(self) -> list[str]:
        """The active prompt, as a list."""
        return [self.active_adapter]

    @property
    def prompt_encoder(self) -> nn.ModuleDict:
        """The prompt encoders by name."""
        return self.prompts

    def add_prompt(self, name: str, config: PromptConfig) -> Any:
        """The model's own."""
        raise NotImplementedError

    def load_prompt(self, directory: str | Path, **options: Any) -> str:
        """The model's own."""
        raise NotImplementedError

    def add_adapter(self, adapter_name: str, peft_config: Any, **_options: Any) -> None:
        """`add_prompt`, for a configuration of ptune's or PEFT's, or a dictionary."""
        from ptune.model.peft_names import as_prompt_config

        self.add_prompt(adapter_name, as_prompt_config(peft_config))

    def load_adapter(self, model_id: str | Path, adapter_name: str, is_trainable: bool = False, **options: Any) -> str:
        """`load_prompt`; a prompt of that name gives way to the one that is loaded, as in PEFT."""
        there = adapter_name in self.prompts
        return self.load_prompt(model_id, name=adapter_name, trainable=is_trainable, replace=there, **options)

    def get_prompt_embedding_to_save(self, adapter_name: str | None = None) -> torch.Tensor:
        """`(P, D)` or `(P, 2 L H E)`: what a prompt's encoder gives, as it is saved, on the CPU, without dropout."""
        encoder = self.prompts[adapter_name or self.active_adapter]
        assert isinstance(encoder, PromptEncoder)
        return encoder.baked().cpu()

    def get_prompt(self, batch_size: int) -> torch.Tensor:
        """`(B, P, D)`: the active prompt's vectors for so many rows, with gradients where the encoder has them.

        Of a deep prompt, `(B, P, 2 L H E)`.
        """
        encoder = self.prompts[self.active_adapter]
        vectors: torch.Tensor = encoder()
        return vectors.expand(batch_size, -1, -1)

    def merge_and_unload(self, *_args: Any, **_options: Any) -> NoReturn:
        """Refused: a prompt is not a change of weights."""
        raise ModelError(
            "a soft prompt cannot be merged into the weights: it is vectors that stand before the text.",
            hint="get_base_model() is the model without it; ptune export PROMPT is for other engines.",
        )

    merge_adapter = unmerge_adapter = merge_and_unload

    def enable_adapters(self) -> NoReturn:
        """Refused: prompts are turned off inside `disable_adapter` alone."""
        raise ModelError("prompts are on, but inside disable_adapter().", hint="Use `with model.disable_adapter():`.")

    disable_adapters = enable_adapters
