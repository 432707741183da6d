"""PEFT's functions and classes, so that a script written for PEFT needs another import and nothing else.

`get_peft_model` for training; `PeftModel.from_pretrained(base, folder)`, `AutoPeftModel` and `PeftConfig` for loading.
PEFT's classes for each task are there too. Configurations may be ptune's, PEFT's own objects, or dictionaries as in an
`adapter_config.json`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.config import PromptLearningConfig, TaskType
from ptune.deep_config import CONFIG_CLASSES, PromptConfig
from ptune.errors import ConfigError, shown
from ptune.model.holds_prompts import DEFAULT_PROMPT, HoldsPrompts
from ptune.model.task_model import PTunedTaskModel
from ptune.model.wrapper import PTunedModel
from ptune.prompt.build import encoder_kind, unwrapped
from ptune.saved.format import read_config
from ptune.saved.hub import prompt_folder
from ptune.saved.opened_folder import open_folder
from ptune.tasks.task_parts import task_of

_OF_THE_HUB = ("token", "cache_dir", "local_files_only", "force_download")
_HIDDEN_LAYERS = 2
"""Of PEFT's MLP, whatever `encoder_num_layers` says."""


def get_peft_model(  # noqa: PLR0917  # PEFT's order of arguments
    model: PreTrainedModel,
    peft_config: Any,
    adapter_name: str = DEFAULT_PROMPT,
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,  # noqa: ARG001  # PEFT's
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    self_check: bool = True,
) -> PeftModel:
    """A model with a new prompt in front of a frozen one, under PEFT's name and with PEFT's arguments.

    Args:
        model: The model to freeze and wrap.
        peft_config: `PromptEncoderConfig`, `PromptTuningConfig`, `PrefixTuningConfig` or `CartridgeConfig`, of ptune's
            or of PEFT's, or a dictionary.
        adapter_name: Name of the prompt.
        mixed: Refused: there is one kind of adapter here.
        autocast_adapter_dtype: Must stay True: the prompt encoder is always float32.
        revision: Noted in the configuration when that has none.
        low_cpu_mem_usage: Without effect; a prompt encoder is small.
        tokenizer: For an initial text.
        self_check: As for `PTunedModel`.
    """
    if mixed:
        raise ConfigError("mixed=True is not supported: ptune has soft prompts only.", hint="Leave it out.")
    if not autocast_adapter_dtype:
        raise ConfigError(
            "autocast_adapter_dtype=False is not supported: the prompt encoder is float32.", hint="Leave it out."
        )
    config = as_prompt_config(peft_config)
    if revision is not None and config.revision is None:
        config = replace(config, revision=revision)
    if encoder_kind(config) == "mlp" and getattr(config, "encoder_num_layers", _HIDDEN_LAYERS) != _HIDDEN_LAYERS:
        warnings.warn(
            f"encoder_num_layers={config.encoder_num_layers}: ptune builds as many hidden layers; "  # type: ignore[union-attr]  # an MLP's has it
            f"PEFT says nothing to it for an MLP and builds {_HIDDEN_LAYERS}.",
            stacklevel=2,
        )
    kind = _kind_for(model, None if config.task_type is None else TaskType(config.task_type))
    made: PeftModel = kind(model, config, prompt_name=adapter_name, tokenizer=tokenizer, self_check=self_check)
    return made


def as_prompt_config(given: Any) -> PromptConfig:
    """A configuration of ptune's, from one of ptune's or PEFT's or a dictionary with `peft_type`.

    Raises:
        ConfigError: Another kind of adapter, or values that ptune has no meaning for.
    """
    if isinstance(given, PromptConfig):
        return given
    if isinstance(given, Mapping):
        values = {str(name): value for name, value in given.items()}
    elif hasattr(given, "peft_type") and hasattr(given, "to_dict"):
        values = given.to_dict()
    else:
        raise ConfigError(
            f"{type(given).__name__} is no configuration of a prompt.",
            hint=f"Use {', '.join(one.__name__ for one in CONFIG_CLASSES.values())} of ptune or PEFT, or a dictionary.",
        )
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    kind = values.get("peft_type")
    if kind not in CONFIG_CLASSES:
        raise ConfigError(
            f"peft_type={shown(kind)} is not a soft prompt.",
            hint=f"ptune has {', '.join(CONFIG_CLASSES)}; use PEFT for the others.",
        )
    own = CONFIG_CLASSES[kind]
    known = {item.name for item in fields(own)}
    foreign = sorted(name for name, value in values.items() if name not in known and value)
    if foreign:
        raise ConfigError(f"{foreign[0]} has no meaning for a soft prompt.", hint="Leave it out.")
    kept = {name: value for name, value in values.items() if name in known and value is not None}
    return own(**kept)


