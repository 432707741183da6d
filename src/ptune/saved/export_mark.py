"""The mark in an export's README, by which an earlier export is told from what must not be replaced."""

from __future__ import annotations

from pathlib import Path

from ptune.errors import OutputError
from ptune.saved.format import CARD

WRITER = "ptune export"


def marked(card: bytes, kind: str) -> bytes:
    """A README with the mark of an export of that kind (`peft`, `vllm`, `model`) at its end."""
    return card + b"\n" + _mark(kind)


def is_marked(folder: Path, kind: str) -> bool:
    """Whether a folder is an export of that kind."""
    card = folder / CARD
    return card.is_file() and card.read_bytes().endswith(_mark(kind))


def check_empty(output: Path, *, overwrite: bool) -> bool:
    """Whether a folder may be written freely; otherwise it holds something, and `overwrite` says to replace it.

    Raises:
        OutputError: It is a file, or holds something that is not to be replaced.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"the output {output} is a file.", hint="Choose another name.")
    if not output.is_dir() or not any(output.iterdir()):
        return True
    if not overwrite:
        raise OutputError(f"the output folder {output} is not empty.", hint="Choose another one, or pass --overwrite.")
    return False


def foreign(path: Path) -> OutputError:
    """The error for what is in the place of an export and is none."""
    return OutputError(f"{path} is no export of ptune's, and would be replaced.", hint="Choose another output.")


def _mark(kind: str) -> bytes:
    return f"<!-- {WRITER} --to {kind} -->\n".encode()
