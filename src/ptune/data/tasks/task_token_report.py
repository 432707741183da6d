"""What became of the rows of a task when they were made into tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ptune.errors import printable

_NAMED_DROPS = 3
_FACTS = (
    ("truncated", "cut {:,} texts at max_length {max_length:,}"),
    ("targets_cut", "cut {:,} texts to write at target_length {target_length:,}; their end token is not learned"),
    ("words_cut", "{:,} words lie behind max_length {max_length:,}, and are not learned"),
    ("words_without_token", "{:,} words have no token of their own, and are not learned"),
    ("questions_cut", "cut {:,} questions, so that there is room for their context"),
    ("answers_in_no_window", "{:,} answers lie in no window as a whole: these questions are learned as unanswerable"),
)
"""Counts, and the line that tells of each."""


@dataclass(kw_only=True)
class TaskTokenReport:
    """What became of the rows, and how many tokens they are."""

    task: str
    max_length: int
    target_length: int | None = None
    """Of seq2seq."""
    rows_read: int = 0
    rows: int = 0
    """Rows of the data set; of qa windows, several of a long context."""
    tokens: int = 0
    """Tokens of these rows, special and virtual ones among them."""
    longest: int = 0
    """Tokens of the longest row."""
    without_tokens: int = 0
    """Rows dropped because their text has no token."""
    dropped: list[str] = field(default_factory=list)
    """Places of the first few dropped rows."""
    truncated: int = 0
    """Rows of which text was cut off; of qa none: their contexts become several windows."""
    targets_cut: int = 0
    words_cut: int = 0
    words_without_token: int = 0
    """Such as a word of nothing but a character that the tokenizer leaves out."""
    questions_cut: int = 0
    answers_in_no_window: int = 0

    def drop(self, source: str, number: int) -> None:
        """Count a row without tokens."""
        self.without_tokens += 1
        if len(self.dropped) < _NAMED_DROPS:
            self.dropped.append(source or f"row {number}")

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        return [printable(line) for line in self._lines()]

    def _lines(self) -> Iterator[str]:
        kept = self.rows_read - self.without_tokens
        windows = f" in {self.rows:,} windows" if self.rows != kept else ""
        yield f"tokenized {kept:,} rows{windows}: {self.tokens:,} tokens, longest row {self.longest:,}"
        for name, line in _FACTS:
            if count := getattr(self, name):
                yield line.format(count, max_length=self.max_length, target_length=self.target_length)
        if self.without_tokens:
            more = ", …" if self.without_tokens > len(self.dropped) else ""
            yield f"dropped {self.without_tokens:,} rows whose text has no token ({', '.join(self.dropped)}{more})"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)
