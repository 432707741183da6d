"""Parquet files, Arrow files and folders, and hub data sets as rows, through pyarrow and `datasets`.

Files are read as untrusted input: every Arrow batch is validated before it is looked into, sizes that a
file claims are not allocated, and an Arrow folder's JSON can name no file outside it. `datasets` itself is asked for
hub ids alone; what it writes into a schema is taken for one thing only, the names of class labels, of values and of
lists of them. An unlabelled row (-1) has no answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.data.json_files import Row
from ptune.data.opened import ReadOptions
from ptune.errors import DataError, PTuneError, first_line, one_line, shown, unknown

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

ROWS_PER_BATCH = 1000
_FILE_MAGIC = b"ARROW1"
"""What Arrow's file format begins with; `datasets` writes the stream format, which has no mark."""
_PLAIN_NAME = re.compile(r"\w[\w.-]*")
_LISTS = ("List", "LargeList", "Sequence")
"""What `datasets` calls a column of lists, today and in its older versions."""
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_MAX_JSON_BYTES = 16 * 2**20
_FAULTS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError, RecursionError)
"""What pyarrow raises on a damaged file, beside its own exceptions (`NotImplementedError` is a `RuntimeError`)."""

Labels = Mapping[str, Sequence[str]]
"""Columns of class labels, or of lists of them → the names of the classes."""


def parquet_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Mapped, so that a size that the file claims is not allocated.
        with pq.ParquetFile(path, memory_map=True) as file:
            batches = file.iter_batches(batch_size=ROWS_PER_BATCH)
            yield from _rows(batches, _labels(file.schema_arrow, options), str(path))
    except PTuneError:
        raise
    except (pa.ArrowException, RuntimeError, *_FAULTS) as error:
        raise _unreadable(path, "a Parquet file", error) from error


def arrow_file_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Rows of one Arrow file, in the stream format that `datasets` writes or in the file format."""
    return arrow_rows([path], str(path), options)


def arrow_rows(paths: Sequence[Path], name: str, options: ReadOptions) -> Iterator[Row]:
    """Rows of the Arrow files of one table; `name` stands in their places."""
    import pyarrow as pa

    number = 0
    for path in paths:
        try:
            with pa.memory_map(str(path)) as source:
                as_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
                source.seek(0)
                reader = pa.ipc.open_file(source) if as_file else pa.ipc.open_stream(source)
                batches = map(reader.get_batch, range(reader.num_record_batches)) if as_file else reader
                for place, row in _rows(batches, _labels(reader.schema, options), name, start=number):
                    yield place, row
                    number += 1
        except PTuneError:
            raise
        except (pa.ArrowException, RuntimeError, *_FAULTS) as error:
            raise _unreadable(path, "an Arrow file", error) from error


def arrow_folder_files(path: Path, split: str) -> list[Path]:
    """The Arrow files of a folder that `save_to_disk` wrote; of a `DatasetDict`, those of the given split.

    Raises:
        DataError: The folder is damaged, has no such split, or names a file outside it.
    """
    if (path / _SPLITS).exists():
        splits = [_plain(path / _SPLITS, name) for name in _listed_in(path / _SPLITS, "splits")]
        if split not in splits:
            raise unknown(f"split of {path}:", split, splits, error=DataError)
        path = path / split
    state = path / _STATE
    if _json(state).get("_indices_files"):
        raise DataError(f"{state} names an index of rows.", hint="Write the data set again with save_to_disk.")
    entries = _listed_in(state, "_data_files")
    return [path / _plain(state, entry.get("filename") if isinstance(entry, dict) else entry) for entry in entries]


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path.parent, "an Arrow folder", error) from error
    if not isinstance(value, dict):
        raise _unreadable(path.parent, "an Arrow folder", TypeError(f"{path.name} holds {shown(value)}, not a table"))
    return value


def _listed_in(path: Path, key: str) -> list[Any]:
    value = _json(path).get(key)
    if not isinstance(value, list) or not value:
        fault = TypeError(f"{path.name} has {shown(value)} as {key}, not a list")
        raise _unreadable(path.parent, "an Arrow folder", fault)
    return value


def _plain(path: Path, name: Any) -> str:
    """A name of a file or a folder that stands beside `path`."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise DataError(
            f"{path} names {shown(name)}, which is no file of its folder.", hint="Write the data set again."
        )
    return name


