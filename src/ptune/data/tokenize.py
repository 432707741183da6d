"""Segments become token ids and labels; the whole data set is encoded in batches and cached.

Labels are -100 on the prompt, by length. A row longer than `max_length` is cut at its end, as in the tutorial; a row of
which no answer token is left would teach nothing (its loss is 0/0), so it is dropped and counted. Tokenizers work on
batches with all cores by themselves, which measured faster than worker processes; `num_proc` is there for machines with
many cores and for tokenizers written in Python.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.data.example import Example
from ptune.data.template import Segments, Template
from ptune.errors import ConfigError, DataError, OutputError, printable

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
ROWS_PER_BATCH = 1000
_CACHE_FORMAT = 1
_REPORT_KEY = b"ptune_report"
_NAMED_DROPS = 3

TokenPair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row ready for training; three lists of the same length."""

    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]
    truncated: bool = False
    """Whether the end of the answer was cut off."""


@dataclass(frozen=True, kw_only=True)
class TokenizeReport:
    """What became of the rows, and how many tokens they are."""

    rows_read: int
    kept: int
    truncated: int
    """Kept rows whose answer was cut at `max_length`."""
    answers_cut_off: int
    """Rows dropped because no token of their answer fits into `max_length`."""
    dropped: tuple[str, ...]
    """Places of the first few dropped rows."""
    max_length: int
    tokens: int
    """Tokens of the kept rows, prompts and answers."""
    supervised_tokens: int
    """Answer tokens of the kept rows: the ones learned."""
    longest: int
    """Tokens of the longest kept row."""
    from_cache: bool = False
    """Whether an earlier run's result was read instead of tokenizing."""

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        cached = " (from the cache)" if self.from_cache else ""
        answers = f"{self.supervised_tokens:,} of them in answers, longest row {self.longest:,}"
        lines = [f"tokenized {self.kept:,} rows{cached}: {self.tokens:,} tokens, {answers}"]
        if self.truncated:
            lines.append(f"truncated {self.truncated:,} answers at max_length {self.max_length:,}")
        if self.answers_cut_off:
            some = ", ".join(self.dropped)
            more = ", …" if self.answers_cut_off > len(self.dropped) else ""
            lines.append(f"dropped {self.answers_cut_off:,} rows whose whole answer was cut off ({some}{more})")
        return [printable(line) for line in lines]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**asdict(self), "dropped": list(self.dropped)}


@dataclass(frozen=True)
class Tokenized:
    """A tokenized data set and its report."""

    dataset: datasets.Dataset
    """Columns `input_ids` (int32), `attention_mask` (int8) and `labels` (int32), a list a row."""
    report: TokenizeReport


