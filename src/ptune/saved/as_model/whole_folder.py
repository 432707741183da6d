"""The folder of an exported model, which comes to its place when it is whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptune.errors import OutputError, first_line, shown
from ptune.saved.as_model.engine_card import PROMPTS
from ptune.saved.export_mark import check_empty, foreign, is_marked
from ptune.saved.files import flush_folder, make_folder

KIND = "model"
_OWN = re.compile(
    r"config\.json|generation_config\.json|README\.md|model.*\.safetensors(\.index\.json)?|tokenizer.*|vocab.*|merges\.txt"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja|additional_chat_templates|" + re.escape(PROMPTS)
)
"""What an export writes. A folder with anything else in it is not replaced."""


def check_place(output: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` where a folder of that name holds anything but an earlier export that may be replaced."""
    if check_empty(output, overwrite=overwrite):
        return
    if not is_marked(output, KIND):
        raise foreign(output)
    others = sorted(path.name for path in output.iterdir() if not _OWN.fullmatch(path.name))
    if others:
        raise OutputError(
            f"{output} holds {shown(others[0])}, which is no part of an export and would be lost.",
            hint="Choose another output.",
        )


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `output` at the end; on an error nothing is left of it.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    make_folder(output.parent)
    partial, before = (output.with_name(f".{output.name}.{word}") for word in ("partial", "before"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        flush_folder(partial)
        if output.is_dir():
            shutil.rmtree(before, ignore_errors=True)
            output.rename(before)
        partial.rename(output)
        flush_folder(output.parent)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as fault:
        if isinstance(fault, OutputError):
            raise
        raise OutputError(
            f"cannot write {output}: {fault.strerror or first_line(fault)}.",
            hint="Free some space or choose another place.",
        ) from fault
    finally:
        shutil.rmtree(partial, ignore_errors=True)
