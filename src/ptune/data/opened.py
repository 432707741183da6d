"""Text files opened: unpacked where they are compressed, and decoded.

Files are UTF-8, with or without a byte order mark, unless another encoding is named. A file that is not is refused with
the encoding that it seems to be in. A compressed file is unpacked as it is read, and no further when it grows beyond
all measure: a few kilobytes can hold gigabytes of nothing.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import override

from ptune.data.encodings import likely_encodings
from ptune.errors import DataError

MOST_UNPACKED = 2**28
"""Bytes that any file may unpack to."""
MOST_TIMES = 250
"""How many times its size a larger one may unpack to. Text packs to a twentieth at best, zeros to a thousandth."""


def _open_zst(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}
COMPRESSIONS = tuple(_OPENERS)
_BOM = b"\xef\xbb\xbf"
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError)
_SAMPLE = 2**16


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files are to be read."""

    split: str = "train"
    encoding: str | None = None
    """Of text files; UTF-8 when None."""
    sheet: str | None = None
    """Of Excel files; the first one when None."""
    notes: list[str] = field(default_factory=list)
    """Takes a line where a file was read otherwise than its name says."""
    readers: dict[str, Reader] = field(default_factory=dict)
    """Kinds of text files that are read otherwise than always, or that nothing reads otherwise."""
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Takes the names of a column's classes in their order, where a table has them."""


Reader = Callable[[Path, ReadOptions], Iterator[tuple[str, dict[str, Any]]]]
"""Reads the rows of a file, each with its place."""


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: `.jsonl` for `rows.JSONL.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed file, up to a limit."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self.stream = path, stream
        self.left = max(MOST_UNPACKED, MOST_TIMES * path.stat().st_size)

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        try:
            data = self.stream.read(len(buffer))
        except _FAULTS as error:
            raise DataError(
                f"{self.path} cannot be unpacked: {str(error).rstrip('.') or type(error).__name__}.",
                hint="Pack the file again, or give it unpacked.",
            ) from error
        self.left -= len(data)
        if self.left < 0:
            raise DataError(
                f"{self.path} unpacks to more than {MOST_TIMES} times its size.",
                hint="If that is right, unpack it and give the unpacked file.",
            )
        buffer[: len(data)] = data
        return len(data)

    @override
    def close(self) -> None:
        self.stream.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked.

    Raises:
        OSError: It cannot be opened.
    """
    opener = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opener is None else io.BufferedReader(_Unpacked(path, opener(path)), 2**16)


def read_text(path: Path, encoding: str | None = None) -> str:
    """The whole of a text file, without its byte order mark.

    Raises:
        DataError: The file cannot be read, or is not in that encoding; names the byte offset.
    """
    try:
        with open_bytes(path) as file:
            data = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    if encoding is not None:
        return _decode_as(data, path, encoding)
    start = len(_BOM) if data.startswith(_BOM) else 0
    return _decode(data[start:] if start else data, path, start)


def text_lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    """The lines of a text file one after another, ends of lines included; no more than one is held in memory.

    Raises:
        DataError: The file cannot be read, or is not in that encoding; names the byte offset or the line.
    """
    try:
        with open_bytes(path) as file:
            if encoding is not None:
                yield from _lines_as(file, path, encoding)
                return
            offset, ascii_so_far = 0, True
            for raw in file:
                start = len(_BOM) if not offset and raw.startswith(_BOM) else 0
                yield _decode(raw[start:] if start else raw, path, offset + start, mixed=not ascii_so_far)
                offset += len(raw)
                ascii_so_far = ascii_so_far and raw.isascii()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that cannot be read at all."""
    return DataError(f"{path} cannot be read: {error.strerror or error}.", hint="Check who may read it.")


def _decode(data: bytes, path: Path, offset: int, *, mixed: bool = False) -> str:
    """`data` as UTF-8.

    Args:
        data: Bytes.
        path: Their file.
        offset: Where they begin in it, in bytes.
        mixed: Whether UTF-8 that is more than ASCII stands before.
    """
    try:
        text = data.decode("utf-8")
        if "\0" not in text[:4]:
            return text
        found, start = f"a null byte at byte offset {offset + data.index(0)}", 0
    except UnicodeDecodeError as error:
        found, start = f"byte 0x{data[error.start]:02x} at byte offset {offset + error.start}", error.start
    message = f"{path} is not UTF-8: {found}."
    if mixed or not data[:start].isascii():
        raise DataError(message, hint="What stands before is UTF-8: fix that place, or write the file again.")
    likely = likely_encodings(data[max(0, start - 200) : start + _SAMPLE])
    if not likely:
        raise DataError(message, hint="Say its encoding with --encoding, or convert it to UTF-8.")
    if len(likely) == 1:
        raise DataError(f"{message} It looks like {likely[0]}.", hint=f"Pass --encoding {likely[0]}.")
    raise DataError(
        f"{message} It looks like {likely[0]} or {likely[1]}.",
        hint=f"Pass --encoding {likely[0]}; where the text comes out wrong, --encoding {likely[1]}.",
    )


def _decode_as(data: bytes, path: Path, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise _not_in(path, encoding, error) from error


def _lines_as(file: BinaryIO, path: Path, encoding: str) -> Iterator[str]:
    number = 0
    try:
        with io.TextIOWrapper(file, encoding, newline="\n") as decoded:
            for number, line in enumerate(decoded, start=1):
                yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        raise _not_in(path, encoding, error, f" after line {number}" if number else " at its start") from error


def _not_in(path: Path, encoding: str, error: UnicodeError, where: str = "") -> DataError:
    place = f" at byte offset {error.start}" if isinstance(error, UnicodeDecodeError) and not where else where
    return DataError(
        f"{path} is not {encoding}: {getattr(error, 'reason', error)}{place}.",
        hint="Name the right one with --encoding, or leave the flag out for UTF-8.",
    )
