"""CoNLL files as rows of words and tags: a word and its tag a line, a blank line between sentences.

The first column is the word, the last one its tag; what stands between (CoNLL-2003's parts of speech) is left out.
Columns are divided by tabs where the first line has one, by blanks otherwise. `-DOCSTART-` lines and comments are
passed over. A line that begins with `#` is a comment unless it has as many columns as the others and a tag that others
have too: `#` and hashtags are words of tweets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptune.data.json_files import Row
from ptune.data.opened import ReadOptions, read_text
from ptune.errors import DataError, shown

CONLL_SUFFIXES = (".conll", ".bio", ".bio2", ".iob", ".iob2", ".txt")
"""Files that are read in this way where words are tagged."""
_BLANKS = re.compile(r"[ \t]+")
_DOCUMENT = "-DOCSTART-"
_CONLL_U = 10
"""Columns of CoNLL-U, of which the first is a number."""


@dataclass(frozen=True)
class _Line:
    """A line of a word."""

    number: int
    columns: list[str]


def conll_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Rows of a CoNLL file: `words` and, where there is more than one column, `tags`.

    Raises:
        DataError: A line with more or fewer columns than those before it, or an empty word.
    """
    lines = read_text(path, options.encoding).split("\n")
    words = [line for line in lines if line.strip() and not _passed_over(line)]
    tabs = bool(words) and "\t" in words[0].strip()
    cut = [_columns(line, tabs) for line in words]
    count = len(cut[0]) if cut else 2
    if count == _CONLL_U and cut[0][0] == "1":
        raise DataError(
            f"{path} looks like CoNLL-U: ten columns, the first a number.",
            hint="Write a line for each word that has the word first and its tag last.",
        )
    reader = _Reader(path, tabs, count, frozenset(columns[-1] for columns in cut))
    yield from reader.rows(lines)
    if reader.comments:
        options.notes.append(f"{path.name}: {reader.comments:,} lines that begin with # are comments, passed over")


def _passed_over(line: str) -> bool:
    return line.startswith(("#", _DOCUMENT))


def _columns(line: str, tabs: bool) -> list[str]:
    return [one.strip() for one in line.rstrip("\r\n").split("\t")] if tabs else _BLANKS.split(line.strip())


@dataclass
class _Reader:
    """Sentences of one file."""

    path: Path
    tabs: bool
    count: int
    """Columns of a line."""
    tags: frozenset[str]
    """Tags of lines that are no comments."""
    comments: int = 0

    def rows(self, lines: Sequence[str]) -> Iterator[Row]:
        """Every sentence, with the place of its first word."""
        sentence: list[_Line] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith(_DOCUMENT):
                yield from self._row(sentence)
                sentence = []
                continue
            columns = _columns(line, self.tabs)
            if line.startswith("#") and (len(columns) != self.count or columns[-1] not in self.tags):
                self.comments += 1
                continue
            self._check(columns, number)
            sentence.append(_Line(number, columns))
        yield from self._row(sentence)

    def _check(self, columns: list[str], number: int) -> None:
        if len(columns) != self.count:
            by = "tabs" if self.tabs else "blanks"
            raise DataError(
                f"{self.path}:{number}: the line has {len(columns)} columns divided by {by} "
                f"({shown(' '.join(columns), 40)}), the first of the file {self.count}.",
                hint="Write a word and its tag a line, and a blank line between sentences.",
            )
        if not columns[0]:
            raise DataError(f"{self.path}:{number}: the word is empty.", hint="Write the word first, then its tag.")

    def _row(self, sentence: list[_Line]) -> Iterator[Row]:
        if sentence:
            words = [line.columns[0] for line in sentence]
            tags = {"tags": [line.columns[-1] for line in sentence]} if self.count > 1 else {}
            yield f"{self.path}:{sentence[0].number}", {"words": words, **tags}
