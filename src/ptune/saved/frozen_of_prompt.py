"""The frozen model and the tokenizer that go with a prompt folder, loaded and checked."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.config import TaskType
from ptune.loading.load import check_tokenizer, load_model, load_tokenizer
from ptune.saved.opened_folder import OpenedFolder

_LABELLED = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)


def frozen_of_prompt(
    opened: OpenedFolder, *, model: str | None = None, force: bool = False, trust_remote_code: bool = False, **load: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load what a prompt stands in front of.

    Args:
        opened: The prompt folder. Its task says which class of model is loaded, its labels how many the head has.
        model: Another model than the one that the folder names.
        force: Accept a tokenizer that the prompt was not made for.
        trust_remote_code: Run model code that comes from the hub.
        load: For `load_model`: `dtype`, `quantization`, `device`, `device_map`, `attn_implementation`.

    Raises:
        PromptError: The folder names no model, or was made for another tokenizer.
        ModelError: The model cannot be loaded, or is not for the prompt's task.
        ConfigError: An option that cannot be used.
    """
    name = model or opened.base_name()
    shared: dict[str, Any] = {
        "revision": None if model else opened.base_revision(),
        "trust_remote_code": trust_remote_code,
    }
    tokenizer = load_tokenizer(name, **shared)
    opened.check_tokenizer(tokenizer, force=force)
    labels = opened.labels() if opened.task in _LABELLED else None
    base = load_model(name, task=opened.task, labels=labels, **shared, **load)
    check_tokenizer(base, tokenizer)
    return base, tokenizer
