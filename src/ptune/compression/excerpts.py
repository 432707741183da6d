"""A text cut for study: excerpts that questions are asked about, and windows that answers are read from.

An excerpt is some paragraphs, or a part of one that is too long. A window is what stands in front of a question when it
is answered: the whole text where the model's context has room for it, else neighbouring excerpts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ptune.data.text_ids import ids_of
from ptune.errors import ConfigError, DataError

_PARAGRAPH = re.compile(r"(?:.+(?:\n|\Z))+\n*")
_SENTENCE = re.compile(r".+?(?:[.!?][\"')\]]*\s+|[。！？][”’」』）]*|\n|\Z)", re.DOTALL)
_WORD = re.compile(r"\w{3,}")
_PAIR = re.compile(r"(?=([\u3040-\u30ff\u3400-\u9fff]{2}))")
"""Two neighbours in a text that is written without spaces between words."""

LEAST_TOKENS = 16
"""The least of a window, and of an excerpt."""


@dataclass(frozen=True)
class Excerpt:
    """A part of the text."""

    text: str
    tokens: int
    window: int
    """The window that it stands in."""


@dataclass(frozen=True)
class StudiedText:
    """A text in windows and excerpts."""

    windows: tuple[str, ...]
    """One, the whole text, where the context has room for it."""
    excerpts: tuple[Excerpt, ...]
    tokens: int

    def window_of(self, question: str) -> int:
        """The window that shares the most words with a question, rare ones counting more."""
        if len(self.windows) == 1:
            return 0
        words, asked = self._words, _words(question)
        scores = [sum(1 / sum(one in every for every in words) for one in asked & mine) for mine in words]
        return scores.index(max(scores))

    @cached_property
    def _words(self) -> list[frozenset[str]]:
        """Of each window."""
        return [_words(window) for window in self.windows]


def _words(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in (*_WORD.findall(text), *_PAIR.findall(text)))


def cut_text(
    text: str, tokenizer: PreTrainedTokenizerBase, *, excerpt_tokens: int, window_tokens: int | None
) -> StudiedText:
    """Cut a text.

    Args:
        text: All of it.
        tokenizer: Counts its tokens.
        excerpt_tokens: The most of an excerpt, where a window has room for it.
        window_tokens: The most of a window; None where there is no limit.

    Raises:
        DataError: The text holds nothing.
        ConfigError: A window has no room for text.
    """
    if not text.strip():
        raise DataError("the text is empty.", hint="Name a file that holds some.")
    total = len(ids_of([text], tokenizer)[0])
    whole = window_tokens is None or total <= window_tokens
    if not whole and (window_tokens or 0) < LEAST_TOKENS:
        raise ConfigError(
            f"beside the longest question and answer the model's context has room for {max(window_tokens or 0, 0):,} "
            "tokens of the text.",
            hint="Lower answer_tokens, or ask shorter questions.",
        )
    excerpt_tokens = min(excerpt_tokens, window_tokens or excerpt_tokens)
    pieces = _joined(_counted(_pieces(text, tokenizer, excerpt_tokens), tokenizer), excerpt_tokens)
    windows: list[list[str]] = [[]]
    excerpts: list[Excerpt] = []
    size = 0
    before = ("", 0)
    for piece, tokens in pieces:
        if not whole and size + tokens > (window_tokens or 0):
            # Windows overlap by an excerpt, where there is room: what is said across their border is in one of them.
            last, size = before if before[1] + tokens <= (window_tokens or 0) else ("", 0)
            windows.append([last])
        windows[-1].append(piece)
        size += tokens
        excerpts.append(Excerpt(piece.strip(), tokens, len(windows) - 1))
        before = (piece, tokens)
    joined = (text.strip(),) if whole else tuple("".join(window).strip() for window in windows)
    return StudiedText(joined, tuple(excerpts), total)


def _pieces(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> Iterable[str]:
    """Paragraphs; of one that is too long its sentences, and of such a sentence parts."""
    for paragraph in _PARAGRAPH.findall(text.lstrip("\n")):
        if len(ids_of([paragraph], tokenizer)[0]) <= most:
            yield paragraph
            continue
        for sentence in _SENTENCE.findall(paragraph):
            yield from _parts(sentence, tokenizer, most)


def _parts(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> list[str]:
    """A text in halves of halves, between words where there are any; its tokens may be parts of letters."""
    if len(text) < 2 or len(ids_of([text], tokenizer)[0]) <= most:
        return [text]
    middle = len(text) // 2
    at = text.rfind(" ", middle // 2, middle) + 1 or middle
    return [*_parts(text[:at], tokenizer, most), *_parts(text[at:], tokenizer, most)]


def _counted(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    texts = [piece for piece in pieces if piece.strip()]
    return list(zip(texts, map(len, ids_of(texts, tokenizer)), strict=True))


def _joined(pieces: Sequence[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """Neighbours put together up to so many tokens."""
    made: list[tuple[str, int]] = []
    for text, tokens in pieces:
        if made and made[-1][1] + tokens <= most:
            made[-1] = (made[-1][0] + text, made[-1][1] + tokens)
        else:
            made.append((text, tokens))
    return made