def load_hub(name: str, split: str) -> datasets.Dataset:
    """A data set from the hub (or its cache).

    Args:
        name: `owner/name`, or `owner/name:configuration`.
        split: Name of the split.

    Raises:
        DataError: It does not exist, is not within reach, or has no such split.
    """
    import datasets

    from ptune.reach import no_connection

    repository, _, configuration = name.partition(":")
    if (fault := no_connection(repository, "README.md", kind="dataset")) is not None:
        raise DataError(
            f"there is no file or folder {shown(name)}, and the hub cannot be reached: {first_line(fault)}.",
            hint="Check the spelling and the connection; HF_HUB_OFFLINE=1 takes what is in the hub's cache.",
        )
    try:
        return datasets.load_dataset(repository, configuration or None, split=split)
    except Exception as error:  # network, hub, cache and the data's own format: each has its own kind of error
        if isinstance(error, PTuneError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"there is no file or folder {shown(name)}, and it could not be loaded from the hub "
            f"(split {shown(split)}): {reason}",
            hint="Check the spelling; without network, give a local file.",
        ) from error


def dataset_rows(data: datasets.Dataset, name: str, options: ReadOptions) -> Iterator[Row]:
    """Rows of a `datasets.Dataset`; `name` stands in their places."""
    import datasets

    batches: Any = data.with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
    kinds = {column: _element(kind) for column, kind in data.features.items()}
    labels = {column: kind.names for column, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
    _note(labels, options)
    yield from _rows(batches, labels, name)


def _element(kind: Any) -> Any:
    """What a column's lists are of, as `datasets` says it; the kind itself where it is no list."""
    import datasets

    return kind.feature if isinstance(kind, (datasets.List, datasets.LargeList)) else kind


def _note(labels: Labels, options: ReadOptions) -> None:
    """Tell the caller the names of classes in their order."""
    options.class_names.update({column: tuple(names) for column, names in labels.items()})


def _labels(schema: pa.Schema, options: ReadOptions) -> Labels:
    """The class labels that `datasets` noted in a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {field.name: features.get(field.name) for field in schema if _holds_codes(field.type)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    found = {}
    for column, kind in kinds.items():
        if isinstance(kind, dict) and kind.get("_type") in _LISTS:
            kind = kind.get("feature")
        names = kind.get("names") if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" else None
        if isinstance(names, list) and all(isinstance(one, str) for one in names):
            found[column] = names
    _note(found, options)
    return found


def _holds_codes(kind: pa.DataType) -> bool:
    """Whether a column has whole numbers, or lists of them."""
    import pyarrow as pa

    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(pa.types.is_integer(kind.value_type if lists else kind))


def _rows(batches: Iterable[pa.RecordBatch | pa.Table], labels: Labels, name: str, *, start: int = 0) -> Iterator[Row]:
    number = start
    for batch in batches:
        # Offsets that point out of a buffer would be followed otherwise.
        batch.validate(full=True)
        for first in range(0, batch.num_rows, ROWS_PER_BATCH):
            for row in batch.slice(first, ROWS_PER_BATCH).to_pylist():
                place = f"{name}[{number}]"
                for column, names in labels.items():
                    row[column] = _class_names(row[column], names, f"{place}: {column!r}")
                yield place, row
                number += 1


def _class_names(codes: Any, names: Sequence[str], place: str) -> Any:
    """The name of a class, or of each of a list of classes."""
    if isinstance(codes, list):
        return [_class_name(code, names, place) for code in codes]
    return _class_name(codes, names, place)


def _class_name(code: int | None, names: Sequence[str], place: str) -> str | None:
    if code is None or code < 0:
        return None
    if code >= len(names):
        raise DataError(f"{place} is class {code}; there are names for {len(names)}.", hint="Write the file again.")
    return names[code]


def _unreadable(path: Path, what: str, error: BaseException) -> DataError:
    reason = (one_line(error) or type(error).__name__)[:300].rstrip(".")
    return DataError(f"{path} cannot be read as {what}: {reason}.", hint="Write the file again, or give another one.")
