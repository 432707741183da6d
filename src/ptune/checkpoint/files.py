"""Writing files so that a crash leaves the old file or the new one, never half of either."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ptune.errors import OutputError


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
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror}.", hint="Free some space or choose another place."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n").encode())


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()
