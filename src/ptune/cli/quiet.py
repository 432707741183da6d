"""Keeping the libraries quiet, so that what a command prints is its own."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

from rich.console import Console


def console() -> Console:
    """Where commands report: standard error, plain where it is not a terminal."""
    return Console(stderr=True, soft_wrap=True)


def output(*, width: int) -> Console:
    """Where tables go: standard output; a pipe has no width of its own, and 80 columns would cut them."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=width)


def json_line(value: Any) -> str:
    """A value as one line of JSON; escapes in place of letters only where one of them is none, or is a control."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def quiet_libraries(*, data: bool = True) -> None:
    """Errors only from transformers and its kin; their progress bars only on a terminal.

    Args:
        data: False for a command that reads no data: loading `datasets` takes it most of a second.
    """
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not data:
        return
    import datasets

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
