"""Segments become token ids and labels; the whole data set is encoded in batches and cached.

Labels are -100 on everything but answers, by length. A row longer than `max_length` is cut at its end, as in the
tutorial, and no further than its last answer, so that no virtual token inside the text is cut off; a row of which no
answer token is left would teach nothing (its loss is 0/0), so it is dropped and counted. A text without a question is
cut into rows instead, and loses nothing. Tokenizers work on batches with all cores by themselves, which measured faster
than worker processes; `num_proc` is there for machines with many cores and for tokenizers written in Python.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import TYPE_CHECKING

from ptune.choices import ALL_TURNS, LAST_TURN, TRAIN_ON_NAMES
from ptune.data.blocks import listed_blocks, tokens_in_text
from ptune.data.example import Example, learned_turns
from ptune.data.labels import IGNORE_INDEX
from ptune.data.segments import Pairs
from ptune.data.template import Segments, Template, end_token
from ptune.data.text_ids import ids_of, leading_special_ids
from ptune.data.token_cache import Tokenized, fingerprint, from_cache, in_memory, to_cache
from ptune.data.token_report import TokenizeReport
from ptune.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

ROWS_PER_BATCH = 1000
_NAMED_DROPS = 3


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row ready for training; three lists of the same length."""

    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]
    cut: int = 0
    """Answers that were cut off, in part or in whole."""

    @property
    def truncated(self) -> bool:
        """Whether anything to learn was cut off."""
        return self.cut > 0


