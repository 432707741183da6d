"""Rows of `tag` as tokens: the tag of a word is learned at its first token, as Devlin et al. 2019, "BERT" have it.

Words are joined by blanks and tokenized as one text; which word a token is of is read off its characters. For BERT's
vocabularies that is what `is_split_into_words` gives. For byte-level ones it is what the model has read in its
pre-training: there `is_split_into_words` writes words without the blanks between them unless `add_prefix_space` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptune.choices import TAG
from ptune.data.labels import IGNORE_INDEX
from ptune.data.tasks.encode_settings import EncodeSettings, batches, rows_of
from ptune.data.tasks.label_set import check_labels
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_table import TaskTable


def encode_tags(
    examples: Sequence[TaskExample], settings: EncodeSettings, table: TaskTable
) -> tuple[tuple[int, ...], ...]:
    """Words with the numbers of their tags.

    Returns:
        For each row the column of each word's first token, -1 for a word without one.

    Raises:
        ModelError: The tokenizer cannot say which characters a token is of.
        DataError: A tag that is not known.
    """
    settings.need_offsets(TAG)
    numbers = settings.numbers
    found: list[tuple[int, ...]] = []
    for which in batches(len(examples)):
        table.report.rows_read += len(which)
        batch = [examples[number] for number in which]
        for number, example, row in zip(which, batch, _encoded(batch, settings), strict=True):
            whole: list[tuple[int, int]] = row.pop("whole")
            offsets = row.pop("offset_mapping")
            columns = first_columns(example.words, offsets)
            if all(column < 0 for column in columns):
                table.report.drop(example.source, number)
                continue
            _count(columns, first_columns(example.words, whole), table)
            if settings.learns:
                check_labels(example, TAG, settings.labels)
                row["labels"] = [IGNORE_INDEX] * len(offsets)
                for column, tag in zip(columns, example.tags, strict=True):
                    if column >= 0 and tag:
                        row["labels"][column] = numbers[tag]
            table.add(number, row)
            found.append(tuple(columns))
    return tuple(found)


def first_columns(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The column of the first token of each word, -1 where it has none.

    Args:
        words: Joined by single blanks, the text.
        offsets: First character and the one behind the last of each token; equal for tokens of no characters, such as
            special ones. A token may begin with the blank before its word.
    """
    owners: list[int] = []
    for number, word in enumerate(words):
        owners += [number] * len(word) + [-1]
    columns = [-1] * len(words)
    for column, (start, end) in enumerate(offsets):
        owner = next((one for one in owners[start:end] if one >= 0), -1)
        if owner >= 0 and columns[owner] < 0:
            columns[owner] = column
    return columns


def _encoded(examples: Sequence[TaskExample], settings: EncodeSettings) -> list[dict[str, Any]]:
    """Each row within `max_length`, with the offsets of its tokens, and of all of them before it was cut."""
    texts = [" ".join(example.words) for example in examples]
    options: dict[str, Any] = {"padding": False, "return_offsets_mapping": True}
    rows = rows_of(settings.tokenizer(texts, truncation=False, verbose=False, **options))
    whole = [row["offset_mapping"] for row in rows]
    long = [at for at, one in enumerate(whole) if len(one) > settings.max_length]
    if long:
        cut = settings.tokenizer([texts[at] for at in long], truncation=True, max_length=settings.max_length, **options)
        for at, row in zip(long, rows_of(cut), strict=True):
            rows[at] = row
    return [{**row, "whole": offsets} for row, offsets in zip(rows, whole, strict=True)]


def _count(columns: Sequence[int], whole: Sequence[int], table: TaskTable) -> None:
    """Count the words that are not learned: those cut off, and those that never had a token."""
    cut = sum(there >= 0 > column for column, there in zip(columns, whole, strict=True))
    table.report.words_cut += cut
    table.report.truncated += cut > 0
    table.report.words_without_token += sum(one < 0 for one in whole)