class PeftConfig:
    """What an adapter's folder says, under PEFT's name."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **options: Any
    ) -> PromptConfig:
        """The configuration of a prompt folder of ptune's or of a soft prompt that PEFT saved.

        Args:
            pretrained_model_name_or_path: The folder, or a hub id.
            subfolder: Inside it.
            options: For the hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            PromptError: There is none, or it is damaged.
        """
        return read_config(_inside(prompt_folder(pretrained_model_name_or_path, **options), subfolder))


class PeftModel(HoldsPrompts):
    """A model with prompts that loads and saves as PEFT's class does, whatever its task is."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # noqa: PLR0917  # PEFT's order of arguments
        cls,
        model: PreTrainedModel,
        model_id: str | Path,
        adapter_name: str = DEFAULT_PROMPT,
        is_trainable: bool = False,
        config: PromptLearningConfig | None = None,
        autocast_adapter_dtype: bool = True,  # noqa: ARG003  # PEFT's
        ephemeral_gpu_offload: bool = False,  # noqa: ARG003  # PEFT's
        low_cpu_mem_usage: bool = False,  # noqa: ARG003  # PEFT's
        *,
        force: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        subfolder: str | None = None,
        self_check: bool = True,
        **options: Any,
    ) -> Self:
        """A saved prompt in front of a model that is loaded: the base first, as in PEFT.

        Args:
            model: The frozen model.
            model_id: The prompt's folder, or a hub id.
            adapter_name: What to call the prompt.
            is_trainable: Load the prompt encoder to train on, where the folder has it.
            config: Refused: the folder's own is used.
            autocast_adapter_dtype: Without effect: the prompt encoder is float32.
            ephemeral_gpu_offload: Without effect.
            low_cpu_mem_usage: Without effect; a prompt encoder is small.
            force: Accept a model or a tokenizer whose fingerprint differs.
            tokenizer: Compared with the one that the prompt was trained with.
            subfolder: Where in the folder the prompt is.
            self_check: As for `PTunedModel`.
            options: For the hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            PromptError: There is no such prompt, it is damaged, or made for another model or tokenizer.
        """
        if isinstance(model, (str, Path)):
            raise ConfigError(
                f"PeftModel.from_pretrained takes the loaded model first, not {shown(str(model))}.",
                hint="PTunedModel.from_pretrained(folder) loads the frozen model too.",
            )
        if config is not None:
            raise ConfigError("config= has no use: the folder's own configuration is used.", hint="Leave it out.")
        folder = _inside(prompt_folder(model_id, **options), subfolder)
        kind: Any = _kind_for(model, open_folder(folder).task) if cls is PeftModel else cls
        made: Self = kind(model, self_check=self_check)
        made.load_prompt(folder, name=adapter_name, trainable=is_trainable, force=force, tokenizer=tokenizer)
        return made.train(is_trainable)

    def save_pretrained(  # type: ignore[override]  # PEFT's arguments
        self,
        save_directory: str | Path,
        *,
        selected_adapters: Sequence[str] | None = None,
        prompt_name: str | None = None,
        **options: Any,
    ) -> Path:
        """Write every prompt as PEFT does: `default` into the folder, any other into a folder of its name inside it.

        Args:
            save_directory: The folder.
            selected_adapters: Which prompts; all by default. A single one of another name goes into the folder itself
                where there is no `default`.
            prompt_name: This prompt alone, into the folder itself.
            options: As for `PTunedModel.save_pretrained`.

        Raises:
            OutputError: The folder cannot be written.
        """
        folder = Path(save_directory)
        if prompt_name is not None:
            return super().save_pretrained(folder, prompt_name=prompt_name, **options)
        names = list(self.prompt_names if selected_adapters is None else selected_adapters)
        top = names[0] if len(names) == 1 else DEFAULT_PROMPT
        for name in names:
            super().save_pretrained(folder if name == top else folder / name, prompt_name=name, **options)
            options.pop("is_main_process", None)  # the trainer's own file stands in one folder
        return folder