def encode_prompt(segments: Segments, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt alone, as in training. For generation."""
    return _leading(segments, tokenizer) + _ids([segments.prompt], tokenizer)[0]


def encode(segments: Segments, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded | None:
    """Token ids and labels of one example; None when no token of its answer fits into `max_length`."""
    answer = _ids([segments.answer], tokenizer)[0]
    return _join(encode_prompt(segments, tokenizer), answer, max_length)


def _join(prompt: list[int], answer: list[int], max_length: int) -> Encoded | None:
    """Prompt and answer as one row, cut at the end; the labels know the prompt by its length."""
    if len(prompt) >= max_length or not answer:
        return None
    length = min(len(prompt) + len(answer), max_length)
    kept = answer[: length - len(prompt)]
    return Encoded(prompt + kept, [1] * length, [IGNORED] * len(prompt) + kept, truncated=len(kept) < len(answer))


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, with no special tokens added."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _leading(segments: Segments, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return leading_special_ids(tokenizer) if segments.add_special_tokens else []


def leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text, e.g. `[BOS]`; often none.

    Those it puts behind a text are left out: an end token between prompt and answer would end the text there.
    """
    bare = _ids(["a"], tokenizer)[0]
    whole: list[int] = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def tokenize_examples(
    examples: Sequence[Example],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
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
        num_proc: Worker processes; None tokenizes in this one with the tokenizer's own threads.
        cache_dir: Keep the result here, under a name made from data, template, tokenizer and `max_length`, and read it
            from here next time. None keeps it in memory.
        progress: Show a progress bar on stderr.

    Raises:
        DataError: No rows, or no row with a token of its answer within `max_length`.
        ConfigError: `max_length` below 2, or `num_proc` below 1.
        OutputError: The cache cannot be written.
    """
    if max_length < 2:
        raise ConfigError(f"max_length must be at least 2, not {max_length}.", hint="The tutorial uses 256.")
    if num_proc is not None and num_proc < 1:
        raise ConfigError(f"num_proc must be at least 1, not {num_proc}.", hint="Leave it out for no worker processes.")
    if not examples:
        raise DataError("there are no examples to tokenize.")
    cache = None
    if cache_dir is not None:
        cache = Path(cache_dir) / f"{fingerprint(examples, template, tokenizer, max_length)}.arrow"
        if (cached := _from_cache(cache)) is not None:
            return cached
    encoder = _BatchEncoder(template, tokenizer, leading_special_ids(tokenizer))
    rows = _Rows(max_length)
    for batch, pairs in _encoded_batches(examples, encoder, num_proc, progress):
        rows.add(batch, pairs)
    table, report = rows.table(), rows.report()
    return _in_memory(table, report) if cache is None else _to_cache(cache, table, report)


@dataclass(frozen=True)
class _BatchEncoder:
    """Examples → token pairs. Sent whole to worker processes."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    leading: list[int]

    def __call__(self, examples: Sequence[Example]) -> list[TokenPair]:
        made = [self.template.segments(example) for example in examples]
        prompts = _ids([one.prompt for one in made], self.tokenizer)
        answers = _ids([one.answer for one in made], self.tokenizer)
        return [
            (self.leading + prompt if one.add_special_tokens else prompt, answer)
            for one, prompt, answer in zip(made, prompts, answers, strict=True)
        ]


_worker: list[_BatchEncoder] = []
"""In a worker process: the one encoder it was started with."""


def _start_worker(encoder: _BatchEncoder) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork; the processes are the parallelism
    _worker.append(encoder)


def _work(examples: Sequence[Example]) -> list[TokenPair]:
    return _worker[0](examples)


def _encoded_batches(
    examples: Sequence[Example], encoder: _BatchEncoder, num_proc: int | None, progress: bool
) -> Iterator[tuple[Sequence[Example], list[TokenPair]]]:
    """Batches of examples with their token pairs, in order."""
    from tqdm import tqdm

    batches = [examples[start : start + ROWS_PER_BATCH] for start in range(0, len(examples), ROWS_PER_BATCH)]

    def shown(results: Iterable[list[TokenPair]]) -> Iterator[tuple[Sequence[Example], list[TokenPair]]]:
        with tqdm(total=len(examples), desc="tokenizing", unit=" rows", disable=not progress) as bar:
            for batch, pairs in zip(batches, results, strict=True):
                yield batch, pairs
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

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.batches: list[pa.RecordBatch] = []
        self.rows_read = self.kept = self.truncated = self.cut_off = self.tokens = self.supervised = self.longest = 0
        self.shortest_prompt: int | None = None
        self.dropped: list[str] = []

    def add(self, examples: Sequence[Example], pairs: Sequence[TokenPair]) -> None:
        """One batch of examples with their token ids."""
        import numpy as np
        import pyarrow as pa

        ids, labels, ends = array("i"), array("i"), array("i", [0])
        for example, (prompt, answer) in zip(examples, pairs, strict=True):
            self.rows_read += 1
            shortest = self.shortest_prompt
            self.shortest_prompt = len(prompt) if shortest is None else min(shortest, len(prompt))
            row = _join(prompt, answer, self.max_length)
            if row is None:
                self.cut_off += 1
                if len(self.dropped) < _NAMED_DROPS:
                    self.dropped.append(example.source or f"row {self.rows_read - 1}")
                continue
            ids.extend(row.input_ids)
            labels.extend(row.labels)
            ends.append(len(ids))
            self.kept += 1
            self.truncated += row.truncated
            self.supervised += len(row.input_ids) - len(prompt)
            self.longest = max(self.longest, len(row.input_ids))
        self.tokens += len(ids)
        offsets = np.frombuffer(ends, dtype=np.int32)
        columns = {
            "input_ids": np.frombuffer(ids, dtype=np.int32),
            "attention_mask": np.ones(len(ids), dtype=np.int8),
            "labels": np.frombuffer(labels, dtype=np.int32),
        }
        lists = {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}
        self.batches.append(pa.RecordBatch.from_pydict(lists))

    def table(self) -> pa.Table:
        """The kept rows; an error when there are none."""
        import pyarrow as pa

        if not self.kept:
            raise DataError(
                f"no answer is left of any of the {self.rows_read:,} rows at max_length {self.max_length}: "
                f"the shortest prompt alone has {self.shortest_prompt} tokens (first row: {self.dropped[0]}).",
                hint="Raise max_length, or shorten the prompts.",
            )
        return pa.Table.from_batches(self.batches)

    def report(self) -> TokenizeReport:
        """The counts."""
        return TokenizeReport(
            rows_read=self.rows_read,
            kept=self.kept,
            truncated=self.truncated,
            answers_cut_off=self.cut_off,
            dropped=tuple(self.dropped),
            max_length=self.max_length,
            tokens=self.tokens,
            supervised_tokens=self.supervised,
            longest=self.longest,
        )


def fingerprint(
    examples: Sequence[Example], template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> str:
    """A name for the result of tokenizing: equal inputs, equal name."""
    import tokenizers
    import transformers

    leading = leading_special_ids(tokenizer)  # also puts the tokenizer's padding and truncation state to rest
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode("utf-8", "surrogatepass"))

    add(_CACHE_FORMAT, transformers.__version__, tokenizers.__version__)
    add(template.fingerprint, max_length, leading, type(tokenizer).__name__)
    if tokenizer.is_fast:
        fast: Any = tokenizer
        add(fast.backend_tokenizer.to_str())
    else:
        add(sorted(tokenizer.get_vocab().items()), repr(tokenizer))
    for one in examples:
        add(one.instruction, one.input, one.output, one.system, one.history, one.source)
    return digest.hexdigest()[:32]


def _in_memory(table: pa.Table, report: TokenizeReport) -> Tokenized:
    import datasets

    return Tokenized(datasets.Dataset(table), report)


def _from_cache(path: Path) -> Tokenized | None:
    """The result stored there; None when there is none, or it cannot be read."""
    import datasets
    import pyarrow as pa

    if not path.is_file():
        return None
    try:
        with pa.memory_map(str(path)) as file:
            stored = pa.ipc.open_stream(file).schema.metadata[_REPORT_KEY]
        fields = json.loads(stored)
        fields["dropped"] = tuple(fields["dropped"])
        report = replace(TokenizeReport(**fields), from_cache=True)
        dataset = datasets.Dataset.from_file(str(path))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    return Tokenized(dataset, report) if len(dataset) == report.kept else None


def _to_cache(path: Path, table: pa.Table, report: TokenizeReport) -> Tokenized:
    """Write under a temporary name, rename (other processes may be doing the same), and read from there."""
    import datasets
    import pyarrow as pa

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    table = table.replace_schema_metadata({_REPORT_KEY: json.dumps(report.to_dict()).encode()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(path)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise OutputError(
            f"the token cache {path.parent} cannot be written: {error.strerror or error}.",
            hint="Give another cache_dir, or none.",
        ) from error
    return Tokenized(datasets.Dataset.from_file(str(path)), report)
