"""The rows of a run: read, held out, tokenized, and reported on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments

from ptune.data.blocks import tokens_in_text
from ptune.data.data_report import DataReport
from ptune.data.records import Examples, load_examples
from ptune.data.tasks import TaskExamples, TaskTemplate, TokenizedTask
from ptune.data.template import Template, get_template
from ptune.data.token_cache import Tokenized
from ptune.data.tokenize import encode_rows, tokenize_examples
from ptune.errors import ConfigError, ModelError, OutputError
from ptune.loading.gguf import cache_root
from ptune.recipe import TrainRecipe

TOKEN_CACHE = "tokens"
"""Folder of tokenized data sets inside ptune's cache."""
BARE = "{instruction}{output}"
"""The template of a prompt that was trained on whole texts: it goes on from a text as it is."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Training rows and held-out rows (None when there are none), as text and as tokens."""

    template: Template | TaskTemplate
    """What wrote their text, and writes that of a question to the finished prompt."""
    examples: Examples | TaskExamples
    tokens: Tokenized | TokenizedTask
    held_out_examples: Examples | TaskExamples | None
    held_out_tokens: Tokenized | TokenizedTask | None
    labels: tuple[str, ...] = ()
    """Of a task that has some, in the order of their numbers."""

    def longest(self) -> tuple[str, int]:
        """Which data hold the longest row, and its tokens."""
        parts = [("training", self.tokens), ("held-out", self.held_out_tokens)]
        return max(((name, part.report.longest) for name, part in parts if part is not None), key=lambda one: one[1])

    def lines(self) -> list[str]:
        """What was read and what was left out, a line a fact."""
        lines = [*self.examples.report.lines(), *self.tokens.report.lines()]
        if self.held_out_examples is not None and self.held_out_tokens is not None:
            apart = self.held_out_examples.report is not self.examples.report
            read = self.held_out_examples.report.lines() if apart else []
            lines += [f"held-out rows: {line}" for line in (*read, *self.held_out_tokens.report.lines())]
        return lines


def read_rows(recipe: TrainRecipe, seed: int) -> tuple[Examples, Examples | None]:
    """Training examples and held-out examples (None when there are none).

    Rows are held out before weights are applied, so that no copy of a held-out row is trained on.

    Raises:
        DataError: The data cannot be read.
        ConfigError: `eval_rows` or a weight leaves nothing to train on.
    """
    how: dict[str, Any] = {
        "columns": recipe.columns,
        "split": recipe.split,
        "encoding": recipe.encoding,
        "sheet": recipe.sheet,
    }
    examples = load_examples(recipe.sources, limit=recipe.limit, **how)
    kept, held_out = held_apart(recipe, examples.report, len(examples), seed)
    train = Examples((examples[index] for index in kept), examples.report)
    if recipe.eval_data:
        # A hub data set or Arrow folder may have the same split names; a plain file has none.
        return train, load_examples(recipe.eval_data, **how)
    return train, Examples((examples[index] for index in held_out), examples.report) if held_out else None