def encode_prompt(segments: Segments, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt alone, as in training, virtual tokens inside it by their own. For generation."""
    return _pairs_of(segments, tokenizer)[-1][0]


def encode(segments: Segments, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded | None:
    """Token ids and labels of one example; None when no token of its answers fits into `max_length`."""
    virtual = sum(len(one.ids) for one in segments.inside)
    return _join(_pairs_of(segments, tokenizer), max_length + virtual)


def encode_rows(
    example: Example,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    train_on: str = LAST_TURN,
) -> list[Encoded]:
    """The rows that `tokenize_examples` makes of one example: one, several of a long text, or none."""
    encoder = _BatchEncoder(template, tokenizer, leading_special_ids(tokenizer), train_on)
    return _rows_of(example, encoder([example])[0], max_length + tokens_in_text(template.blocks))


def _rows_of(example: Example, pairs: Pairs, max_length: int) -> list[Encoded]:
    if not example.document:
        row = _join(pairs, max_length)
        return [] if row is None else [row]
    ((given, learned),) = pairs
    room = max_length - len(given)
    if room < 1:
        return []
    pieces = [learned[start : start + room] for start in range(0, len(learned), room)]
    return [row for piece in pieces if (row := _join([(given, piece)], max_length)) is not None]


def _join(pairs: Pairs, max_length: int) -> Encoded | None:
    """One row, cut behind the last learned token that fits; the labels know what is given by its length."""
    ids: list[int] = []
    labels: list[int] = []
    end = 0
    cut = 0
    for given, learned in pairs:
        ids += given
        labels += [IGNORE_INDEX] * len(given)
        room = max(max_length - len(ids), 0)
        cut += room < len(learned)
        if room and learned:
            ids += learned[:room]
            labels += learned[:room]
            end = len(ids)
    return Encoded(ids[:end], [1] * end, labels[:end], cut) if end else None


def _pairs_of(segments: Segments, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    leading = leading_special_ids(tokenizer) if segments.add_special_tokens else []
    return segments.joined(ids_of(segments.texts(), tokenizer), leading)


def tokenize_examples(
    examples: Sequence[Example],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    train_on: str = LAST_TURN,
    num_proc: int | None = None,
    cache_dir: Path | None = None,
    progress: bool = False,
) -> Tokenized:
    """Tokenize a data set.

    Args:
        examples: The records; their order is kept.
        template: Makes their text.
        tokenizer: Makes their tokens.
        max_length: Tokens a row at most, prompt and answer together, virtual tokens not counted.
        train_on: `last` learns the last answer of a conversation, `all-turns` every one. What the data say of a turn
            comes first.
        num_proc: Worker processes; None tokenizes in this one with the tokenizer's own threads.
        cache_dir: Keep the result here, under a name made from data, template, tokenizer and settings, and read it
            from here next time. None keeps it in memory.
        progress: Show a progress bar on stderr.

    Raises:
        DataError: No rows, or no row with a token of its answer within `max_length`.
        ConfigError: `max_length` below 2, `num_proc` below 1, an unknown `train_on`, or a template that cannot tell
            the answers of a conversation apart.
        OutputError: The cache cannot be written.
    """
    if max_length < 2:
        raise ConfigError(f"max_length must be at least 2, not {max_length}.", hint="The tutorial uses 256.")
    if num_proc is not None and num_proc < 1:
        raise ConfigError(f"num_proc must be at least 1, not {num_proc}.", hint="Leave it out for no worker processes.")
    if train_on not in TRAIN_ON_NAMES:
        raise unknown("train_on", train_on, TRAIN_ON_NAMES)
    if not examples:
        raise DataError("there are no examples to tokenize.")
    cache = None
    if cache_dir is not None:
        name = fingerprint(examples, template, tokenizer, max_length, train_on)
        cache = Path(cache_dir) / f"{name}.arrow"
        if (cached := from_cache(cache)) is not None:
            return cached
    encoder = _BatchEncoder(template, tokenizer, leading_special_ids(tokenizer), train_on)
    rows = _Rows(max_length, tokens_in_text(template.blocks))
    for batch, encoded in _encoded_batches(examples, encoder, num_proc, progress):
        rows.add(batch, encoded)
    table, report = rows.table(), rows.report()
    return in_memory(table, report) if cache is None else to_cache(cache, table, report)


@dataclass(frozen=True)
class _BatchEncoder:
    """Examples → token ids. Sent whole to worker processes."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    leading: list[int]
    train_on: str

    def __call__(self, examples: Sequence[Example]) -> list[Pairs]:
        made = [self._segments(example) for example in examples]
        texts = [one.texts() for one in made]
        ids = iter(ids_of([text for parts in texts for text in parts], self.tokenizer))
        return [one.joined([next(ids) for _ in parts], self.leading) for one, parts in zip(made, texts, strict=True)]

    def _segments(self, example: Example) -> Segments:
        if example.document:
            if tokens_in_text(self.template.blocks):
                place = f"{example.source}: " if example.source else ""
                raise ConfigError(
                    f"{place}a text without a question has no place for {listed_blocks(self.template.blocks)}.",
                    hint="Take a template whose virtual tokens stand before the text, as {prompt:10} at its start.",
                )
            return Segments("", example.output + end_token(self.tokenizer), True)
        return self.template.segments(example, self.train_on)


_worker: list[_BatchEncoder] = []
"""In a worker process: the one encoder it was started with."""


def _start_worker(encoder: _BatchEncoder) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork; the processes are the parallelism
    _worker.append(encoder)


def _work(examples: Sequence[Example]) -> list[Pairs]:
    return _worker[0](examples)


def _encoded_batches(
    examples: Sequence[Example], encoder: _BatchEncoder, num_proc: int | None, progress: bool
) -> Iterator[tuple[Sequence[Example], list[Pairs]]]:
    """Batches of examples with their token ids, in order."""
    from tqdm import tqdm

    batches = [examples[start : start + ROWS_PER_BATCH] for start in range(0, len(examples), ROWS_PER_BATCH)]

    def shown(results: Iterable[list[Pairs]]) -> Iterator[tuple[Sequence[Example], list[Pairs]]]:
        with tqdm(total=len(examples), desc="tokenizing", unit=" rows", disable=not progress) as bar:
            for batch, encoded in zip(batches, results, strict=True):
                yield batch, encoded
                bar.update(len(batch))

    if num_proc is None or num_proc == 1:
        yield from shown(map(encoder, batches))
        return
    # A forked worker inherits the tokenizer; a spawned one, where there is no fork, gets it pickled once.
    context = get_context("fork" if "fork" in get_all_start_methods() else "spawn")
    workers = min(num_proc, len(batches))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(encoder,)) as pool:
        yield from shown(pool.map(_work, map(tuple, batches)))


