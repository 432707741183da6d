"""Every error ptune raises on purpose: what was found, where, and the way out.

A `PTuneError` is the user's to mend. The command line prints it as one line and exits with `exit_code`; the
traceback is shown only under `--debug`. Anything that is not a `PTuneError` is a defect of ptune.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PTuneError(Exception):
    """Base of ptune's errors.

    Args:
        message: What was found, with the offending value and its place.
        hint: The way out, as an instruction. Shown after the message.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ConfigError(PTuneError, ValueError):
    """An argument, flag or recipe value that cannot be used."""


class DataError(PTuneError, ValueError):
    """A data file or row that cannot be used; the message names file and line."""


class ModelError(PTuneError, ValueError):
    """A model or tokenizer that cannot be loaded, or cannot do what was asked."""


class PromptError(PTuneError, ValueError):
    """A prompt folder or a named prompt that is missing, damaged, or made for another model."""


class OutputError(PTuneError, OSError):
    """A place on disk that cannot be written, or holds something that would be lost."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        PTuneError.__init__(self, message, hint=hint)

    def __str__(self) -> str:
        return PTuneError.__str__(self)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else None


def unknown(kind: str, name: str, known: Iterable[str], *, error: type[PTuneError] = ConfigError) -> PTuneError:
    """The error for a name that is not among the known ones; suggests the nearest."""
    names = sorted(known)
    guess = nearest(name, names)
    suggestion = f"Did you mean {guess!r}? " if guess else ""
    return error(f"unknown {kind} {name!r}.", hint=f"{suggestion}Known: {', '.join(names)}.")
