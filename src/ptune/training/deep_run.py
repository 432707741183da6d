"""What a run that trains a deep prompt, keys and values of every layer, cannot do, and what it says."""

from __future__ import annotations

import pyarrow.compute as pc
from transformers import PreTrainedModel, TrainingArguments

from ptune.choices import CHECKPOINTING, DEEP_ENCODERS
from ptune.data.labels import IGNORE_INDEX
from ptune.errors import ConfigError
from ptune.model.prompted import PromptedModel
from ptune.prefix.deep_prompts import key_value_shape
from ptune.recipe import TrainRecipe
from ptune.training.rows import Rows


def check_deep_run(
    recipe: TrainRecipe, args: TrainingArguments, inside: int, base: PreTrainedModel | None = None
) -> None:
    """Refuse what does not go with keys and values.

    Args:
        recipe: Names the encoder.
        args: The training arguments.
        inside: Virtual tokens that the template has inside the text.
        base: The frozen model, where it is to be looked at before a prompt is made for it.

    Raises:
        ConfigError: There are some, or activations are to be computed again.
        ModelError: The model keeps no keys and values of one shape.
    """
    if recipe.encoder not in DEEP_ENCODERS:
        return
    if base is not None:
        key_value_shape(base)
    if inside:
        raise ConfigError(
            f"the template has {inside} virtual tokens inside the text, and the encoder {recipe.encoder} gives keys "
            "and values of every layer, which stand before it.",
            hint="Put {prompt:N} at the template's start, or take another encoder.",
        )
    if getattr(args, CHECKPOINTING):
        raise ConfigError(
            f"{CHECKPOINTING} drops the keys and values that the encoder {recipe.encoder} gives.",
            hint="Leave it out; smaller batches (per_device_train_batch_size) need less memory too.",
        )


def notes_of(model: PromptedModel, rows: Rows) -> list[str]:
    """What is done in another way than with other models and prompts, a line each."""
    notes = list(model.capability.notes)
    if model.predicts_first_tokens:
        return notes
    first = pc.list_element(rows.tokens.dataset.with_format("arrow")["labels"], 0)
    count = int(pc.sum(pc.not_equal(first, IGNORE_INDEX)).as_py() or 0)
    if count:
        notes.append(f"the first token of {count:,} rows is not learned: keys and values of every layer predict none")
    return notes
