"""Every error ptune raises on purpose: what was found, where, and the way out.

A `PTuneError` is the user's to fix. The command line prints it as one line and exits with `exit_code`; the
traceback is shown only under `--debug`. Anything that is not a `PTuneError` is a defect of ptune.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence

_MOST_OF_MESSAGE, _MOST_OF_HINT = 1200, 600
"""Characters of an error that are shown on its line; what a file says may be long, and the way out must be seen."""
_MOST_OF_NAME = 200
"""Longest name that a known one is looked for."""
_MOST_KNOWN = 40


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


class TrainingError(PTuneError, RuntimeError):
    """A training run that cannot go on: what was computed is not a number, or the memory is not enough."""


class RunStoppedError(PTuneError):
    """A run that was asked to stop, and has saved where it was."""

    def __init__(self, message: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number


def one_line(error: BaseException) -> str:
    """An error's message without line breaks and without what a terminal would obey; the middle of a long one left out.

    The hint of a `PTuneError` is kept, however long the message.
    """
    if not isinstance(error, PTuneError):
        return _cut(printable(" ".join(str(error).split())), _MOST_OF_MESSAGE)
    parts = ((error.message, _MOST_OF_MESSAGE), (error.hint or "", _MOST_OF_HINT))
    return " ".join(_cut(printable(" ".join(text.split())), most) for text, most in parts if text.strip())


def first_line(fault: BaseException) -> str:
    """The first line of an error's message, with the one that it announces; its kind when it has none."""
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    whole = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    return whole[:300]


def printable(text: str) -> str:
    """`text` with escapes for control characters, terminal sequences, bidirectional controls, lone surrogates.

    What a file says is shown this way. Line breaks and tabs are escaped too.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def shown(value: object, most: int = 80) -> str:
    """`value` as Python writes it, on one line and about `most` characters at most, however large or deep it is."""
    if isinstance(value, str):
        return _cut(repr(_cut(value, most)), 2 * most)
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 4, most, most
    try:
        text = repr(value) if isinstance(value, (int, float, bool)) else short.repr(value)
    except (ValueError, RecursionError, MemoryError):  # a whole number of thousands of digits
        text = f"<{type(value).__name__}>"
    return _cut(printable(text), most)


def _cut(text: str, most: int) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= most:
        return text
    tail = most // 4
    return f"{text[: most - tail - 1]}…{text[len(text) - tail :]}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    if len(name) > _MOST_OF_NAME:
        return None
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else None


def unknown(kind: str, name: str, known: Iterable[str], *, error: type[PTuneError] = ConfigError) -> PTuneError:
    """The error for a name that is not among the known ones; suggests the nearest."""
    names = sorted(known)
    guess = nearest(name, names)
    suggestion = f"Did you mean {guess!r}? " if guess else ""
    return error(f"unknown {kind} {shown(name)}.", hint=f"{suggestion}Known: {listed(names)}.")


def listed(names: Iterable[object]) -> str:
    """Names one after another, the first few of many."""
    every = [_cut(str(name), _MOST_OF_NAME) for name in names]
    more = f", … ({len(every):,} in all)" if len(every) > _MOST_KNOWN else ""
    return ", ".join(every[:_MOST_KNOWN]) + more


def refuse(faults: Sequence[str]) -> None:
    """Raise `ConfigError` for settings that cannot be used, all of them at once; nothing where there are none."""
    if len(faults) == 1:
        raise ConfigError(f"{faults[0].rstrip('.')}.")
    if faults:
        numbered = "; ".join(f"({number}) {fault.rstrip('.')}" for number, fault in enumerate(faults, start=1))
        raise ConfigError(f"{len(faults)} settings cannot be used: {numbered}.")
