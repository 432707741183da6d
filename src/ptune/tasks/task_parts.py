"""What a model for a task is made of: the part that reads text, and the head that stands on it.

A model of transformers keeps the part that reads text as a child, under the name of its `base_model_prefix`; whatever
else it has stands on that part's hidden states. For a classifier that is a linear layer which is not trained yet, and
which trains with the prompt.
"""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from ptune.config import TaskType
from ptune.errors import ConfigError, ModelError
from ptune.frozen.capability import sees_both_ways
from ptune.frozen.parts import layers_of
from ptune.internals import children_of

_ENDINGS = {
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForQuestionAnswering": TaskType.QUESTION_ANS,
    "ForQuestionAnsweringSimple": TaskType.QUESTION_ANS,
    "ForMaskedLM": TaskType.MASKED_LM,
    "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM,
    "MTModel": TaskType.SEQ_2_SEQ_LM,
}
"""How the name of a class ends, and what it is for."""
AUTO_CLASSES = {
    TaskType.CAUSAL_LM: "AutoModelForCausalLM",
    TaskType.SEQ_CLS: "AutoModelForSequenceClassification",
    TaskType.TOKEN_CLS: "AutoModelForTokenClassification",
    TaskType.QUESTION_ANS: "AutoModelForQuestionAnswering",
    TaskType.SEQ_2_SEQ_LM: "AutoModelForSeq2SeqLM",
    TaskType.FEATURE_EXTRACTION: "AutoModel",
    TaskType.MASKED_LM: "AutoModelForMaskedLM",
}
"""The class of transformers that loads a model for each task."""
_WITH_HEADS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)
"""The tasks whose head trains with the prompt; the others use one that was trained with the model, or none."""
_WITHOUT_HEADS = (TaskType.SEQ_2_SEQ_LM, TaskType.FEATURE_EXTRACTION)
"""The tasks of models that run as a whole, with nothing in another's place."""
_PEFT_NAMES = ("classifier", "score", "qa_outputs")
"""What PEFT adds to `modules_to_save`, whether a model has such a module or not."""


def task_of(model: PreTrainedModel, asked: TaskType | None = None) -> TaskType:
    """What a model is for.

    Args:
        model: The model.
        asked: What its caller says; for classes whose name does not tell.

    Raises:
        ConfigError: The model is for something else.
    """
    name = type(model).__name__
    told = next((task for ending, task in _ENDINGS.items() if name.endswith(ending)), None)
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.values()
    if told is None and type(model) in causal:
        told = TaskType.CAUSAL_LM
    if told is None and reads_text(model) is model:
        told = TaskType.FEATURE_EXTRACTION
    if asked is None or told is None or asked == told:
        return asked or told or TaskType.CAUSAL_LM
    raise ConfigError(
        f"task_type={asked.value}, but a {name} is for {told.value}.",
        hint=f"Load the model with {AUTO_CLASSES[asked]}, or leave task_type out.",
    )


def reads_text(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that reads text; the model itself where nothing stands on it."""
    inner = layers_of(model)
    return inner if isinstance(inner, PreTrainedModel) else model


def head_names(model: PreTrainedModel, task: TaskType, more: list[str] | None = None) -> list[str]:
    """The children of a model that train and are saved with a prompt.

    Args:
        model: The model.
        task: What it is for.
        more: Other children, by name (PEFT's `modules_to_save`).

    Raises:
        ConfigError: There is no child of such a name, or it is the part that reads text.
        ModelError: A task that needs a head, and a model without one.
    """
    inner = reads_text(model)
    there = [
        name
        for name, child in children_of(model).items()
        if child is not None and child is not inner and any(True for _ in child.parameters())
    ]
    asked = [name for name in more or () if name in there or name not in _PEFT_NAMES]
    if asked and task in _WITHOUT_HEADS:
        raise ConfigError(
            f"modules_to_save={asked} is not supported for {task.value}; the model stays frozen.",
            hint="Leave modules_to_save out.",
        )
    for name in asked:
        if name not in there:
            raise ConfigError(
                f"modules_to_save names {name!r}, which {type(model).__name__} does not have beside the part that "
                "reads text.",
                hint=f"It has {', '.join(there)}." if there else "Leave modules_to_save out.",
            )
    own = there if task in _WITH_HEADS else []
    if task in _WITH_HEADS and not own:
        raise ModelError(
            f"{type(model).__name__} has no head for {task.value}.", hint=f"Load it with {AUTO_CLASSES[task]}."
        )
    return list(dict.fromkeys([*own, *asked]))


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether the part of a model that reads text sees what stands before a token alone."""
    return type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING and not sees_both_ways(reads_text(model))
