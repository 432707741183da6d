"""The rows of a run for another task than causal language modelling: read, held out, tokenized."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments

from ptune.choices import FILL, SEQ2SEQ
from ptune.data.blocks import with_virtual_tokens
from ptune.data.tasks import (
    LABEL_TASKS,
    TaskExamples,
    TaskTemplate,
    TokenizedTask,
    encode_task,
    labels_of,
    load_task_examples,
    task_template,
)
from ptune.data.template import template_text
from ptune.recipe import TrainRecipe
from ptune.training.rows import Rows, held_apart

_OF_CAUSAL_MODELS = "tutorial"
"""The recipe's template where nobody chose one; other tasks have the text as it is then."""


def prepare_task_rows(
    recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
) -> tuple[TrainRecipe, Rows]:
    """Read and tokenize everything that a run for a task needs; the recipe comes back with its virtual tokens.

    Raises:
        DataError: Data that cannot be read, or of which nothing is left.
        ConfigError: A template or a verbalizer that cannot be used.
        ModelError: A tokenizer that cannot do what the task needs.
    """
    template = _asked_template(recipe)
    if template is not None:
        recipe = with_virtual_tokens(recipe, template.blocks)
    recipe = replace(recipe, num_virtual_tokens=recipe.virtual_tokens)
    examples, held_out = _read(recipe, args.seed)
    labels = labels_of(examples) if recipe.task in LABEL_TASKS else ()
    if held_out is not None and labels:
        labels_of(held_out, labels)
    with args.main_process_first(desc="tokenization"):
        tokens, held_out_tokens = (
            None if part is None else _encoded(recipe, part, tokenizer, template, labels)
            for part in (examples, held_out)
        )
    assert tokens is not None
    return recipe, Rows(
        template=tokens.template or TaskTemplate(""),
        examples=examples,
        tokens=tokens,
        held_out_examples=held_out,
        held_out_tokens=held_out_tokens,
        labels=labels,
    )


def _asked_template(recipe: TrainRecipe) -> TaskTemplate | None:
    """The template that somebody chose."""
    if recipe.template == _OF_CAUSAL_MODELS:
        return None
    return task_template(template_text(recipe.template), recipe.task, recipe.virtual_tokens)


def _read(recipe: TrainRecipe, seed: int) -> tuple[TaskExamples, TaskExamples | None]:
    """Rows to train on, and held-out rows (None when there are none)."""
    how: dict[str, Any] = {
        "columns": recipe.columns,
        "split": recipe.split,
        "encoding": recipe.encoding,
        "sheet": recipe.sheet,
    }
    examples = load_task_examples(recipe.sources, recipe.task, limit=recipe.limit, **how)
    kept, held_out = held_apart(recipe, examples.report, len(examples), seed)

    def those(rows: list[int]) -> TaskExamples:
        return TaskExamples((examples[row] for row in rows), recipe.task, examples.report, examples.class_names)

    if recipe.eval_data:
        return those(kept), load_task_examples(recipe.eval_data, recipe.task, **how)
    return those(kept), those(held_out) if held_out else None


def _encoded(
    recipe: TrainRecipe,
    examples: TaskExamples,
    tokenizer: PreTrainedTokenizerBase,
    template: TaskTemplate | None,
    labels: tuple[str, ...],
) -> TokenizedTask:
    more: dict[str, Any] = {"verbalizer": recipe.verbalizer} if recipe.task == FILL else {}
    if recipe.task == SEQ2SEQ:
        more["target_length"] = recipe.target_length
    return encode_task(
        examples, tokenizer, recipe.task, labels=labels, max_length=recipe.max_length, template=template, **more
    )
