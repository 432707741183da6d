"""`PTunedModel`: a frozen causal language model with one or more soft prompts in front of it.

The wrapper owns the prompt encoders and nothing else: the frozen model is held, never changed.

Shapes: `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.config import TaskType
from ptune.deep_config import PromptConfig
from ptune.encoders import DeepEncoder
from ptune.model.holds_prompts import DEFAULT_PROMPT, HoldsPrompts
from ptune.model.scoring import ScoresTokens
from ptune.prompt.build import check_base, unwrapped
from ptune.saved.opened_folder import OpenedFolder

__all__ = ["DEFAULT_PROMPT", "PTunedModel"]


class PTunedModel(HoldsPrompts, ScoresTokens):
    """A frozen model and its soft prompts.

    `RunsPrompts` says how text runs behind them, `ScoresTokens` how likely it is there, and `HoldsPrompts` how they are
    added, chosen, saved and loaded.

    Args:
        base: Any decoder from `AutoModelForCausalLM`, with or without layers that PEFT has injected (LoRA). It is
            frozen in place, those layers too, and otherwise left as it is.
        config: Configuration of the first prompt; None starts without one (see `add_prompt`, `load_prompt`).
        prompt_name: Name of the first prompt.
        tokenizer: Needed for an initial text, unless the configuration names one.
        self_check: Try the ways through the model on a short text, and take no way that gives wrong numbers; see
            `ptune.model.self_check`. False believes what the model's class says.

    Raises:
        ModelError: The model cannot carry a soft prompt.
        ConfigError: The configuration does not fit the model.
    """

    # Read by transformers.Trainer: the first label of a row counts, since the last virtual token predicts it.
    loss_type = None

    def __init__(
        self,
        base: PreTrainedModel,
        config: PromptConfig | None = None,
        *,
        prompt_name: str = DEFAULT_PROMPT,
        tokenizer: PreTrainedTokenizerBase | None = None,
        self_check: bool = True,
    ) -> None:
        super().__init__()
        base = unwrapped(base)
        check_base(base)
        self._hold(base)
        self._find_ways(base, self_check=self_check)
        if config is not None:
            self.add_prompt(prompt_name, config, tokenizer=tokenizer)

    @property
    def predicts_first_tokens(self) -> bool:
        """Whether the active prompt predicts the first token of a text; keys and values of every layer do not."""
        return not isinstance(self.encoder_of(self.prompt_called(None)), DeepEncoder)

    def clear_prefixes(self) -> None:
        """Forget the prefixes kept for later calls; `ptune.prefix.across_calls` says when that is needed."""
        self.prefixes.clear()

    @classmethod
    def _for_task(cls, opened: OpenedFolder) -> dict[str, Any]:
        opened.check_task([TaskType.CAUSAL_LM], "PTunedTaskModel")
        return {}

    @classmethod
    def _with_prompt(cls, base: PreTrainedModel, opened: OpenedFolder, *, self_check: bool, **options: Any) -> Self:
        model = cls(base, self_check=self_check)
        model.load_prompt(opened, **options)
        return model.train(options["trainable"])
