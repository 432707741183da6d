"""A model for a task: the class of transformers that loads it, its labels, and whether it is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from transformers import PreTrainedModel

from ptune.config import TaskType
from ptune.errors import ConfigError, ModelError
from ptune.frozen.capability import check_causal
from ptune.tasks.task_parts import AUTO_CLASSES, head_names

_MAPPINGS = {
    TaskType.CAUSAL_LM: transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    TaskType.SEQ_CLS: transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    TaskType.TOKEN_CLS: transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    TaskType.QUESTION_ANS: transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    TaskType.SEQ_2_SEQ_LM: transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    TaskType.FEATURE_EXTRACTION: transformers.MODEL_MAPPING,
    TaskType.MASKED_LM: transformers.MODEL_FOR_MASKED_LM_MAPPING,
}
_KINDS = {
    TaskType.CAUSAL_LM: ("causal language model", "a decoder such as Llama, Qwen, GPT-2 or BLOOM"),
    TaskType.SEQ_CLS: ("model that can classify texts", "an encoder such as RoBERTa, or a decoder such as Llama"),
    TaskType.TOKEN_CLS: ("model that can label tokens", "an encoder such as RoBERTa, or a decoder such as Llama"),
    TaskType.QUESTION_ANS: ("model that can mark answers", "an encoder such as RoBERTa, or a decoder such as Llama"),
    TaskType.SEQ_2_SEQ_LM: ("model from sequence to sequence", "an encoder-decoder such as T5 or BART"),
    TaskType.FEATURE_EXTRACTION: ("model that gives hidden states", "an encoder or a decoder"),
    TaskType.MASKED_LM: ("masked language model", "an encoder such as BERT or RoBERTa"),
}
"""What a model for each task is called, and which to choose."""


def auto_class(task: TaskType) -> Any:
    """The class of transformers that loads a model for a task."""
    return getattr(transformers, AUTO_CLASSES[task])


def label_options(labels: Sequence[str] | int | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that give a classifier its labels.

    Raises:
        ConfigError: There are none, or one comes twice.
    """
    if labels is None:
        return {}
    if isinstance(labels, int):
        if labels < 1:
            raise ConfigError(f"labels must be at least 1, not {labels}.")
        return {"num_labels": labels}
    if len(set(labels)) != len(labels) or not labels:
        raise ConfigError(f"labels must be different names, at least one; there are {list(labels)}.")
    names = dict(enumerate(labels))
    return {"num_labels": len(names), "id2label": names, "label2id": {name: at for at, name in names.items()}}


def key_options(config: Any, task: TaskType) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a class that keeps its layers under another name than a causal model's.

    `LlamaForQuestionAnswering` and its kin do, and would begin with random layers.
    """
    causal: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    own: Any = _MAPPINGS[task].get(type(config), None)
    if causal is None or own is None or causal.base_model_prefix == own.base_model_prefix:
        return {}
    return {"key_mapping": {rf"^{causal.base_model_prefix}\.": f"{own.base_model_prefix}."}}


def check_config(name: str, config: Any, task: TaskType, *, trust_remote_code: bool) -> None:
    """Raise `ModelError` unless there is a model for the task with such a configuration."""
    own_code = trust_remote_code and AUTO_CLASSES[task] in (getattr(config, "auto_map", None) or {})
    kind, choice = _KINDS[task]
    if task is TaskType.CAUSAL_LM and config.is_encoder_decoder:
        raise ModelError(
            f"{name} is an encoder-decoder ({config.model_type}), not a causal language model.",
            hint="Choose a decoder; or train it with --task seq2seq.",
        )
    if type(config) not in _MAPPINGS[task] and not own_code:
        raise ModelError(f"{name} is not a {kind}: its type is {config.model_type!r}.", hint=f"Choose {choice}.")


def check_loaded(name: str, model: PreTrainedModel, info: Mapping[str, Any], task: TaskType) -> None:
    """Raise `ModelError` when weights were made up that do not train, or no attention of a decoder is causal."""
    trained = [] if task is TaskType.CAUSAL_LM else head_names(model, task)
    parameters = {key for key, _ in model.named_parameters() if key.partition(".")[0] not in trained}
    # Hidden states need no pooler, which not every checkpoint has.
    optional = "pooler." if task is TaskType.FEATURE_EXTRACTION else "-"
    missing = sorted(key for key in parameters & set(info["missing_keys"]) if not key.startswith(optional))
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}: {shown}.",
            hint=_way(task, missing),
        )
    if task is TaskType.CAUSAL_LM:
        check_causal(model)


def _way(task: TaskType, missing: Sequence[str]) -> str:
    """The way out where a checkpoint lacks weights."""
    if task in (TaskType.CAUSAL_LM, TaskType.MASKED_LM):
        return "Choose a checkpoint saved with its language-model head."
    if all(".pooler." in f".{name}" for name in missing):
        return "Its classifier reads [CLS] through them; choose a checkpoint saved with its pooler, or RoBERTa's kind."
    return "Choose a whole checkpoint."
