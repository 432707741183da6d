"""What a data source is: a file, a folder written by `datasets`, a folder of files, or a hub id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ptune.data.csv_files import csv_rows
from ptune.data.excel import excel_rows
from ptune.data.json_files import Row, json_rows, jsonl_rows
from ptune.data.opened import COMPRESSIONS, Reader, ReadOptions, kind_of, read_text
from ptune.data.splits import is_split, split_in
from ptune.data.tables import arrow_file_rows, arrow_folder_files, arrow_rows, dataset_rows, load_hub, parquet_rows
from ptune.errors import DataError, listed, nearest, shown


def document_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """A text file as its one row: the whole of it is one document."""
    yield f"{path}:1", {"text": read_text(path, options.encoding)}


TEXT_READERS: dict[str, Reader] = {
    ".json": json_rows,
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".txt": document_rows,
}
"""Kinds of text files, which may be compressed."""
READERS: dict[str, Reader] = {
    **TEXT_READERS,
    ".xlsx": excel_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_file_rows,
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


@dataclass(frozen=True)
class Table:
    """Rows under one name: a file, a split of an Arrow folder or of a hub data set."""

    name: str
    rows: Callable[[], Iterator[Row]]


@dataclass(frozen=True)
class Found:
    """The tables of a source, in the order in which they are read."""

    tables: tuple[Table, ...]
    skipped: tuple[str, ...] = ()
    """Files of a folder that belong to other splits."""


def find_rows(source: str | Path, options: ReadOptions) -> Found:
    """The tables behind `source`; see `ptune.data.records.load_examples`.

    Raises:
        DataError: Nothing is there, or nothing that can be read.
    """
    name = str(source)
    path = Path(source)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):  # a name too long, with a null byte, or of nobody's home
        exists = False
    if not name.strip() or (not exists and (isinstance(source, Path) or _is_path(name, options))):
        raise _missing(path, name)
    if not exists:
        data = load_hub(name, options.split)
        table = f"{name} ({options.split})"
        return Found((Table(table, partial(dataset_rows, data, table, options)),))
    if not path.is_dir():
        return Found((_file(path, options),))
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        files = arrow_folder_files(path, options.split)
        return Found((Table(name, partial(arrow_rows, files, name, options)),))
    return _folder(path, options)


def _is_path(name: str, options: ReadOptions) -> bool:
    """Whether a name that does not exist was meant as a path rather than a hub id."""
    return kind_of(Path(name)) in (READERS | options.readers) or not _HUB_ID.fullmatch(name)


def _missing(path: Path, name: str) -> DataError:
    parent = path.parent
    if not parent.is_dir():
        return DataError(
            f"there is no file {shown(name, 200)}: the folder {shown(str(parent), 200)} does not exist.",
            hint="Check the path.",
        )
    try:
        guess = nearest(path.name, [item.name for item in parent.iterdir()])
    except OSError as error:
        return DataError(f"cannot look into the folder {parent}: {error.strerror}.", hint="Check who may read it.")
    hint = f"Did you mean {str(parent / guess)!r}?" if guess else "Check the path."
    return DataError(f"there is no file or folder {shown(name, 200)}.", hint=hint)


def _reader(path: Path, options: ReadOptions) -> Reader | None:
    """What reads files of this name; None when nothing does."""
    readers = TEXT_READERS if path.suffix.lower() in COMPRESSIONS else READERS
    return (readers | options.readers).get(kind_of(path))


def _kinds(options: ReadOptions) -> str:
    """The kinds of files that are read, for an error."""
    return f"{', '.join(READERS | options.readers)}; text files also with {', '.join(COMPRESSIONS)}"


def _file(path: Path, options: ReadOptions) -> Table:
    reader = _reader(path, options)
    if reader is None:
        raise DataError(f"{path} is of no kind that can be read.", hint=f"Known kinds: {_kinds(options)}.")
    if not path.is_file():
        raise DataError(f"{path} is not a regular file.", hint="Write the rows into a file, and give that.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.", hint="Give a file with at least one row.")
    return Table(str(path), partial(reader, path, options))


def _folder(path: Path, options: ReadOptions) -> Found:
    """The data files of a folder in name order; where file names say which split they are, only those of `split`.

    Text files are data where nothing else is: beside other files they are most likely about them.
    """
    try:
        files = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith((".", "_")))
    except OSError as error:
        raise DataError(
            f"cannot look into the folder {path}: {error.strerror}.", hint="Check who may read it."
        ) from error
    files = [item for item in files if _reader(item, options)]
    texts = [item for item in files if kind_of(item) == ".txt"]
    if texts and len(texts) < len(files):
        files = [item for item in files if item not in texts]
        options.notes.append(f"text files beside other data, not read: {listed(item.name for item in texts)}")
    if not files:
        raise DataError(f"the folder {path} holds no data file.", hint=f"Known kinds: {_kinds(options)}.")
    wanted = files
    if any(split_in(item.stem) for item in files):
        wanted = [item for item in files if is_split(split_in(item.stem) or "", options.split)]
        if not wanted:
            raise DataError(
                f"the folder {path} has no file for the split {shown(options.split)}.",
                hint=f"Its files: {listed(item.name for item in files)}.",
            )
    skipped = tuple(item.name for item in files if item not in wanted)
    return Found(tuple(_file(item, options) for item in wanted), skipped)
