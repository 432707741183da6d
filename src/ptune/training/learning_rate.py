"""The learning rate of a run: the one that somebody chose, or the one that suits model and encoder."""

from __future__ import annotations

from collections.abc import Collection

from transformers import TrainingArguments

from ptune.model.prompted import PromptedModel
from ptune.prompt.default_rate import default_learning_rate
from ptune.recipe import TrainRecipe


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
    args.learning_rate = default_learning_rate(model.base, recipe.encoder)
    return f"learning rate {args.learning_rate:g}, by default for this model and encoder"
