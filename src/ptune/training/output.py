"""The output folder of a run: nothing of anybody else's is lost, and a run that never began leaves nothing behind.

What is in the way is found before anything is loaded; the folder is made, and an earlier run's files are removed, only
when training is about to begin. A checkpoint counts as ptune's when it holds a `ptune.json`: `transformers.Trainer`
deletes old `checkpoint-N` folders by their name, whoever wrote them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ptune.errors import OutputError
from ptune.saved.files import make_folder, write_atomic
from ptune.saved.format import CARD, ENCODER_WEIGHTS
from ptune.saved.loss_history import METRICS
from ptune.saved.opened_folder import PTUNE_CONFIG
from ptune.saved.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ptune.training.checkpoints import CHECKPOINT_NAME, log_history, remove_leftovers
from ptune.training.progress import metrics_line

PLOT, EVENTS = "loss.png", "runs"
_OWN_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ENCODER_WEIGHTS, PTUNE_CONFIG, CARD, METRICS, PLOT)
_OWN_CARD = "library_name: ptune"


class OutputFolder:
    """The folder of one run. As a context manager it removes again what it made, if that stayed empty.

    Args:
        path: The folder; it may not exist yet.
        overwrite: Replace what an earlier run left there. Files of others stay.
        resume: A checkpoint to go on from; when it lies in the folder, what is there is kept.

    Raises:
        OutputError: It is not empty, holds something of somebody else's that would be replaced, or cannot be written.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: Path | None = None) -> None:
        self.path = path
        self.metrics, self.plot, self.events = path / METRICS, path / PLOT, path / EVENTS
        self._resume = resume
        self._keeps = resume is not None and resume.resolve().parent == path.resolve()
        self._missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        self._check(overwrite=overwrite or self._keeps)

    def _check(self, *, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"the output {self.path} is a file.", hint="Choose another name.")
        there = next((folder for folder in (self.path, *self.path.absolute().parents) if folder.exists()), None)
        if there is not None and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise OutputError(
                f"the output folder {self.path} cannot be written: {there} is "
                f"{'write-protected' if there.is_dir() else 'a file'}.",
                hint="Choose another place.",
            )
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not overwrite:
            raise OutputError(
                f"the output folder {self.path} is not empty.", hint="Choose another one, or pass --overwrite."
            )
        if foreign := sorted(path.name for path in self._entries() if not _is_own(path)):
            raise OutputError(
                f"{self.path / foreign[0]} is not ptune's, and a run would replace it.",
                hint="Choose another output folder, or move it away.",
            )

    def _entries(self) -> list[Path]:
        """What bears the name of something that a run writes."""
        return [path for path in self.path.iterdir() if path.name in _OWN_FILES or CHECKPOINT_NAME.fullmatch(path.name)]

    def claim(self) -> None:
        """Make the folder and remove what an earlier run wrote (unless this run goes on from it).

        Raises:
            OutputError: It cannot be made or cleared.
        """
        make_folder(self.path)
        remove_leftovers(self.path)
        if not self._keeps:
            self._clear()
        if self._resume is not None:
            write_metrics(self.metrics, log_history(self._resume))

    def _clear(self) -> None:
        try:
            for path in self._entries():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise OutputError(
                f"cannot remove {error.filename}: {error.strerror}.", hint="Choose another place."
            ) from error

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        for folder in self._missing:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return  # it holds something by now, and stays


def _is_own(path: Path) -> bool:
    """Whether a file or folder with a name that ptune uses was written by ptune."""
    if CHECKPOINT_NAME.fullmatch(path.name):
        return not path.is_dir() or (path / PTUNE_CONFIG).is_file() or not any(path.iterdir())
    if path.name == CARD:
        return path.is_file() and _OWN_CARD in path.read_bytes()[:4096].decode("utf-8", "replace")
    if path.name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ENCODER_WEIGHTS):
        return (path.parent / PTUNE_CONFIG).is_file()
    return path.is_file()


def write_metrics(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write a `metrics.jsonl` as it was when `history` had been logged: a resumed run goes on behind it."""
    write_atomic(path, "".join(metrics_line(entry) for entry in history).encode())