def held_apart(recipe: TrainRecipe, report: DataReport, count: int, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the rows to train on, as often as their weights say, and of those that are held out.

    Args:
        recipe: Says how many are held out, and the weights.
        report: Of their reading.
        count: How many rows there are.
        seed: Draws them.

    Raises:
        ConfigError: `eval_rows` or a weight leaves nothing to train on.
    """
    if not recipe.eval_data and recipe.eval_rows >= count:
        raise ConfigError(
            f"eval_rows={recipe.eval_rows} leaves none of the {count} rows to train on.",
            hint="Hold out fewer, or name held-out data of their own with eval_data.",
        )
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held_out, kept = sorted(order[: recipe.eval_rows]), sorted(order[recipe.eval_rows :])
    if recipe.data_weights is not None:
        kept = _weighted(kept, report, recipe.data_weights, seed)
    return kept, held_out


def _weighted(rows: Sequence[int], report: DataReport, weights: Sequence[float], seed: int) -> list[int]:
    """The rows as often as their source's weight says, in order: whole copies, and for the rest a draw without repeats.

    Raises:
        ConfigError: A weight leaves nothing of a source.
    """
    chosen: list[int] = []
    start = 0
    for number, (part, weight) in enumerate(zip(report.parts or (report,), weights, strict=True)):
        own = [row for row in rows if start <= row < start + part.kept]
        start += part.kept
        copies, rest = divmod(weight, 1)
        drawn = random.Random(f"{seed} {number}").sample(own, round(rest * len(own)))
        part.weight, part.rows_an_epoch = weight, int(copies) * len(own) + len(drawn)
        if own and not part.rows_an_epoch:
            raise ConfigError(
                f"data_weights: {weight:g} of the {len(own):,} rows of {part.source} leaves none.", hint="Raise it."
            )
        chosen += sorted([*own * int(copies), *drawn])
    report.rows_an_epoch = len(chosen)
    return chosen


def load_rows(
    recipe: TrainRecipe,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    *,
    progress: bool,
) -> Rows:
    """Read and tokenize everything a run needs.

    Args:
        recipe: Names the data.
        template: Makes their text, but for texts without a question.
        tokenizer: Makes their tokens.
        args: Gives the seed, and the order of the processes.
        progress: Show a bar.

    Raises:
        DataError: Data that cannot be read, or of which nothing is left.
    """
    examples, held_out = read_rows(recipe, args.seed)
    if all(example.document for example in examples) and not tokens_in_text(template.blocks):
        template = get_template(BARE, tokenizer)
    tokens, held_out_tokens = (
        None if part is None else _tokenize(part, template, tokenizer, recipe=recipe, args=args, progress=progress)
        for part in (examples, held_out)
    )
    assert tokens is not None
    return Rows(
        template=template, examples=examples, tokens=tokens, held_out_examples=held_out, held_out_tokens=held_out_tokens
    )


def _tokenize(
    examples: Examples,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    recipe: TrainRecipe,
    args: TrainingArguments,
    progress: bool,
) -> Tokenized:
    """Token ids and labels; the first process fills the cache that the others read."""
    options: dict[str, Any] = {
        "max_length": recipe.max_length,
        "train_on": recipe.train_on,
        "num_proc": recipe.num_proc,
        "progress": progress,
    }
    with args.main_process_first(desc="tokenization"):
        try:
            return tokenize_examples(examples, template, tokenizer, cache_dir=cache_root() / TOKEN_CACHE, **options)
        except OutputError:
            # The cache saves time and nothing else: a home that cannot be written is no reason not to train.
            return tokenize_examples(examples, template, tokenizer, **options)


def place_of(rows: Rows, tokenizer: PreTrainedTokenizerBase, recipe: TrainRecipe, ids: Sequence[int]) -> str:
    """Where the row of these token ids stands in the data, as `file:line`. Tokenizes until it is found."""
    if not isinstance(rows.tokens, Tokenized):
        at = next((row for row, one in enumerate(rows.tokens.dataset["input_ids"]) if list(one) == list(ids)), None)
        return "a row that is not in the data any more" if at is None else rows.examples[rows.tokens.rows[at]].source
    assert isinstance(rows.examples, Examples)
    template: Any = rows.template
    for example in rows.examples:
        for row in encode_rows(example, template, tokenizer, recipe.max_length, recipe.train_on):
            if row.input_ids == list(ids):
                return example.source or repr(example.instruction[:40])
    return "a row that is not in the data any more"


def check_context(rows: Rows, virtual_tokens: int, context: int | None, max_length: int) -> None:
    """Raise `ModelError` when a row does not fit into the model's context behind the prompt."""
    name, longest = rows.longest()
    if context is None or virtual_tokens + longest <= context:
        return
    ways = []
    if context > longest:
        ways.append(f"use at most {context - longest} virtual tokens")
    if context - virtual_tokens > 1:
        ways.append(f"cut the rows with max_length={context - virtual_tokens} (now {max_length})")
    raise ModelError(
        f"{virtual_tokens} virtual tokens and the longest {name} row of {longest} tokens exceed the model's context of "
        f"{context} tokens.",
        hint=f"{', or '.join(ways).capitalize()}." if ways else "Use fewer virtual tokens and shorter rows.",
    )
