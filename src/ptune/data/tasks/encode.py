"""`encode_task`: the rows of a task become token ids and what is to be learned, ready for a `TaskCollator`.

Special tokens are added, for these models want them: `[CLS]` and `[SEP]`, or what else the tokenizer puts around a
text. Rows are not padded. What is cut off or left out is counted; `rows` tells which examples are there, so that
predictions find theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.data.tasks.encode_settings import EncodeSettings
from ptune.data.tasks.encode_spans import Windows, encode_spans
from ptune.data.tasks.encode_tags import encode_tags
from ptune.data.tasks.encode_text import encode_classify, encode_fill, encode_seq2seq
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_kinds import LABEL_TASKS, check_task
from ptune.data.tasks.task_table import TaskTable
from ptune.data.tasks.task_templates import FILL_PAIR_TEMPLATE, FILL_TEMPLATE, TaskTemplate, task_template
from ptune.data.tasks.task_token_report import TaskTokenReport
from ptune.data.tasks.verbalizer import verbalizer_ids
from ptune.errors import ConfigError, DataError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TokenizedTask:
    """The rows of a task as tokens."""

    dataset: datasets.Dataset
    """`input_ids`, `attention_mask`, `token_type_ids` where the tokenizer makes them, and what is learned: `labels`, a
    number (classify) or a list (tag, seq2seq, fill), or `start_positions` and `end_positions` (qa). Without these where
    no example says what is right."""
    report: TaskTokenReport
    task: str
    rows: tuple[int, ...]
    """The number of the example that each row was made from."""
    labels: tuple[str, ...] = ()
    """The labels by their numbers."""
    template: TaskTemplate | None = None
    """The template that wrote the rows."""
    verbalizer_ids: tuple[int, ...] = ()
    """fill: the token of each label."""
    word_columns: tuple[tuple[int, ...], ...] = ()
    """tag: the column of each word's first token, -1 for a word that has none or was cut off; a row each."""
    mask_columns: tuple[int, ...] = ()
    """fill: the column of each row's gap; a mask token that the text itself has is another one."""
    windows: Windows | None = None
    """qa: what the rows are windows of; see `ptune.data.tasks.span_answers`."""


def encode_task(
    examples: Sequence[TaskExample],
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    labels: Sequence[str] = (),
    max_length: int = 256,
    target_length: int = 128,
    template: str | TaskTemplate | None = None,
    verbalizer: Mapping[str, str] | None = None,
    stride: int | None = None,
    virtual_tokens: int | None = None,
) -> TokenizedTask:
    """Tokenize the rows of a task.

    Args:
        examples: The rows; their order is kept.
        tokenizer: Makes their tokens.
        task: `classify`, `tag`, `qa`, `seq2seq` or `fill`.
        labels: Of `classify`, `tag` and `fill`, as `labels_of` gives them.
        max_length: Tokens a row at most, special tokens among them, virtual tokens inside the text not.
        target_length: Tokens of a text to write at most.
        template: Of `classify`, `seq2seq` and `fill`; see `ptune.data.tasks.task_templates`. None writes the text, or
            the pair as the tokenizer joins it; the gap of `fill` stands behind the text.
        verbalizer: Of `fill`: label → word; None takes the labels.
        stride: Of `qa`: tokens of a context that two windows share; a third of `max_length` when None.
        virtual_tokens: How many `{prompt}` stands for, where a template's only block has no number.

    Raises:
        DataError: No rows, rows of which none has a token, a label that is not among `labels`, or labels in some rows
            only.
        ConfigError: A length, a template or a verbalizer that cannot be used.
        ModelError: A tokenizer that cannot do what the task needs.
    """
    check_task(task)
    settings = EncodeSettings(
        tokenizer=tokenizer,
        labels=tuple(labels),
        max_length=max_length,
        target_length=target_length,
        stride=stride,
        learns=_learns(examples, task),
        template=_template(template, examples, task, virtual_tokens),
    )
    if settings.learns and task in LABEL_TASKS and not labels:
        raise ConfigError(f"the task {task} needs the labels.", hint="Give those of labels_of(examples).")
    if verbalizer is not None and task != FILL:
        raise ConfigError(f"the task {task} takes no verbalizer.", hint=f"Leave it out, or take the task {FILL}.")
    word_ids: tuple[int, ...] = ()
    if task == FILL and settings.template is not None:
        word_ids = verbalizer_ids(labels, verbalizer, settings.template, tokenizer)
    report = TaskTokenReport(task=task, max_length=max_length, target_length=target_length if task == SEQ2SEQ else None)
    table = TaskTable(report)
    windows: Windows | None = None
    word_columns: tuple[tuple[int, ...], ...] = ()
    mask_columns: tuple[int, ...] = ()
    if task == QA:
        windows = encode_spans(examples, settings, table)
    elif task == TAG:
        word_columns = encode_tags(examples, settings, table)
    elif task == FILL:
        mask_columns = encode_fill(examples, settings, table, word_ids)
    else:
        encode_classify(examples, settings, table) if task == CLASSIFY else encode_seq2seq(examples, settings, table)
    return TokenizedTask(
        dataset=table.dataset(),
        report=report,
        task=task,
        rows=tuple(table.numbers),
        labels=settings.labels,
        template=settings.template,
        verbalizer_ids=word_ids,
        word_columns=word_columns,
        mask_columns=mask_columns,
        windows=windows,
    )


def _learns(examples: Sequence[TaskExample], task: str) -> bool:
    """Whether the rows say what is right.

    Raises:
        DataError: There are none, or only some do.
    """
    if not examples:
        raise DataError("there are no examples to tokenize.")
    unlabelled = [example for example in examples if not example.labelled(task)]
    if unlabelled and len(unlabelled) < len(examples):
        raise DataError(
            f"{len(unlabelled):,} of {len(examples):,} rows do not say what is right "
            f"(first: {unlabelled[0].source or 'no place'}).",
            hint="Leave them out, or predict for all rows without what is right.",
        )
    return not unlabelled


def _template(
    template: str | TaskTemplate | None, examples: Sequence[TaskExample], task: str, virtual_tokens: int | None
) -> TaskTemplate | None:
    """The template, checked for the task."""
    if template is None and task == FILL:
        template = FILL_PAIR_TEMPLATE if any(example.second for example in examples) else FILL_TEMPLATE
    if template is None:
        return None
    return task_template(template if isinstance(template, str) else template.text, task, virtual_tokens)
