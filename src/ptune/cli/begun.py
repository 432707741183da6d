"""The settings of work that goes on: what it was begun with, behind what the command line and a file say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptune.cli.recipe_file import read_recipe
from ptune.errors import ConfigError


def with_begun(
    values: dict[str, Any],
    from_file: Mapping[str, Any],
    file: Path | None,
    *,
    command: str,
    what: str,
    settings: str,
    may_begin: bool = False,
) -> tuple[Path | None, dict[str, Any]]:
    """Put the settings of the work that goes on behind those of the file; note in `values` where it lies.

    Args:
        values: Of the command line.
        from_file: Of the file of `--config`.
        file: That file.
        command: The command, without `ptune`.
        what: What it makes, for messages: "search".
        settings: Name of the file in the output folder that has the settings it was begun with.
        may_begin: Whether `--resume` without a folder also begins, where nothing is there to go on with.

    Returns:
        The file to name in errors, and the settings.

    Raises:
        ConfigError: There is none, or nothing says where to look.
    """
    resume, output = values.get("resume", from_file.get("resume")), values.get("output")
    named = resume if isinstance(resume, str) else None
    folder = named or output or from_file.get("output")
    if folder is None:
        raise ConfigError(
            f"nothing says which {what} to resume.", hint=f"Name its folder: ptune {command} --resume OUTPUT."
        )
    begun = Path(str(folder)) / settings
    if not begun.is_file() and (named or not may_begin):
        raise ConfigError(f"there is no {what} in {folder} to resume.", hint="Leave --resume out to begin one.")
    if named and output is not None and Path(str(output)) != Path(named):
        raise ConfigError(
            f"--resume {named} and --output {output} name two folders.",
            hint=f"A {what} goes on in its own folder; leave --output out.",
        )
    values |= {"output": str(folder), "resume": True}
    return (file or begun, {**read_recipe(begun), **from_file}) if begun.is_file() else (file, dict(from_file))