class _Rows:
    """Collects encoded rows as Arrow batches, and counts."""

    def __init__(self, max_length: int, virtual: int) -> None:
        self.max_length, self.virtual = max_length, virtual
        self.batches: list[pa.RecordBatch] = []
        self.rows_read = self.kept = self.truncated = self.cut_off = self.tokens = self.supervised = self.longest = 0
        self.nothing_learned = self.answers = self.earlier_answers = self.rows_with_earlier = self.documents = 0
        self.shortest_prompt: int | None = None
        self.dropped: list[str] = []

    def add(self, examples: Sequence[Example], encoded: Sequence[Pairs]) -> None:
        """One batch of examples with their token ids."""
        import numpy as np
        import pyarrow as pa

        ids, labels, ends = array("i"), array("i"), array("i", [0])
        for example, pairs in zip(examples, encoded, strict=True):
            self.rows_read += 1
            self.documents += example.document
            rows = self._rows(example, pairs)
            for row in rows:
                ids.extend(row.input_ids)
                labels.extend(row.labels)
                ends.append(len(ids))
                self.longest = max(self.longest, len(row.input_ids))
            self.kept += len(rows)
        self.tokens += len(ids)
        label_ids = np.frombuffer(labels, dtype=np.int32)
        self.supervised += int((label_ids != IGNORE_INDEX).sum())
        offsets = np.frombuffer(ends, dtype=np.int32)
        columns = {
            "input_ids": np.frombuffer(ids, dtype=np.int32),
            "attention_mask": np.ones(len(ids), dtype=np.int8),
            "labels": label_ids,
        }
        lists = {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}
        self.batches.append(pa.RecordBatch.from_pydict(lists))

    def _rows(self, example: Example, pairs: Pairs) -> list[Encoded]:
        """The rows of an example, counted."""
        if not pairs[-1][1]:
            self.nothing_learned += 1
            return []
        prompt = len(pairs[0][0])
        self.shortest_prompt = prompt if self.shortest_prompt is None else min(self.shortest_prompt, prompt)
        rows = _rows_of(example, pairs, self.max_length + self.virtual)
        if not rows:
            self.cut_off += 1
            if len(self.dropped) < _NAMED_DROPS:
                self.dropped.append(example.source or f"row {self.rows_read - 1}")
            return []
        if example.document:
            return rows
        self.truncated += rows[0].cut
        self.answers += len(pairs)
        if earlier := len(learned_turns(example, ALL_TURNS)) - len(pairs):
            self.earlier_answers += earlier
            self.rows_with_earlier += 1
        return rows

    def table(self) -> pa.Table:
        """The kept rows; an error when there are none."""
        import pyarrow as pa

        if self.kept:
            return pa.Table.from_batches(self.batches)
        if self.shortest_prompt is None:
            raise DataError(
                f"nothing is learned of any of the {self.rows_read:,} rows: their messages say so.",
                hint="Set train (or weight) of the answers to learn, or leave it out.",
            )
        raise DataError(
            f"no answer is left of any of the {self.rows_read:,} rows at max_length {self.max_length}: "
            f"the shortest prompt alone has {self.shortest_prompt - self.virtual} tokens (first row: "
            f"{self.dropped[0]}).",
            hint="Raise max_length, or shorten the prompts.",
        )

    def report(self) -> TokenizeReport:
        """The counts."""
        return TokenizeReport(
            rows_read=self.rows_read,
            kept=self.kept,
            truncated=self.truncated,
            answers_cut_off=self.cut_off,
            nothing_learned=self.nothing_learned,
            dropped=tuple(self.dropped),
            max_length=self.max_length,
            tokens=self.tokens,
            supervised_tokens=self.supervised,
            longest=self.longest,
            answers=self.answers,
            earlier_answers=self.earlier_answers,
            rows_with_earlier=self.rows_with_earlier,
            documents=self.documents,
        )
