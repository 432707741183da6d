"""`PTunedTaskModel`: a frozen model for another task than causal language modelling, with soft prompts in front of it.

| task | model | what trains beside the prompt |
| --- | --- | --- |
| `SEQ_CLS`, `TOKEN_CLS`, `QUESTION_ANS` | encoders, decoders | the head |
| `MASKED_LM` | encoders | nothing: the model's own head says which word stands at the mask |
| `SEQ_2_SEQ_LM` | encoder-decoders | nothing |
| `FEATURE_EXTRACTION` | encoders, decoders | nothing |

`ptune.model.running_tasks` says how a batch runs.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Self

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.config import TaskType
from ptune.deep_config import PromptConfig
from ptune.errors import ModelError
from ptune.frozen.capability import Capability, context_length, prefix_capability
from ptune.internals import children_of
from ptune.model.decoder_layers import DecoderLayers
from ptune.model.holds_prompts import DEFAULT_PROMPT
from ptune.model.running_tasks import RunsTasks
from ptune.prefix.across_calls import PrefixCache
from ptune.prefix.across_micro_batches import SharedPrefix
from ptune.prompt.build import check_frozen, unwrapped
from ptune.saved.format import BOTH_WAYS
from ptune.saved.opened_folder import OpenedFolder
from ptune.tasks.behind_head import BehindHead
from ptune.tasks.decoder_shell import as_causal_model
from ptune.tasks.task_parts import head_names, is_decoder, reads_text, task_of


class PTunedTaskModel(RunsTasks):
    """A frozen model for a task, and its soft prompts, each with a head of its own where the task has one.

    Args:
        base: A model from `AutoModelForSequenceClassification` and the like. It is frozen in place and otherwise left
            as it is; its head is where a prompt's head begins.
        config: Configuration of the first prompt; None starts without one.
        prompt_name: Name of the first prompt.
        tokenizer: Needed for an initial text.
        task: What the model is for; told by its class where that says so.
        self_check: As for `PTunedModel`, where the model is a decoder.

    Raises:
        ModelError: The model cannot carry a soft prompt, or has no head for its task.
        ConfigError: The configuration does not fit the model.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        config: PromptConfig | None = None,
        *,
        prompt_name: str = DEFAULT_PROMPT,
        tokenizer: PreTrainedTokenizerBase | None = None,
        task: TaskType | None = None,
        self_check: bool = True,
    ) -> None:
        super().__init__()
        base = unwrapped(base)
        check_frozen(base)
        asked = None if config is None or config.task_type is None else TaskType(config.task_type)
        self.task = task_of(base, task or asked)
        if self.task is TaskType.CAUSAL_LM:
            raise ModelError(f"{type(base).__name__} is a causal language model.", hint="Wrap it with PTunedModel.")
        _check_parts(base, self.task)
        self._hold(base)
        reader, whole = reads_text(base), self.task is TaskType.SEQ_2_SEQ_LM
        self._behind = None if reader is base or whole else BehindHead(base)
        self._layers = ()
        if not whole and is_decoder(base):
            layers = DecoderLayers(self, as_causal_model(reader, base), self_check=self_check)
            self._layers = (layers,)
            self.capability, self.prefixes = layers.capability, layers.prefixes
            self.context_length, self.shared_prefix = layers.context_length, layers.shared_prefix
        else:
            self.capability = _writing(base) if whole else prefix_capability(reader)
            self.context_length, self.prefixes = context_length(reader), PrefixCache()
            self.shared_prefix = SharedPrefix()
        if config is not None:
            self.add_prompt(prompt_name, config, tokenizer=tokenizer)

    # ---- what the model is made of -----------------------------------------------------------------------------

    @property
    def prompt_base(self) -> PreTrainedModel:
        """The model that prompts are made for: what reads them, without a head."""
        if self._layers:
            return self._layers[0].base
        return self.base if self.task is TaskType.SEQ_2_SEQ_LM else reads_text(self.base)

    @property
    def reads_ahead(self) -> bool:
        """Whether the model is a decoder, whose hidden states say what comes next."""
        return bool(self._layers)

    @property
    def decoder_layers(self) -> DecoderLayers | None:
        """The ways through a decoder's layers; None of other models."""
        return next(iter(self._layers), None)

    @property
    def packs_rows(self) -> bool:
        """Whether the rows of padded batches run packed, without their padding."""
        return any(layers.packs for layers in self._layers)

    @property
    def has_head(self) -> bool:
        """Whether a head trains with each prompt."""
        return bool(head_names(self.base, self.task))

    @property
    def predicts_first_tokens(self) -> bool:
        """Whether the labels of a text's first token count: here labels are those of their own place."""
        return True

    def _new_head(self, modules_to_save: list[str] | None) -> nn.ModuleDict | None:
        names = head_names(self.base, self.task, modules_to_save)
        if not names:
            return None
        return nn.ModuleDict({name: copy.deepcopy(getattr(self.base, name)) for name in names}).requires_grad_(True)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"base_class": type(self.base).__name__}
        if not self._layers:
            facts["attends"] = BOTH_WAYS
        if self.task in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
            names: Any = self.base.config.id2label
            facts["labels"] = [names[at] for at in sorted(names)]
        return facts

    @classmethod
    def _for_task(cls, opened: OpenedFolder) -> dict[str, Any]:
        opened.check_task([one for one in TaskType if one is not TaskType.CAUSAL_LM], "PTunedModel")
        return {"task": opened.task, "labels": opened.labels()}

    @classmethod
    def _with_prompt(cls, base: PreTrainedModel, opened: OpenedFolder, *, self_check: bool, **options: Any) -> Self:
        model = cls(base, task=opened.task, self_check=self_check)
        model.load_prompt(opened, **options)
        return model.train(options["trainable"])


def _check_parts(base: PreTrainedModel, task: TaskType) -> None:
    """Raise `ModelError` for an encoder-decoder whose head reads its decoder, or a task that needs one."""
    name, whole = type(base).__name__, "decoder" in children_of(reads_text(base))
    if task is not TaskType.SEQ_2_SEQ_LM and base.config.is_encoder_decoder and whole:
        raise ModelError(
            f"{name} reads a text with its decoder too, where a prompt has no place.",
            hint="Use an encoder or a decoder; or have the model write the label: task_type=SEQ_2_SEQ_LM.",
        )
    if task is TaskType.SEQ_2_SEQ_LM and not base.config.is_encoder_decoder:
        raise ModelError(f"{name} is no encoder-decoder.", hint="Use CAUSAL_LM, or a model such as T5 or BART.")


def _writing(base: PreTrainedModel) -> Capability:
    """What an encoder-decoder can do: its decoder goes on from keys and values."""
    return replace(prefix_capability(base), prefix=True, reason=f"the decoder of {type(base).__name__} takes a cache")
