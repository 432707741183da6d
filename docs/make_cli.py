"""Write `docs/cli.md` from the commands' own help: `python docs/make_cli.py`; `tests/cli/test_docs.py` compares."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from ptune.cli.main import COMMANDS, main

PAGE = Path(__file__).with_name("cli.md")
_TOP = """\
# Command line

What `ptune COMMAND --help` says, written by `docs/make_cli.py`. Every flag of `ptune train` is also a key of a recipe
file and an argument of `TrainRecipe`, with underscores for dashes. `--debug` shows the traceback of an error.
"""


def page() -> str:
    """The whole page."""
    parts = [_TOP, f"```text\n{_help()}```\n"]
    parts += [f"## ptune {command}\n\n```text\n{_help(command)}```\n" for command in COMMANDS]
    return "\n".join(parts)


def _help(*words: str) -> str:
    out = StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100"}), redirect_stdout(out):
        main([*words, "--help"])
    return out.getvalue()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
