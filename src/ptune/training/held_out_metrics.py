"""Scores of the held-out rows at each evaluation of a run, and the choice of the best checkpoint by one of them.

They go to Trainer as its own metrics do (`eval_exact_match`), so that `metric_for_best_model` and early stopping take
them in place of the loss. Nothing here draws a random number: a run with them is the run without.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ptune.choices import METRIC_GROUPS, NEW_TOKENS
from ptune.data.records import Examples
from ptune.data.template import Template
from ptune.errors import ConfigError, DataError, unknown
from ptune.evaluation.columns import PROMPT, ItemTexts, item_texts, plain_column
from ptune.evaluation.evaluate_settings import spelled_out
from ptune.evaluation.items import Item, check_json, check_labels, make_items
from ptune.evaluation.measured import outcomes
from ptune.evaluation.metrics import LOWER_IS_BETTER, METRICS, needs_of
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.text_metrics import check_packages
from ptune.frozen.eval_mode import in_eval_mode
from ptune.model.prompted import PromptedModel
from ptune.model.wrapper import PTunedModel
from ptune.recipe import TrainRecipe
from ptune.training.rows import Rows


class HeldOutMetrics:
    """Measures the active prompt on the held-out rows.

    Args:
        model: The model that trains.
        tokenizer: Its tokenizer.
        rows: The run's rows.
        recipe: Names the metrics, and the length at which rows are cut.
        args: Tell the batch size, and which of the processes this is.

    Raises:
        DataError: The rows cannot be measured by one of the metrics.
        ConfigError: The package of a metric is not installed.
    """

    def __init__(
        self,
        model: PTunedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Rows,
        recipe: TrainRecipe,
        args: TrainingArguments,
    ) -> None:
        self._model, self._tokenizer, self._args = model, tokenizer, args
        # The loss is measured anyway.
        self._names = [name for name in spelled_out(recipe.eval_metrics or ()) if name != "loss"]
        check_packages(self._names)
        assert isinstance(rows.held_out_examples, Examples)
        assert isinstance(rows.examples, Examples)
        template: Any = rows.template
        by_label = bool(set(self._names) & set(METRIC_GROUPS["labels"]))
        self._labels: tuple[str, ...] = ()
        items = make_items(rows.held_out_examples, group=not by_label)
        if by_label:
            known = {example.output.strip() for part in (rows.examples, rows.held_out_examples) for example in part}
            self._labels = tuple(sorted(known))
            check_labels(items, self._labels)
        if {"json_exact", "json_keys"} & set(self._names):
            check_json(items)
        self._needs = needs_of(self._names, self._labels)
        self._items, texts = _that_fit(items, template, tokenizer, recipe.max_length)
        self._column = plain_column(PROMPT, texts, model.active_prompt, 0)
        longest = max(one.longest_answer for one in texts)
        self._new_tokens = min(NEW_TOKENS, longest + longest // 4 + 1)

    def __call__(self) -> dict[str, float]:
        """The scores by the metrics' names, the same in every process. Every process must call it."""
        mine = range(self._args.process_index, len(self._items), self._args.world_size)
        found: dict[int, Outcome] = {}
        with in_eval_mode(self._model):
            for numbers in self._column.batches(mine, self._args.per_device_eval_batch_size):
                made = outcomes(
                    self._model, self._tokenizer, self._column, numbers, self._needs, max_new_tokens=self._new_tokens
                )
                found |= dict(zip(numbers, made, strict=True))
        if self._args.world_size > 1:
            every: list[Any] = [None] * self._args.world_size
            torch.distributed.all_gather_object(every, found)
            found = {number: one for part in every for number, one in part.items()}
        ordered = [found[number] for number in range(len(self._items))]
        scores = {name: METRICS[name].count(self._items, ordered, self._labels).whole for name in self._names}
        return {name: score for name, score in scores.items() if not math.isnan(score)}


def _that_fit(
    items: list[Item], template: Template, tokenizer: PreTrainedTokenizerBase, room: int
) -> tuple[list[Item], list[ItemTexts]]:
    """The items of which something is left within `room` tokens; the others have no held-out loss either."""
    kept, texts = [], []
    for item in items:
        try:
            texts.append(item_texts(item, template, tokenizer, room))
        except DataError:
            continue
        kept.append(item)
    return kept, texts


def choose_best_by(recipe: TrainRecipe, args: TrainingArguments, given: Collection[str] | None) -> None:
    """Check what the best checkpoint is chosen by, and note whether less of it is better, unless somebody said so.

    Args:
        recipe: Names the metrics that are measured.
        args: The arguments; `greater_is_better` is set.
        given: Names of the arguments that somebody chose; None for all of them.

    Raises:
        ConfigError: Nothing measures it.
    """
    asked = args.metric_for_best_model
    if asked is None:
        return
    name = asked.removeprefix("eval_")
    measured = ("loss", *spelled_out(recipe.eval_metrics or ()))
    if name not in measured:
        error = unknown("metric_for_best_model", asked, measured)
        if name in METRICS:
            error.hint = f"Measure it at each evaluation: --eval-metrics {name}."
        raise error
    if given is not None and "greater_is_better" not in given:
        args.greater_is_better = name not in LOWER_IS_BETTER


def metrics_of_run(
    model: PromptedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, recipe: TrainRecipe, args: TrainingArguments
) -> HeldOutMetrics | None:
    """What measures the held-out rows beside the loss; None where the recipe names nothing."""
    if not recipe.eval_metrics or not isinstance(model, PTunedModel):
        return None
    if isinstance(rows.held_out_examples, Examples) and any(one.document for one in rows.held_out_examples):
        names = spelled_out(recipe.eval_metrics)
        if beyond := [name for name in names if name not in METRIC_GROUPS["tokens"]]:
            raise ConfigError(
                f"eval_metrics: the held-out rows are texts without questions, which {beyond[0]} cannot measure.",
                hint=f"Such texts have {', '.join(METRIC_GROUPS['tokens'])}.",
            )
    return HeldOutMetrics(model, tokenizer, rows, recipe, args)