class PeftModelForCausalLM(PeftModel, PTunedModel):
    """A `PTunedModel` under PEFT's name."""


class PeftModelForTask(PeftModel, PTunedTaskModel):
    """A `PTunedTaskModel` under the names that PEFT has for each task."""


class PeftModelForSequenceClassification(PeftModelForTask):
    """A model that classifies texts."""


class PeftModelForTokenClassification(PeftModelForTask):
    """A model that labels tokens."""


class PeftModelForQuestionAnswering(PeftModelForTask):
    """A model that marks answers in texts."""


class PeftModelForSeq2SeqLM(PeftModelForTask):
    """A model that writes texts for texts."""


class PeftModelForFeatureExtraction(PeftModelForTask):
    """A model that gives hidden states."""


_CLASSES: dict[TaskType, type[PeftModel]] = {
    TaskType.CAUSAL_LM: PeftModelForCausalLM,
    TaskType.MASKED_LM: PeftModelForTask,
    TaskType.SEQ_CLS: PeftModelForSequenceClassification,
    TaskType.TOKEN_CLS: PeftModelForTokenClassification,
    TaskType.QUESTION_ANS: PeftModelForQuestionAnswering,
    TaskType.SEQ_2_SEQ_LM: PeftModelForSeq2SeqLM,
    TaskType.FEATURE_EXTRACTION: PeftModelForFeatureExtraction,
}


def _kind_for(model: Any, task: TaskType | None) -> Any:
    """The class that wraps a model for a task; told by the model's class where nobody says.

    Raises:
        ConfigError: The model is for another task.
    """
    base = unwrapped(model)
    return _CLASSES[task_of(base, task) if isinstance(base, PreTrainedModel) else TaskType.CAUSAL_LM]


class AutoPeftModel:
    """Loads a prompt together with the model that it names, for whatever task it is."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = DEFAULT_PROMPT,
        is_trainable: bool = False,
        config: PromptLearningConfig | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> PeftModel:
        """The model that a prompt folder names, with the prompt; see `PTunedModel.from_pretrained` for the options.

        Raises:
            PromptError: There is no such prompt, or it does not name its model.
            ModelError: The model cannot be loaded.
        """
        if config is not None:
            raise ConfigError("config= has no use: the folder's own configuration is used.", hint="Leave it out.")
        if "torch_dtype" in options:
            options["dtype"] = options.pop("torch_dtype")
        if "dtype" in options:
            options["dtype"] = str(options["dtype"]).removeprefix("torch.")
        hub = {name: options[name] for name in _OF_THE_HUB if name in options}
        opened = open_folder(prompt_folder(pretrained_model_name_or_path, revision=revision, **hub))
        kind: Any = _CLASSES[opened.task]
        options |= {"trainable": is_trainable, "revision": revision, "prompt_name": adapter_name}
        load: Any = super(PeftModel, kind).from_pretrained  # type: ignore[misc]  # both are its subclasses
        made: PeftModel = load(pretrained_model_name_or_path, **options)
        return made


class AutoPeftModelForCausalLM(AutoPeftModel):
    """`AutoPeftModel` under the name that PEFT has for CAUSAL_LM."""


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """`AutoPeftModel` under the name that PEFT has for SEQ_CLS."""


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """`AutoPeftModel` under the name that PEFT has for TOKEN_CLS."""


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """`AutoPeftModel` under the name that PEFT has for QUESTION_ANS."""


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """`AutoPeftModel` under the name that PEFT has for SEQ_2_SEQ_LM."""


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """`AutoPeftModel` under the name that PEFT has for FEATURE_EXTRACTION."""


def _inside(folder: Path, subfolder: str | None) -> Path:
    if subfolder is None:
        return folder
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise ConfigError(f"subfolder={shown(subfolder)} leads out of the folder.", hint="Name a folder inside it.")
    return folder / subfolder
