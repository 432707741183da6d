"""The configuration of the model that would be trained: the number of labels, and what a checkpoint leaves to say.

A loaded model has its labels from the data, and what its tokenizer tells of padding; a configuration alone has neither.
"""

from __future__ import annotations

import copy

from transformers import PretrainedConfig

from ptune.config import TaskType
from ptune.errors import ConfigError

_CLASSES, _FEWEST = 2, 2
_LABELLED = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)


def planned_config(config: PretrainedConfig, task: TaskType, num_labels: int | None = None) -> PretrainedConfig:
    """A copy for a task.

    Args:
        config: As it was loaded.
        task: What the model is for.
        num_labels: Classes or tags; None for two classes. Tags have no number that goes without saying.

    Raises:
        ConfigError: No number of tags, fewer than two labels, or labels of a task that has none.
    """
    if num_labels is not None and task not in _LABELLED:
        raise ConfigError(f"num_labels={num_labels}, but {task.value} has no labels to count.", hint="Leave it out.")
    if num_labels is not None and num_labels < _FEWEST:
        raise ConfigError(f"num_labels must be at least {_FEWEST}, not {num_labels}.")
    if num_labels is None and task is TaskType.TOKEN_CLS:
        raise ConfigError("the number of tags is not known.", hint="Set num_labels, or give the data.")
    planned = copy.deepcopy(config)
    if task is TaskType.CAUSAL_LM:
        return planned
    if task in _LABELLED:
        planned.num_labels = num_labels or _CLASSES
    elif task is TaskType.QUESTION_ANS:
        planned.num_labels = 2  # a start and an end
    for name in ("pad_token_id", "decoder_start_token_id"):
        if getattr(planned, name, None) is None:
            setattr(planned, name, 0)
    return planned
