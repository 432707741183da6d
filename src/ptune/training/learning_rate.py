"""The learning rate of a run: the one that somebody chose, or the one that suits model and encoder."""

from __future__ import annotations

from collections.abc import Collection

from transformers import TrainingArguments

from ptune.model.prompted import PromptedModel
from ptune.model.task_model import PTunedTaskModel
from ptune.prompt.default_rate import default_learning_rate
from ptune.recipe import TrainRecipe

BESIDE_A_HEAD = 0.3
"""Share of its rate that a prompt learns at while a head learns to read it: at the whole rate one seed of three did not
learn TREC on SmolLM2-135M."""


def take_learning_rate(
    model: PromptedModel, recipe: TrainRecipe, args: TrainingArguments, given: Collection[str] | None
) -> str:
    """Set the learning rate that suits model and encoder, unless somebody chose one; says which it is.

    Args:
        model: The model.
        recipe: Names the encoder.
        args: The arguments.
        given: Names of the arguments that somebody chose; None for all of them.
    """
    if given is None or "learning_rate" in given:
        return f"learning rate {args.learning_rate:g}"
    rate = default_learning_rate(model.base, recipe.encoder)
    if isinstance(model, PTunedTaskModel) and model.has_head:
        rate = float(f"{rate * BESIDE_A_HEAD:.2g}")
    args.learning_rate = rate
    return f"learning rate {args.learning_rate:g}, by default for this model and encoder"
