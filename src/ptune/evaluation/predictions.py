"""`predictions.jsonl`: what each column made of each item, a JSON object a line, and how an evaluation goes on.

A line is written when its batch is done. What was interrupted reads the lines that are there and does the rest; a last
line that was cut off is done again. `evaluation.json` says beside it what was asked, so that the lines of one
evaluation are never taken for another's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ptune.errors import OutputError, printable
from ptune.saved.files import make_folder, write_atomic, write_json

PREDICTIONS, ASKED = "predictions.jsonl", "evaluation.json"


class Predictions:
    """The lines of an evaluation, in memory and, where there is a folder, on disk.

    Args:
        folder: The output folder; None keeps everything in memory.
        asked: What was asked, as plain values: another evaluation is refused unless all of it is the same.
        overwrite: Replace another one.

    Raises:
        OutputError: The folder holds another evaluation or something else, or cannot be written.
    """

    def __init__(self, folder: Path | None, asked: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self._path = None if folder is None else folder / PREDICTIONS
        self._lines: dict[tuple[str, int], dict[str, Any]] = {}
        if folder is None:
            return
        asked = json.loads(json.dumps(asked))
        noted = _noted(folder)
        if noted is not None and (changed := _changed(noted, asked)) and not overwrite:
            raise OutputError(
                f"{folder} holds another evaluation: other {changed}.",
                hint="Choose another --output, or pass --overwrite.",
            )
        if noted == asked:
            self._lines = dict(_read(folder / PREDICTIONS))
            self._rewrite()
            return
        make_folder(folder)
        try:
            (folder / PREDICTIONS).unlink(missing_ok=True)
        except OSError as error:
            raise _not_written(folder, error) from error
        write_json(folder / ASKED, asked)

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._lines

    def __getitem__(self, key: tuple[str, int]) -> dict[str, Any]:
        return self._lines[key]

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Note some lines, each with `column` and `row`."""
        text = ""
        for line in lines:
            self._lines[line["column"], line["row"]] = line
            text += _json(line)
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _not_written(self._path, error) from error

    def drop(self, key: tuple[str, int]) -> None:
        """Forget a line that cannot be used."""
        self._lines.pop(key, None)

    def finish(self) -> None:
        """Put the file into the order of the data, the columns of a row one after another."""
        self._rewrite()

    def _rewrite(self) -> None:
        if self._path is not None:
            order = sorted(self._lines, key=lambda key: key[1])
            write_atomic(self._path, "".join(_json(self._lines[key]) for key in order).encode("utf-8", "surrogatepass"))


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _noted(folder: Path) -> dict[str, Any] | None:
    """What the evaluation in a folder was asked; None where the folder is empty or not there.

    Raises:
        OutputError: It holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        noted = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict):
        raise OutputError(
            f"the output folder {folder} is not empty, and holds no evaluation.", hint="Choose another --output."
        )
    return noted


def _changed(noted: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The names of what is another now."""
    names = [name for name in {**noted, **asked} if noted.get(name) != asked.get(name)]
    return ", ".join(printable(name.replace("_", " ")) for name in names[:5])


def _read(path: Path) -> Iterable[tuple[tuple[str, int], dict[str, Any]]]:
    """The whole lines of the file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line)
                yield (str(value["column"]), int(value["row"])), value
            except (ValueError, TypeError, KeyError, RecursionError):
                continue


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror}.", hint="Free some space or choose another place.")
