"""What all trials of a search share: rows that are read and tokenized once, and a model that is loaded once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ptune.choices import ENCODER_NAMES
from ptune.data.template import get_template
from ptune.frozen.fingerprint import fingerprint, tokenizer_fingerprint
from ptune.loading.load import load_tokenizer
from ptune.model.wrapper import PTunedModel
from ptune.prompt.default_rate import default_learning_rate
from ptune.recipe import TrainRecipe
from ptune.training.batches import Collator, batches_line, budget_sampler, choose_collator
from ptune.training.recorded import SAME_ARGUMENTS, SCHEDULE_ARGUMENTS, data_digest, recorded_arguments
from ptune.training.rows import Rows, check_context, load_rows
from ptune.training.run_model import causal_model
from ptune.tuning.tune_settings import TuneSettings

_SHAPING = (
    "dtype",
    "quantization",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_dropout",
    "num_frozen_tokens",
    "init_text",
    "init_text_tokens",
    "packing",
    "tokens_per_batch",
)
"""Of the recipe: what is the same for all trials of a study, and shapes what they give."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Loaded and read once, the same for all trials."""

    folder: Path
    settings: TuneSettings
    recipe: TrainRecipe
    args: TrainingArguments
    given: Collection[str]
    """Names of the training arguments that somebody chose."""
    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    model: PTunedModel
    """Without a prompt between trials."""
    own_rates: Mapping[str, float]
    """The default learning rate of each encoder in front of this model."""
    collate: Collator
    console: Console

    def task(self) -> dict[str, dict[str, Any]]:
        """What the study is of (digests), and with what: the trials of one study can be compared."""
        held_out, recorded = self.rows.held_out_tokens, recorded_arguments(self.args)
        assert held_out is not None
        arguments = [name for name in (*SAME_ARGUMENTS, *SCHEDULE_ARGUMENTS) if name != "learning_rate"]
        return {
            "of": {
                "model": fingerprint(self.model.base),
                "tokenizer": tokenizer_fingerprint(self.tokenizer),
                "rows": data_digest(self.rows.tokens.dataset),
                "held_out_rows": data_digest(held_out.dataset),
            },
            "with": {
                "template": self.rows.template.text,
                **self.settings.space(self.recipe),
                **{name: getattr(self.recipe, name) for name in _SHAPING},
                **{name: recorded[name] for name in arguments if name in recorded},
            },
        }

    def lines(self) -> list[str]:
        """What was read, and what a batch is.

        Raises:
            ConfigError: A row has more tokens than a batch may have.
        """
        recipe, args, budget = self.recipe, self.args, self.recipe.tokens_per_batch
        sampler = None if budget is None else budget_sampler(self.rows.tokens.dataset, budget, args)
        batches = batches_line(recipe, args, self.model, self.collate, sampler)
        return [*self.rows.lines(), *self.model.capability.notes, batches]


def prepare(
    recipe: TrainRecipe, settings: TuneSettings, args: TrainingArguments, given: Collection[str], console: Console
) -> Prepared:
    """Read, tokenize and load.

    Args:
        recipe: What each trial trains, but for what is searched.
        settings: The search's.
        args: The same for all trials.
        given: Names of the training arguments that somebody chose.
        console: Where to report.

    Raises:
        PTuneError: Data or a model that cannot be used, or rows that do not fit behind the longest prompt.
    """
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code, revision=recipe.revision)
    rows = load_rows(recipe, get_template(recipe.template, tokenizer), tokenizer, args, progress=console.is_terminal)
    model = causal_model(recipe, args, tokenizer)
    check_context(rows, max(settings.num_virtual_tokens), model.context_length, recipe.max_length)
    collate = choose_collator(recipe, args, model, tokenizer, given)
    return Prepared(
        folder=Path(recipe.output), settings=settings, recipe=recipe, args=args, given=given, tokenizer=tokenizer,
        rows=rows,
        model=model, own_rates={name: default_learning_rate(model.base, name) for name in ENCODER_NAMES},
        collate=collate, console=console,
    )  # fmt: skip
