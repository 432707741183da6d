"""Training checkpoints on disk: `OUTPUT/checkpoint-N`, whole or not there.

| file | what |
| --- | --- |
| the prompt folder's | the prompt as it was after step N, with its encoder (`ptune.saved.format`) |
| `training_state.safetensors` | optimizer, schedule, gradient scaler, and where in the run it was written |
| `process_K.safetensors` | of each process: its random generators, sums of the log, tokens seen |
| `trainer_state.json` | what transformers.Trainer keeps: step, epoch, log, best metric |
| `checkpoint.json` | every other file's size and SHA-256, written last |

A checkpoint is written into a folder of another name, flushed to disk and renamed. One that is to go is renamed before
it is removed. So what bears the name `checkpoint-N` is whole, whenever a process is killed; what a full disk, a copy
cut short or an editor did to it is found by the checksums. Checkpoints that a plain `transformers.Trainer` wrote
have none: of those, `trainer_state.json` is written last, and must be readable.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ptune.errors import ConfigError, PromptError, PTuneError
from ptune.saved.files import flush_folder, json_bytes, open_inside, read_json, write_flushed
from ptune.saved.loss_history import TRAINER_STATE

MANIFEST, TRAINING_STATE = "checkpoint.json", "training_state.safetensors"
CHECKPOINT_FORMAT = 1
MAX_STATE_BYTES = 64 * 2**30
MAX_LOG_BYTES = 2**30
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"\.checkpoint-\d+\.(new|old)")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")


def process_file(index: int) -> str:
    """The file of one process."""
    return f"process_{index}.safetensors"


def staging_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it gets its name."""
    return output / f".checkpoint-{step}.new"


def open_staging(output: Path, step: int) -> Path:
    """An empty staging folder. Raises `OSError`."""
    staged = staging_folder(output, step)
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir(parents=True)
    return staged


