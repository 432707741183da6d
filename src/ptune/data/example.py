"""One training or evaluation record, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question and its answer. Every source (file, Arrow folder, hub) becomes a sequence of these."""

    instruction: str
    """What is asked: the instruction, the prompt, the text to label, or the last user turn."""
    input: str = ""
    """Further material for the instruction; empty when there is none."""
    output: str = ""
    """The answer to learn; empty only in files that hold questions alone."""
    system: str | None = None
    """System message, for templates that have a place for it."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns as (role, content), oldest first."""
    source: str = ""
    """Where the row stands: `file:line` in text files (lines from 1), `name[row]` in tables (rows from 0)."""
