"""The folder of a study: what the model asked and answered, and what it held likely, written as it comes.

| file | what |
| --- | --- |
| `study.json` | what was studied, by which model and how: another study is never taken for this one |
| `questions.jsonl` | the questions, and the excerpt and kind of each; one may come again |
| `rows.jsonl` | questions with answers, Alpaca-style: training data that can be read, edited and used elsewhere |
| `teacher-N.safetensors` | soft labels of some rows, and the digest of the tokens that they belong to |

A study that was interrupted goes on behind what is there; a last line that was cut off is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors

from ptune.data.soft_labels import SoftLabels
from ptune.errors import DataError, OutputError, printable
from ptune.saved.files import make_folder, write_atomic, write_json

STUDIED, QUESTIONS, ROWS = "study.json", "questions.jsonl", "rows.jsonl"
_TEACHER = "teacher-{:05d}.safetensors"
_DIGEST = "tokens_sha256"


def open_study(folder: Path, studied: Mapping[str, Any], *, begin: bool) -> None:
    """Make the folder of a study, or look whether it holds the same one.

    Args:
        folder: Where it is.
        studied: What is studied and how, as plain values.
        begin: Replace what is there.

    Raises:
        OutputError: It holds another study, or cannot be written.
    """
    if (folder / STUDIED).is_file() and not begin:
        check_study(folder, studied, whole=True)
        return
    make_folder(folder)
    for old in (folder / QUESTIONS, folder / ROWS, *folder.glob("teacher-*.safetensors")):
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {old}: {error.strerror}.", hint="Choose another --output.") from error
    write_json(folder / STUDIED, studied)


def check_study(folder: Path, studied: Mapping[str, Any], *, whole: bool = False) -> None:
    """Look whether a folder holds a study of this.

    Args:
        folder: The study's.
        studied: What must be the same.
        whole: Whether that is all of it.

    Raises:
        OutputError: It is of something else.
    """
    studied = json.loads(json.dumps(studied))
    try:
        there = json.loads((folder / STUDIED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        there = {}
    there = there if isinstance(there, dict) else {}
    names = {**there, **studied} if whole else studied
    if changed := [name for name in names if there.get(name) != studied.get(name)]:
        raise OutputError(
            f"{folder} holds another study: other {', '.join(printable(name) for name in changed[:5])}.",
            hint="Choose another --output, or pass --overwrite."
            if whole
            else "Leave --study out to make one, or give the flags that this one was made with.",
        )


class LinesFile:
    """A JSONL file that grows batch by batch. A last line that was cut off is dropped.

    Args:
        path: The file; it need not be there.

    Raises:
        OutputError: It cannot be read.
        DataError: Another line is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        try:
            text = path.read_bytes() if path.is_file() else b""
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror}.", hint="Choose another place.") from error
        *ended, last = text.split(b"\n")
        for number, line in enumerate(ended, start=1):
            value = _object(line)
            if value is None:
                raise DataError(f"{path}:{number} is no JSON object.", hint="Mend the line, or pass --overwrite.")
            self.lines.append(value)
        if (value := _object(last)) is not None:
            self.lines.append(value)
        whole = b"".join(map(_line, self.lines))
        if text != whole:
            write_atomic(path, whole)

    def keep(self, count: int) -> None:
        """Forget what is behind the first lines."""
        if count < len(self.lines):
            self.lines = self.lines[:count]
            write_atomic(self.path, b"".join(map(_line, self.lines)))

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write some lines and bring them to disk.

        Raises:
            OutputError: The disk is full, or the place cannot be written.
        """
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(map(_line, lines)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}.", hint="Free some space or choose another place."
            ) from error
        self.lines += lines


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def tokens_digest(rows: Sequence[Sequence[int]]) -> str:
    """A name for some rows of token ids."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def write_labels(folder: Path, number: int, digest: str, labels: Sequence[SoftLabels]) -> None:
    """Write the soft labels of some rows.

    Args:
        folder: Of the study.
        number: Of these rows.
        digest: Of the tokens that the labels belong to.
        labels: Of each row.
    """
    tensors = {
        "ids": torch.cat([one.ids for one in labels]).to(torch.int32),
        "log_probs": torch.cat([one.log_probs for one in labels]).float(),
        "counts": torch.tensor([len(one.ids) for one in labels], dtype=torch.int32),
    }
    write_atomic(folder / _TEACHER.format(number), save_safetensors(tensors, {_DIGEST: digest}))


def read_labels(folder: Path, number: int, digest: str) -> list[SoftLabels] | None:
    """The soft labels of some rows; None where there are none of these tokens, or none that can be read."""
    path = folder / _TEACHER.format(number)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_DIGEST) != digest:
                return None
            ids, log_probs, counts = (file.get_tensor(name) for name in ("ids", "log_probs", "counts"))
    except (SafetensorError, OSError):
        return None
    if ids.shape != log_probs.shape or ids.dim() != 2 or counts.dim() != 1:
        return None
    sizes = counts.tolist()
    if min(sizes, default=0) < 0 or sum(sizes) != len(ids):
        return None
    parts = zip(ids.long().split(sizes), log_probs.split(sizes), strict=True)
    return [SoftLabels(*part) for part in parts]