def finish_checkpoint(staged: Path, output: Path, step: int, *, resumable: bool) -> Path:
    """Note every file's checksum, bring all to disk, and give the folder its name. Raises `OSError`."""
    files = {}
    for path in sorted(staged.iterdir()):
        with path.open("rb+") as file:
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            os.fsync(file.fileno())
    manifest = {"format_version": CHECKPOINT_FORMAT, "step": step, "resumable": resumable, "files": files}
    write_flushed(staged / MANIFEST, json_bytes(manifest))
    flush_folder(staged)
    final = output / f"checkpoint-{step}"
    if final.exists():
        remove_checkpoint(final)
    staged.rename(final)
    flush_folder(output)
    return final


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; it loses its name first. Raises `OSError`."""
    gone = path.with_name(f".{path.name}.old")
    if gone.exists():
        shutil.rmtree(gone)
    path.rename(gone)
    shutil.rmtree(gone)


def remove_leftovers(output: Path) -> list[str]:
    """Remove what a killed process left of a checkpoint that it was writing or removing; the names of the former."""
    begun = []
    for path in output.iterdir() if output.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            if path.suffix == ".new":
                begun.append(path.stem.removeprefix("."))
    return sorted(begun)


def keep_newest(output: Path, limit: int | None, protected: Iterable[Path]) -> None:
    """Remove the oldest checkpoints until `limit` are left; the newest and the protected ones stay."""
    if limit is None or limit <= 0:
        return
    found = checkpoints(output)
    kept = {path.resolve() for path in (*protected, *found[:1])}
    surplus = len(found) - max(limit, len(kept))
    for path in reversed(found):
        if surplus > 0 and path.resolve() not in kept:
            remove_checkpoint(path)
            surplus -= 1


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a folder by name, the newest first."""
    if not output.is_dir():
        return []
    found = [path for path in output.iterdir() if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written.

    Raises:
        PromptError: It is no checkpoint of a training run, or damaged.
    """
    step = read_json(checkpoint, TRAINER_STATE, limit=MAX_LOG_BYTES).get("global_step")
    if type(step) is not int or step < 0:
        raise PromptError(f"{checkpoint / TRAINER_STATE} names no step.")
    return step


def check_whole(checkpoint: Path) -> None:
    """Compare a checkpoint with what was written.

    Raises:
        PromptError: A file is missing, cut or changed, or there is nothing to go on from; the message says which.
    """
    if not checkpoint.is_dir():
        raise PromptError(f"there is no checkpoint {checkpoint}.")
    if not (checkpoint / MANIFEST).is_file():
        _check_plain(checkpoint)
        return
    manifest = read_json(checkpoint, MANIFEST)
    if manifest.get("format_version") != CHECKPOINT_FORMAT or not isinstance(manifest.get("files"), dict):
        raise PromptError(
            f"{checkpoint / MANIFEST} has format version {manifest.get('format_version')!r}; this ptune reads "
            f"{CHECKPOINT_FORMAT}."
        )
    if manifest.get("resumable") is not True:
        raise PromptError(f"{checkpoint} holds the prompt alone (save_only_model), nothing to go on from.")
    for name, noted in manifest["files"].items():
        if not _PLAIN_NAME.fullmatch(name) or not isinstance(noted, dict):
            raise PromptError(f"{checkpoint / MANIFEST} lists {name!r}, which is no file of a checkpoint.")
        with open_inside(checkpoint, name, limit=MAX_STATE_BYTES) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != noted.get("sha256"):
                raise PromptError(f"{checkpoint / name} does not match its checksum in {MANIFEST}.")
    missing = {TRAINER_STATE, TRAINING_STATE, process_file(0)} - set(manifest["files"])
    if missing:
        raise PromptError(f"{checkpoint} lacks {', '.join(sorted(missing))}.")
    checkpoint_step(checkpoint)


def _check_plain(checkpoint: Path) -> None:
    """A checkpoint that a plain Trainer wrote: its state comes last, and a pickle is a zip file with its table last."""
    checkpoint_step(checkpoint)
    for name in ("optimizer.pt", "scheduler.pt"):
        if not zipfile.is_zipfile(checkpoint / name):
            raise PromptError(f"{checkpoint / name} is missing or cut, so there is nothing to go on from.")


def newest_whole(output: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a folder that is whole; a word about each newer one that is not."""
    for path in checkpoints(output):
        try:
            check_whole(path)
        except PTuneError as error:
            say(f"{path.name} is not whole and is passed over: {error.message}")
            continue
        return path
    return None


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a training run, for `Trainer.train(resume_from_checkpoint=…)`.

    In place of `transformers.trainer_utils.get_last_checkpoint`, which takes the highest number, half-written or not.
    Works for runs of `PTuneTrainer` and of a plain `Trainer`.

    Args:
        output_dir: The run's `output_dir`.

    Returns:
        Its path; None where there is none.
    """
    found = newest_whole(Path(output_dir), lambda _: None)
    return None if found is None else str(found)


def find_checkpoint(asked: str | bool | None, output: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from.

    Args:
        asked: A checkpoint, a folder of checkpoints (the newest whole one is taken), or true for the output folder.
        output: The run's output folder.
        say: Takes a word about checkpoints that are passed over.

    Raises:
        ConfigError: There is none, or the one named is not whole.
    """
    if asked in (None, False, "") or str(asked).lower() == "false":
        return None
    place = output if str(asked).lower() == "true" else Path(str(asked))
    if CHECKPOINT_NAME.fullmatch(place.absolute().name) or (place / TRAINER_STATE).exists():
        try:
            check_whole(place)
        except PTuneError as error:
            raise ConfigError(
                f"cannot go on from {place}: {error.message}", hint="Name another checkpoint, or let --resume find one."
            ) from error
        return place
    found = newest_whole(place, say)
    if found is None:
        raise ConfigError(
            f"there is no checkpoint in {place} to resume from.", hint="Leave --resume out, or name a checkpoint."
        )
    return found


def log_history(checkpoint: Path) -> list[dict[str, Any]]:
    """What had been logged when a checkpoint was written."""
    history = read_json(checkpoint, TRAINER_STATE, limit=MAX_LOG_BYTES).get("log_history", [])
    return [entry for entry in history if isinstance(entry, dict)]
