"""Files of a prompt folder: written so that a crash loses nothing, read as untrusted input.

Writing. One file is written under a temporary name, flushed to disk and renamed: the old file is there or the new one,
never half of either. Several files that belong together are written into a folder beside them, which is renamed to
`.saved` when all of them are whole; then they are moved up one by one. Whoever reads takes a file from `.saved` if it
is still there, and else from its place: a crash at any moment leaves the old set or the new one, whole.

Reading. A name is one of ptune's own, never one that a file says; what it leads to must be an ordinary file inside the
folder (or inside the hub's cache, whose folders are links), and no larger than it may be.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptune.errors import OutputError, PromptError, PTuneError

SAVED = ".saved"
"""The folder that a whole new set of files waits in until each is in its place."""
MAX_JSON_BYTES = 4 * 2**20
MAX_WEIGHT_BYTES = 8 * 2**30
_SIZE_BYTES = 8
"""What a safetensors file says the length of its header in."""
_HUB_SNAPSHOTS = "snapshots"
_ANEW = "It is damaged, or not from ptune; download or copy it again."


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents.

    Raises:
        OutputError: It cannot be made, or a file stands in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {folder}: {error.strerror}.", hint="Choose another place."
        ) from error
    return folder


def write_atomic(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, rename.

    Raises:
        OutputError: The disk is full or the place cannot be written; nothing that was there is lost.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_flushed(temporary, content)
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _not_written(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Plain values as indented JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n").encode("utf-8", "surrogatepass")


def write_set(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together; whenever it is cut off, the old set or the new one can be read.

    Args:
        folder: Made if it is not there; other files in it are left alone.
        contents: File name → content, in the order in which they come to their places.

    Raises:
        OutputError: They cannot be written; the old set is still whole.
    """
    make_folder(folder)
    staged, at = folder / f"{SAVED}.tmp", folder
    try:
        _settle(folder)
        if staged.exists():
            shutil.rmtree(staged)
        staged.mkdir()
        for name, content in contents.items():
            at = folder / name
            write_flushed(staged / name, content)
        flush_folder(staged)
        staged.rename(folder / SAVED)
        _settle(folder, list(contents))
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise _not_written(at, error) from error


def _settle(folder: Path, order: Sequence[str] = ()) -> None:
    """Move what waits in `.saved` to its place."""
    saved = folder / SAVED
    if not saved.is_dir() or saved.is_symlink():
        return
    names = [name for name in order if (saved / name).exists()] or sorted(path.name for path in saved.iterdir())
    for name in names:
        (saved / name).replace(folder / name)
    flush_folder(folder)
    saved.rmdir()


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file and bring it to disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Bring a folder's list of names to disk; a rename is safe from a power cut only then."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror}.", hint="Free some space or choose another place.")


def holds(folder: Path, name: str) -> bool:
    """Whether a folder holds a file of that name."""
    return (folder / SAVED / name).is_file() or (folder / name).is_file()


def read_bytes(folder: Path, name: str, *, limit: int) -> bytes:
    """The content of a file of a folder; arguments and errors as for `open_inside`."""
    with open_inside(folder, name, limit=limit) as file:
        return file.read()


@contextmanager
def open_inside(folder: Path, name: str, *, limit: int) -> Iterator[io.BufferedReader]:
    """A file of a folder, open for reading.

    Args:
        folder: The folder.
        name: A plain file name.
        limit: The most bytes it may have.

    Raises:
        PromptError: It is missing, too large, not a regular file, or lies outside the folder.
    """
    path = folder / SAVED / name if (folder / SAVED / name).is_file() else folder / name
    try:
        target = path.resolve(strict=True)
        if not target.is_relative_to(_root(folder)):
            raise PromptError(
                f"{path} is a link to a place outside its folder.", hint="Copy the file itself into the folder."
            )
        number = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(number, "rb") as file:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise PromptError(f"{path} is not a regular file.", hint="Download or copy the folder again.")
            if found.st_size > limit:
                raise PromptError(
                    f"{path} has {found.st_size:,} bytes, more than the {limit:,} that it may have.", hint=_ANEW
                )
            yield file
    except (OSError, RuntimeError) as error:
        if isinstance(error, PTuneError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise PromptError(f"cannot read {path}: {reason}.", hint="The prompt folder is incomplete.") from error


def _root(folder: Path) -> Path:
    """What the links of a folder must stay in: the folder, or the repository's part of the hub's cache."""
    root = folder.resolve(strict=True)
    return root.parents[1] if root.parent.name == _HUB_SNAPSHOTS else root


def read_json(folder: Path, name: str, *, limit: int | None = None) -> dict[str, Any]:
    """A JSON object from a file of a folder.

    Raises:
        PromptError: As `read_bytes`; or it is not JSON, or no object.
    """
    content = read_bytes(folder, name, limit=limit or MAX_JSON_BYTES)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".partition(";")[0]
        raise PromptError(f"cannot read {folder / name}: {reason}.", hint=_ANEW) from error
    if not isinstance(value, dict):
        raise PromptError(f"{folder / name} holds a {type(value).__name__}, expected an object.", hint=_ANEW)
    return value


def shapes_in(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors, from its header alone.

    Raises:
        PromptError: As `read_bytes`; or its header is damaged.
    """
    with open_inside(folder, name, limit=MAX_WEIGHT_BYTES) as file:
        size = int.from_bytes(file.read(_SIZE_BYTES), "little")
        header = file.read(min(size, MAX_JSON_BYTES))
    try:
        found = json.loads(header)
        return {key: tuple(map(int, one["shape"])) for key, one in found.items() if key != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PromptError(f"{folder / name} is not a whole safetensors file.", hint=_ANEW) from error


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()
