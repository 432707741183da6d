"""Parquet files, Arrow files and folders, and hub data sets as rows, through pyarrow and `datasets`.

Rows are taken from the Arrow tables without decoding, so columns of images or audio cost nothing. Class labels are
turned into their names; an unlabelled row (-1) has no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.data.text_files import Row
from ptune.errors import DataError, PTuneError, unknown

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

ROWS_PER_BATCH = 1000


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            features = datasets.Features.from_arrow_schema(file.schema_arrow)
            yield from _rows(file.iter_batches(batch_size=ROWS_PER_BATCH), features, str(path))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "a Parquet file", error) from error


def arrow_file_rows(path: Path) -> Iterator[Row]:
    """Rows of one Arrow file as `datasets` writes it."""
    import datasets
    import pyarrow as pa

    try:
        yield from dataset_rows(datasets.Dataset.from_file(str(path)), str(path))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "an Arrow file", error) from error


def load_arrow_folder(path: Path, split: str) -> datasets.Dataset:
    """The data set in a folder written by `save_to_disk`; of a `DatasetDict`, the given split.

    Raises:
        DataError: The folder is damaged, or has no such split.
    """
    import datasets
    import pyarrow as pa

    try:
        loaded = datasets.load_from_disk(str(path))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, "an Arrow folder", error) from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise unknown(f"split of {path}:", split, list(loaded), error=DataError)
    return loaded[split]


def load_hub(name: str, split: str) -> datasets.Dataset:
    """A data set from the hub (or its cache).

    Args:
        name: `owner/name`, or `owner/name:configuration`.
        split: Name of the split.

    Raises:
        DataError: It does not exist, is not within reach, or has no such split.
    """
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(repository, configuration or None, split=split)
    except Exception as error:  # network, hub, cache and the data's own format: each has its own kind of error
        if isinstance(error, PTuneError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"there is no file or folder {name!r}, and it could not be loaded from the hub (split {split!r}): {reason}",
            hint="Check the spelling; without network, give a local file.",
        ) from error


def dataset_rows(data: datasets.Dataset, name: str) -> Iterator[Row]:
    """Rows of a `datasets.Dataset`; `name` stands in their places."""
    batches: Any = data.with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
    yield from _rows(batches, data.features, name)


def _rows(batches: Iterable[pa.RecordBatch | pa.Table], features: Mapping[str, Any], name: str) -> Iterator[Row]:
    import datasets

    labels = {column: kind for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            for column, kind in labels.items():
                code = row[column]
                row[column] = None if code is None or code < 0 else kind.int2str(code)
            yield f"{name}[{number}]", row
            number += 1


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return DataError(f"{path} cannot be read as {what}: {reason}.", hint="Write the file again, or give another one.")
