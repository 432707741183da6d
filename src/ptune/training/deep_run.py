"""What a run that trains a deep prompt, keys and values of every layer, cannot do, and what it says."""

from __future__ import annotations

import pyarrow.compute as pc
from transformers import TrainingArguments

from ptune.data.labels import IGNORE_INDEX
from ptune.deep_config import DeepPromptConfig, PromptConfig
from ptune.errors import ConfigError
from ptune.model.wrapper import PTunedModel
from ptune.recipe import CHECKPOINTING
from ptune.training.rows import Rows


def check_deep_run(config: PromptConfig, args: TrainingArguments) -> None:
    """Raise `ConfigError` for a training argument that drops keys and values."""
    if isinstance(config, DeepPromptConfig) and getattr(args, CHECKPOINTING):
        raise ConfigError(
            f"{CHECKPOINTING} drops the keys and values that the encoders prefix and prefix-mlp give.",
            hint="Leave it out; smaller batches (per_device_train_batch_size) need less memory too.",
        )


def notes_of(model: PTunedModel, rows: Rows) -> list[str]:
    """What is done in another way than with other models and prompts, a line each."""
    notes = list(model.capability.notes)
    if model.predicts_first_tokens:
        return notes
    first = pc.list_element(rows.tokens.dataset.with_format("arrow")["labels"], 0)
    count = int(pc.sum(pc.not_equal(first, IGNORE_INDEX)).as_py() or 0)
    if count:
        notes.append(f"the first token of {count:,} rows is not learned: keys and values of every layer predict none")
    return notes
