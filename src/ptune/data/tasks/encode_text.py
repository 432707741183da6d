"""Rows of `classify`, `seq2seq` and `fill` as tokens: a text or a pair, and a label, a text to write, or a word.

Without a template a text is tokenized as the tokenizer itself does it, special tokens and all, the second of a pair on
a line of its own where no special token stands between; of a pair that is too long the longer text is cut
(`longest_first`). A text to write that is too long is cut at its end, and its end token is not learned: the model would
learn to stop there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptune.choices import CLASSIFY, FILL
from ptune.data.labels import IGNORE_INDEX
from ptune.data.tasks.encode_settings import EncodeSettings, batches, rows_of
from ptune.data.tasks.label_set import check_labels
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_table import TaskTable
from ptune.data.tasks.written_rows import RowWriter
from ptune.data.template import end_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def encode_classify(examples: Sequence[TaskExample], settings: EncodeSettings, table: TaskTable) -> None:
    """Texts or pairs with the number of their label.

    Raises:
        DataError: A label that is not known.
    """
    numbers = settings.numbers
    for which in batches(len(examples)):
        batch = [examples[number] for number in which]
        for number, example, row in zip(which, batch, _texts(batch, settings, table), strict=True):
            if row is None:
                table.report.drop(example.source, number)
                continue
            if settings.learns:
                check_labels(example, CLASSIFY, settings.labels)
                row["labels"] = numbers[str(example.label)]
            table.add(number, row)


def encode_fill(
    examples: Sequence[TaskExample], settings: EncodeSettings, table: TaskTable, word_ids: Sequence[int]
) -> tuple[int, ...]:
    """Texts with a gap; at the gap the labels have the token of the label's word.

    Returns:
        The column of each row's gap.

    Raises:
        DataError: A label that is not known, or a gap that is not one token.
        ConfigError: A text that the template has no place for, or a template that is too long.
    """
    assert settings.template is not None
    numbers = settings.numbers
    writer = RowWriter(settings.template, settings.tokenizer, settings.max_length)
    columns: list[int] = []
    for which in batches(len(examples)):
        table.report.rows_read += len(which)
        batch = [examples[number] for number in which]
        for number, example, written in zip(which, batch, writer.rows(batch), strict=True):
            if written.empty or written.mask_at is None:
                table.report.drop(example.source, number)
                continue
            table.report.truncated += written.cut
            row = _row(written.input_ids, settings)
            if settings.learns:
                check_labels(example, FILL, settings.labels)
                row["labels"] = [IGNORE_INDEX] * len(written.input_ids)
                row["labels"][written.mask_at] = word_ids[numbers[str(example.label)]]
            table.add(number, row)
            columns.append(written.mask_at)
    return tuple(columns)


def encode_seq2seq(examples: Sequence[TaskExample], settings: EncodeSettings, table: TaskTable) -> None:
    """Texts with the text to write for each, its end token behind it.

    Raises:
        ModelError: The tokenizer has no end token.
    """
    end_token(settings.tokenizer)
    for which in batches(len(examples)):
        batch = [examples[number] for number in which]
        targets = _targets([example.target for example in batch], settings.tokenizer) if settings.learns else []
        for at, (number, row) in enumerate(zip(which, _texts(batch, settings, table, joined=True), strict=True)):
            if row is None:
                table.report.drop(batch[at].source, number)
                continue
            if settings.learns:
                row["labels"] = targets[at][: settings.target_length]
                table.report.targets_cut += len(targets[at]) > settings.target_length
            table.add(number, row)


def _targets(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts to write, each with an end token behind it."""
    made: list[list[int]] = tokenizer(text_target=texts, padding=False, truncation=False, verbose=False)["input_ids"]
    end = int(tokenizer.eos_token_id)
    return [ids if end in ids[-2:] else [*ids, end] for ids in made]


def _row(input_ids: list[int], settings: EncodeSettings) -> Row:
    types = {"token_type_ids": [0] * len(input_ids)} if settings.makes_types else {}
    return {"input_ids": input_ids, "attention_mask": [1] * len(input_ids), **types}


def _texts(
    examples: Sequence[TaskExample], settings: EncodeSettings, table: TaskTable, *, joined: bool = False
) -> list[Row | None]:
    """Each text or pair as token ids; None for one that has no token but special ones.

    Args:
        examples: Of one batch.
        settings: How.
        table: Its report counts what is read and cut.
        joined: Whether two texts are one, the second on the lines after the first.
    """
    table.report.rows_read += len(examples)
    if settings.template is not None:
        written = RowWriter(settings.template, settings.tokenizer, settings.max_length).rows(examples)
        table.report.truncated += sum(one.cut for one in written)
        return [None if one.empty else _row(one.input_ids, settings) for one in written]
    rows: list[Row | None] = [None] * len(examples)
    pairs = [number for number, one in enumerate(examples) if one.second is not None and not joined]
    others = [number for number in range(len(examples)) if number not in set(pairs)]
    for numbers in filter(None, (others, pairs)):
        chosen = [examples[number] for number in numbers]
        texts = [f"{one.text}\n{one.second}" if joined and one.second else one.text for one in chosen]
        seconds = [f"{settings.between}{one.second}" for one in chosen] if numbers is pairs else None
        for number, row in zip(numbers, _encoded(texts, seconds, settings, table), strict=True):
            rows[number] = row
    return rows


def _encoded(
    texts: list[str], seconds: list[str] | None, settings: EncodeSettings, table: TaskTable
) -> list[Row | None]:
    """Texts or pairs as the tokenizer itself encodes them, the long ones cut."""
    tokenizer = settings.tokenizer
    whole = rows_of(tokenizer(texts, seconds, padding=False, truncation=False, verbose=False))
    long = [at for at, row in enumerate(whole) if len(row["input_ids"]) > settings.max_length]
    if long:
        cut = tokenizer(
            [texts[at] for at in long],
            None if seconds is None else [seconds[at] for at in long],
            padding=False,
            truncation="longest_first",
            max_length=settings.max_length,
        )
        for at, row in zip(long, rows_of(cut), strict=True):
            whole[at] = row
        table.report.truncated += len(long)
    special = len(tokenizer("", None if seconds is None else settings.between)["input_ids"])
    return [row if len(row["input_ids"]) > special else None for row in whole]
