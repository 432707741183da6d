"""A decoder's layers behind the prompts of a model for a task, on every way that a causal model has through them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ptune.deep_config import PromptConfig
from ptune.encoders import PromptEncoder
from ptune.model.holds_prompts import HoldsPrompts
from ptune.model.running import RunsPrompts


class DecoderLayers(RunsPrompts):
    """Runs texts behind the prompts of another model.

    Args:
        model: The model whose prompts they are.
        shell: Its decoder as a causal language model; see `ptune.tasks.decoder_shell`.
        self_check: As for `PTunedModel`.
    """

    def __init__(self, model: HoldsPrompts, shell: PreTrainedModel, *, self_check: bool) -> None:
        super().__init__()
        self._owner = (model,)  # in a tuple: it is no part of this module
        self.base = shell
        self._find_ways(shell, self_check=self_check)

    @property
    def prompts(self) -> nn.ModuleDict:  # type: ignore[override]  # the owner's
        """The owner's prompts."""
        return self._owner[0].prompts

    @property
    def prompt_configs(self) -> dict[str, PromptConfig]:  # type: ignore[override]  # the owner's
        """Their configurations."""
        return self._owner[0].prompt_configs

    def prompt_called(self, name: str | None) -> str:
        """The owner's."""
        return self._owner[0].prompt_called(name)

    def encoder_of(self, name: str) -> PromptEncoder:
        """The owner's."""
        return self._owner[0].encoder_of(name)
