"""Tokenized data sets kept on disk, each under a name made from everything that shaped it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.choices import LAST_TURN
from ptune.data.example import Example
from ptune.data.template import Template
from ptune.data.text_ids import leading_special_ids
from ptune.data.token_report import TokenizeReport
from ptune.errors import OutputError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

_CACHE_FORMAT = 2
_REPORT_KEY = b"ptune_report"


@dataclass(frozen=True)
class Tokenized:
    """A tokenized data set and its report."""

    dataset: datasets.Dataset
    """Columns `input_ids` (int32), `attention_mask` (int8) and `labels` (int32), a list a row."""
    report: TokenizeReport


def fingerprint(
    examples: Sequence[Example],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    train_on: str = LAST_TURN,
) -> str:
    """A name for the result of tokenizing: equal inputs, equal name."""
    import tokenizers
    import transformers

    leading = leading_special_ids(tokenizer)  # also puts the tokenizer's padding and truncation state to rest
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode("utf-8", "surrogatepass"))

    add(_CACHE_FORMAT, transformers.__version__, tokenizers.__version__)
    add(template.fingerprint, max_length, leading, train_on, type(tokenizer).__name__)
    if tokenizer.is_fast:
        fast: Any = tokenizer
        add(fast.backend_tokenizer.to_str())
    else:
        add(sorted(tokenizer.get_vocab().items()), repr(tokenizer))
    for one in examples:
        add(one.content(), one.source)
    return digest.hexdigest()[:32]


def in_memory(table: pa.Table, report: TokenizeReport) -> Tokenized:
    """The result as a data set that is stored nowhere."""
    import datasets

    return Tokenized(datasets.Dataset(table), report)


def from_cache(path: Path) -> Tokenized | None:
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


def to_cache(path: Path, table: pa.Table, report: TokenizeReport) -> Tokenized:
    """Write under a temporary name, rename (other processes may be doing the same), and read from there.

    Raises:
        OutputError: The folder cannot be written.
    """
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
